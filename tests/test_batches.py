"""The batches of an epoch: every image once, or P classes with K images each, all drawn equally often."""

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
        images_by_class = {}
        for image in batch.tolist():
            images_by_class.setdefault(int(classes[image]), []).append(image)
        assert len(images_by_class) == p and len(batch) == p * k
        for number, images in images_by_class.items():
            assert len(images) == k and set(images) <= set(images_of[number])
            counts = [images.count(image) for image in images_of[number]]
            assert max(counts) <= 1 if len(counts) >= k else max(counts) - min(counts) <= 1


@given(CLASSES, st.integers(2, 20), st.data())
@settings(max_examples=100, deadline=None)
def test_classes_and_images_are_drawn_without_replacement(classes, batch_size, data):
    """Neither a class within a pass over all classes, nor an image within a pass over the images of its class, is repeated."""
    k = data.draw(st.integers(2, batch_size))
    present, sizes = np.unique(classes, return_counts=True)
    p = min(batch_size // k, len(present))
    batches = batches_of(classes, batch_size, k, data.draw(st.integers(0, 99)))
    classes_per_batch = [classes[batch[::k]] for batch in batches]
    batches_per_pass = len(present) // p
    for start in range(0, len(batches), batches_per_pass):
        drawn = np.concatenate(classes_per_batch[start : start + batches_per_pass])
        assert len(np.unique(drawn)) == len(drawn)
    for number, size in zip(present, sizes, strict=True):
        groups = [group for batch in batches for group in batch.reshape(-1, k) if classes[group[0]] == number]
        groups_per_pass = max(1, size // k)
        for start in range(0, len(groups), groups_per_pass):
            drawn = np.concatenate(groups[start : start + groups_per_pass])
            assert len(np.unique(drawn)) == min(len(drawn), size)


@pytest.mark.parametrize("images_per_class", [0, 2])
def test_batches_depend_on_the_generator_only(images_per_class):
    classes = np.arange(40) // 5
    first, other = (batches_of(classes, 8, images_per_class, seed) for seed in (1, 2))
    torch.rand(3)
    again = batches_of(classes, 8, images_per_class, 1)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_all_classes_and_all_images_of_a_class_are_drawn_equally_often():
    """Classes of 2, 3 and 7 images: a third of the drawn images are of each class, and the images of a class have equal shares."""
    classes = np.repeat([0, 1, 2], [2, 3, 7])
    drawn = np.concatenate([np.concatenate(batches_of(classes, 4, 2, seed)) for seed in range(2000)])
    share = np.bincount(drawn, minlength=12) / len(drawn)
    np.testing.assert_allclose(share, np.repeat([1 / 6, 1 / 9, 1 / 21], [2, 3, 7]), atol=0.006)  # 4 standard errors


@pytest.mark.parametrize(
    ("classes", "batch_size", "images_per_class", "sizes"),
    [
        ([0] * 6 + [1] * 6, 8, 2, [4, 4]),  # fewer classes than P: smaller batches
        ([0, 0, 0, 1], 4, 4, [4]),  # a class with one image repeats it four times
        ([5] * 9, 3, 3, [3, 3, 3]),  # one class only
        ([0, 1], 2, 1, [2]),
        ([0, 7, 900, 3, 4], 2, 1, [2, 2]),  # one image per class, numbers with gaps
        (np.arange(20) // 2, 7, 2, [6, 6, 6]),  # 7 is not a multiple of K
    ],
)
def test_edge_cases(classes, batch_size, images_per_class, sizes):
    assert [len(batch) for batch in batches_of(classes, batch_size, images_per_class)] == sizes


def test_batches_of_one_image_are_refused():
    with pytest.raises(ValueError, match="raise images_per_class"):
        batches_of([3, 3, 3], 4, 1)


def test_classes_may_be_read_only():
    classes = np.arange(12) // 3
    classes.flags.writeable = False
    assert len(batches_of(classes, 4, 2)) == 3
