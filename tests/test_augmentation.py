"""Augmentations of a batch, compared with numpy image by image, and with the largest changes that an augmentation may make."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from pul_core.learning.augmentation import MEAN_PIXEL, augment, colour_jitter, erase, flip, pad_crop, rotate_shift
from pul_core.settings import Augmentation

OFF = Augmentation(flip_probability=0, crop_share=0, erase_probability=0)
ON = Augmentation(flip_probability=0.5, crop_share=0.1, erase_probability=0.5, rotation_degrees=20, shift_share=0.2, colour_share=0.2)
EACH = {
    "flip": lambda images, generator: flip(images, 0.5, generator),
    "pad_crop": lambda images, generator: pad_crop(images, 0.2, generator),
    "erase": lambda images, generator: erase(images, 0.5, generator),
    "rotate_shift": lambda images, generator: rotate_shift(images, 20, 0.2, generator),
    "colour_jitter": lambda images, generator: colour_jitter(images, 0.2, generator),
    "augment": lambda images, generator: augment(images, ON, generator),
}
seeds = st.integers(0, 2**31 - 1)
few_examples = settings(max_examples=30, deadline=None)


def draw(b=6, h=16, w=8, seed=0, *, low=0):
    """Return images of random pixels in channels_last format, as in training."""
    pixels = torch.randint(low, 256, (b, h, w, 3), generator=Generator().manual_seed(seed), dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2)


def seeded(seed=0):
    return Generator().manual_seed(seed)


@pytest.fixture
def fix_draws(monkeypatch):
    """Return a function that makes every uniform draw the same number: 1 is the largest angle and shift, 0 the smallest, 0.5 none."""

    def fix(value):
        monkeypatch.setattr(torch, "rand", lambda *shape, generator=None, device=None: torch.full(shape, float(value)))

    return fix


@pytest.mark.parametrize("name", EACH)
def test_shape_dtype_and_layout_are_kept_and_the_input_is_not_changed(name):
    images = draw()
    copy = images.clone()
    augmented = EACH[name](images, seeded())
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, copy)
    assert not torch.equal(augmented, images)


@pytest.mark.parametrize("name", EACH)
def test_all_randomness_comes_from_the_generator(name):
    images = draw()
    torch.manual_seed(1)
    first, global_state = EACH[name](images, seeded(3)), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(EACH[name](images, seeded(3)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert any(not torch.equal(EACH[name](images, seeded(seed)), first) for seed in range(4, 8))


@pytest.mark.parametrize("name", EACH)
def test_each_image_is_augmented_differently(name):
    images = draw(1, low=130).repeat(12, 1, 1, 1)
    assert len({image.numpy().tobytes() for image in EACH[name](images, seeded())}) > 1


def test_flip_with_probability_1_equals_numpy():
    images = draw()
    np.testing.assert_array_equal(flip(images, 1.0, seeded()).numpy(), images.numpy()[..., ::-1])


def test_flip_with_probability_0_changes_nothing():
    assert torch.equal(flip(draw(), 0.0, seeded()), draw())


@few_examples
@given(seeds)
def test_flip_mirrors_whole_images(seed):
    images = draw(20)
    for image, augmented in zip(images, flip(images, 0.5, seeded(seed)), strict=True):
        assert torch.equal(augmented, image) or np.array_equal(augmented.numpy(), image.numpy()[..., ::-1])


def test_flip_has_the_given_probability():
    images = draw(1, 1, 2).repeat(4000, 1, 1, 1)
    share = (flip(images, 0.3, seeded()) != images).flatten(1).any(1).float().mean()
    assert 0.27 < share < 0.33  # 4 standard deviations


@few_examples
@given(seeds, st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_pad_crop_is_a_window_of_the_padded_image(seed, share):
    images = draw(5, 7, 8, low=1)
    p = round(share * 8)
    for image, augmented in zip(images.numpy(), pad_crop(images, share, seeded(seed)).numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (p, p), (p, p)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 7, 8))[0]
        assert (windows == augmented).all((2, 3, 4)).any()


def test_pad_crop_returns_every_window_and_no_other():
    images = draw(1, 3, 4, low=1).repeat(600, 1, 1, 1)
    padded = np.pad(images[0].numpy(), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 4)).reshape(9, -1)
    assert {row.tobytes() for row in windows} == {crop.tobytes() for crop in pad_crop(images, 0.25, seeded()).numpy()}


def test_pad_crop_with_share_0_changes_nothing():
    assert torch.equal(pad_crop(draw(), 0, seeded()), draw())


def rectangle(changed):
    """Return (height, width) of the rectangle that is exactly what changed, or None if the change is not a rectangle."""
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    box = np.ix_(range(rows[0], rows[-1] + 1), range(columns[0], columns[-1] + 1))
    return changed[box].shape if changed[box].all() and changed.sum() == changed[box].size else None


@few_examples
@given(seeds, st.sampled_from([(64, 32), (32, 32), (20, 50)]))
def test_erase_fills_one_rectangle_with_the_mean_colour(seed, size):
    h, w = size
    images = draw(8, h, w, low=130)  # no pixel has the mean colour
    augmented = erase(images, 1.0, seeded(seed))
    for image, after in zip(images.numpy(), augmented.numpy(), strict=True):
        changed = (after != image).any(0)
        assert (after[:, changed] == np.array(MEAN_PIXEL)[:, None]).all()
        patch_h, patch_w = rectangle(changed)
        assert patch_h * patch_w <= 0.40 * h * w
        # Sides are rounded down: the drawn rectangle is less than a pixel larger in each direction, unless it is clipped by the image.
        assert (patch_h + 1) * (patch_w + 1) > 0.02 * h * w
        assert (patch_h + 1) / patch_w > 0.3 or patch_w == w or patch_h == h
        assert patch_h / (patch_w + 1) < 1 / 0.3


def test_erase_draws_rectangles_of_all_sizes_shapes_and_positions():
    images = draw(1, 64, 64, low=130).repeat(500, 1, 1, 1)
    changed = (erase(images, 1.0, seeded()) != images).any(1).numpy()
    sides = np.array([rectangle(one) for one in changed])
    area, aspect = sides.prod(1) / 64**2, sides[:, 0] / sides[:, 1]
    assert area.min() < 0.05
    assert 0.35 < area.max() <= 0.40
    assert aspect.min() < 0.4
    assert aspect.max() > 2.5
    assert changed.any((0, 2)).all()  # up to every edge
    assert changed.any((0, 1)).all()
    assert 0.8 < np.exp(np.log(aspect).mean()) < 1.25  # tall and wide are equally likely


def test_erase_has_the_given_probability():
    images = draw(1, 16, 8, low=130).repeat(2000, 1, 1, 1)
    share = (erase(images, 0.3, seeded()) != images).flatten(1).any(1).float().mean()
    assert 0.26 < share < 0.34  # 4 standard deviations
    assert torch.equal(erase(images[:50], 0.0, seeded()), images[:50])
    assert (erase(images[:50], 1.0, seeded()) != images[:50]).flatten(1).any(1).all()


def test_rotate_shift_by_0_is_the_identity(fix_draws):
    assert torch.equal(rotate_shift(draw(), 0, 0, seeded()), draw())
    fix_draws(0.5)  # with interpolation as well
    assert torch.equal(rotate_shift(draw(), 20, 0.2, seeded()), draw())


@pytest.mark.parametrize("value", [0, 1])
def test_the_largest_shift_repeats_the_edge(fix_draws, value):
    """20 % of 20 rows and of 10 columns are 4 rows and 2 columns, in one of the four directions."""
    images = draw(3, 20, 10)
    fix_draws(value)
    augmented = rotate_shift(images, 0, 0.2, seeded()).numpy()
    p = ((0, 0), (0, 0), (4, 4), (2, 2))
    padded = np.pad(images.numpy(), p, mode="edge")
    assert any(np.array_equal(augmented, padded[:, :, top : top + 20, left : left + 10]) for top in (0, 8) for left in (0, 4))


def test_shifts_stay_within_their_share_in_both_directions():
    """A bright row and a bright column on black give the shift of an image."""
    images = torch.zeros(300, 3, 40, 20, dtype=torch.uint8)
    images[:, 0, 20], images[:, 1, :, 10] = 255, 255
    augmented = rotate_shift(images, 0, 0.2, seeded()).float()
    rows = (augmented[:, 0].mean(2) * torch.arange(40)).sum(1) / augmented[:, 0].mean(2).sum(1) - 20
    columns = (augmented[:, 1].mean(1) * torch.arange(20)).sum(1) / augmented[:, 1].mean(1).sum(1) - 10
    for shifts, largest in ((rows, 8), (columns, 4)):
        assert shifts.abs().max() <= largest + 0.05
        assert shifts.min() < -0.9 * largest
        assert shifts.max() > 0.9 * largest
    assert abs(float(torch.corrcoef(torch.stack((rows, columns)))[0, 1])) < 0.25


@pytest.mark.parametrize("value", [0, 1])
def test_a_quarter_turn_of_a_square_equals_numpy(fix_draws, value):
    images = draw(3, 12, 12)
    fix_draws(value)
    augmented = rotate_shift(images, 90, 0, seeded()).numpy().astype(int)
    turns = [np.rot90(images.numpy(), k, (2, 3)).astype(int) for k in (1, 3)]
    assert min(np.abs(augmented - turn).max() for turn in turns) <= 1


def test_the_smallest_and_the_largest_angle_are_opposite(fix_draws):
    images = draw(1, 12, 12)
    fix_draws(0)
    left = rotate_shift(images, 90, 0, seeded())
    fix_draws(1)
    right = rotate_shift(images, 90, 0, seeded())
    assert (left.int() - right.flip(2, 3).int()).abs().max() <= 1
    assert not torch.equal(left, right)


@pytest.mark.parametrize("value", [0, 1])
def test_a_rotation_keeps_shapes(fix_draws, value):
    """In an image twice as high as wide a disc remains a disc: the rotation is in pixels, not in normalised coordinates."""
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(32.0), indexing="ij")
    disc = (((row - 31.5) ** 2 + (column - 15.5) ** 2 < 100) * 255).to(torch.uint8).expand(1, 3, 64, 32)
    bar = (((column - 15.5).abs() < 2) * 255).to(torch.uint8).expand(1, 3, 64, 32)
    fix_draws(value)
    assert (rotate_shift(disc, 30, 0, seeded()).float() - disc.float()).abs().mean() < 4
    turned = rotate_shift(bar, 20, 0, seeded())[0, 0].float()
    centres = (turned[20:44] * column[20:44]).sum(1) / turned[20:44].sum(1)
    slope = float((centres[-1] - centres[0]) / (len(centres) - 1))
    assert abs(slope) == pytest.approx(np.tan(np.radians(20)), rel=0.03)


@few_examples
@given(seed=seeds, share=st.floats(0.01, 0.5))
def test_colour_jitter_equals_numpy(seed, share):
    """The oracle processes one image and one channel at a time, with the same five draws per image."""
    images = draw(4, 8, 6, seed)
    draws = share * (2 * torch.rand(5, 4, generator=seeded(seed)).numpy() - 1)
    augmented = colour_jitter(images, share, seeded(seed)).numpy().astype(int)
    for image, jittered, (red, green, blue, exposure, contrast) in zip(images.numpy().astype(float), augmented, draws.T, strict=True):
        spread = (image - image.mean()) * (1 + contrast) + image.mean()
        expected = np.stack([channel * (1 + exposure + balance) for channel, balance in zip(spread, (red, green, blue), strict=True)])
        assert np.abs(np.clip(expected, 0, 255) - jittered).max() <= 0.51


def test_colour_jitter_by_0_is_the_identity(fix_draws):
    assert torch.equal(colour_jitter(draw(), 0, seeded()), draw())
    fix_draws(0.5)
    assert torch.equal(colour_jitter(draw(), 0.3, seeded()), draw())


def test_augment_with_everything_off_returns_the_images():
    assert torch.equal(augment(draw(), OFF, seeded()), draw())


@pytest.mark.parametrize(
    ("options", "alone"),
    [
        ({"flip_probability": 0.5}, EACH["flip"]),
        ({"crop_share": 0.2}, EACH["pad_crop"]),
        ({"erase_probability": 0.5}, EACH["erase"]),
        ({"rotation_degrees": 20, "shift_share": 0.2}, EACH["rotate_shift"]),
        ({"colour_share": 0.2}, EACH["colour_jitter"]),
    ],
)
def test_augment_with_one_augmentation_equals_its_function(options, alone):
    assert torch.equal(augment(draw(), replace(OFF, **options), seeded(5)), alone(draw(), seeded(5)))


def test_augment_applies_all_in_the_documented_order():
    generator = seeded(6)
    expected = colour_jitter(rotate_shift(draw(), 20, 0.2, generator), 0.2, generator)
    expected = pad_crop(flip(expected, 0.5, generator), 0.1, generator)
    assert torch.equal(augment(draw(), ON, seeded(6)), erase(expected, 0.5, generator))
