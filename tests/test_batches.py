"""What an epoch's steps show: every image once, or P classes with K images each, without favourites."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.learning.batches import epoch_batches, num_steps

CLASSES = st.lists(st.integers(0, 9), min_size=2, max_size=60).map(np.array)


def batches_of(classes, batch_size, images_per_class, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return epoch_batches(np.asarray(classes), batch_size=batch_size, images_per_class=images_per_class, generator=generator)


@given(CLASSES, st.integers(2, 20), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_shuffled_batches_hold_every_image_once(classes, batch_size, seed):
    batches = batches_of(classes, batch_size, 0, seed)
    assert sorted(np.concatenate(batches)) == list(range(len(classes)))
    assert len(batches) == num_steps(len(classes), batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 2 <= len(batches[-1]) <= batch_size + 1


@given(CLASSES, st.integers(2, 20), st.data())
@settings(max_examples=200, deadline=None)
def test_a_batch_is_p_classes_with_k_images_each(classes, batch_size, data):
    k = data.draw(st.integers(2, batch_size))
    images_of = {number: np.flatnonzero(classes == number).tolist() for number in classes.tolist()}
    p = min(batch_size // k, len(images_of))
    batches = batches_of(classes, batch_size, k, data.draw(st.integers(0, 99)))
    assert len(batches) == num_steps(len(classes), batch_size)
    for batch in batches:
        shown = {}
        for image in batch.tolist():
            shown.setdefault(int(classes[image]), []).append(image)
        assert len(shown) == p and len(batch) == p * k
        for number, images in shown.items():
            assert len(images) == k and set(images) <= set(images_of[number])
            times = [images.count(image) for image in images_of[number]]
            assert max(times) <= 1 if len(times) >= k else max(times) - min(times) <= 1


@given(CLASSES, st.integers(2, 20), st.data())
@settings(max_examples=100, deadline=None)
def test_nothing_comes_up_again_while_there_is_a_hand_left_of_the_others(classes, batch_size, data):
    """Classes in a round of batches, and a class's images in a round of the batches that show it."""
    k = data.draw(st.integers(2, batch_size))
    present, sizes = np.unique(classes, return_counts=True)
    p = min(batch_size // k, len(present))
    batches = batches_of(classes, batch_size, k, data.draw(st.integers(0, 99)))
    shown = [classes[batch[::k]] for batch in batches]
    a_round = len(present) // p
    for start in range(0, len(shown), a_round):
        together = np.concatenate(shown[start : start + a_round])
        assert len(np.unique(together)) == len(together)
    for number, size in zip(present, sizes, strict=True):
        hands = [hand for batch in batches for hand in batch.reshape(-1, k) if classes[hand[0]] == number]
        a_round = max(1, size // k)
        for start in range(0, len(hands), a_round):
            together = np.concatenate(hands[start : start + a_round])
            assert len(np.unique(together)) == min(len(together), size)


@pytest.mark.parametrize("images_per_class", [0, 2])
def test_batches_follow_from_the_generator_alone(images_per_class):
    classes = np.arange(40) // 5
    first, other = (batches_of(classes, 8, images_per_class, seed) for seed in (1, 2))
    torch.rand(3)
    again = batches_of(classes, 8, images_per_class, 1)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_classes_and_images_are_drawn_without_favourites():
    """Classes of 2, 3 and 7 images: each class fills a third of what is shown, each of its images the same share."""
    classes = np.repeat([0, 1, 2], [2, 3, 7])
    shown = np.concatenate([np.concatenate(batches_of(classes, 4, 2, seed)) for seed in range(2000)])
    share = np.bincount(shown, minlength=12) / len(shown)
    np.testing.assert_allclose(share, np.repeat([1 / 6, 1 / 9, 1 / 21], [2, 3, 7]), atol=0.006)  # 4 standard errors


@pytest.mark.parametrize(
    ("classes", "batch_size", "images_per_class", "sizes"),
    [
        ([0] * 6 + [1] * 6, 8, 2, [4, 4]),  # fewer classes than P: smaller batches
        ([0, 0, 0, 1], 4, 4, [4]),  # a class with one image is that image four times, or is not drawn
        ([5] * 9, 3, 3, [3, 3, 3]),  # one class only
        ([0, 1], 2, 1, [2]),
        ([0, 7, 900, 3, 4], 2, 1, [2, 2]),  # one image a class, numbers with gaps
        (np.arange(20) // 2, 7, 2, [6, 6, 6]),  # 7 images are no whole number of hands
    ],
)
def test_edge_cases(classes, batch_size, images_per_class, sizes):
    assert [len(batch) for batch in batches_of(classes, batch_size, images_per_class)] == sizes


@pytest.mark.parametrize(("batch_size", "images_per_class"), [(4, 5), (4, -1)])
def test_a_batch_that_does_not_hold_k_images_is_refused(batch_size, images_per_class):
    with pytest.raises(ValueError, match=f"between 0 and batch_size .4., not {images_per_class}"):
        batches_of([0, 0, 1, 1], batch_size, images_per_class)


def test_batches_of_one_image_are_refused():
    with pytest.raises(ValueError, match="raise images_per_class"):
        batches_of([3, 3, 3], 4, 1)


def test_a_read_only_array_will_do():
    classes = np.arange(12) // 3
    classes.flags.writeable = False
    assert len(batches_of(classes, 4, 2)) == 3
