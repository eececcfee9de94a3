"""Style groups: the style of images, its groups, and the step that replaces unknown cameras with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.errors import NotFiniteError, UserError
from pul_core.identities import NO_CAMERA
from pul_core.learning.backbone import build_backbone, normalise
from pul_core.learning.style import cameras_or_groups, extract_style, group_by_style
from pul_core.settings import Statistics
from tasks.cameras import cameras_of
from tasks.cameras import group_by_style as group_by_style_step
from tasks.decode import decode
from tasks.index import index
from tasks.store.artifacts import read_table
from tasks.store.model_file import read_model
from tasks.store.readers import camids, open_pixels

GROUPS = Statistics(by_camera=True, style_groups=2, min_images=4)


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("resnet10t", seed=0)


def noise(num_images, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_images, 64, 32, 3), np.uint8)


def test_the_style_is_that_of_the_channels_before_the_layer_a_third_of_the_way(backbone):
    """It is the fifth of fourteen."""
    images = noise(5)
    assert sum(isinstance(part, torch.nn.BatchNorm2d) for part in backbone.modules()) == 14
    layer = backbone.get_submodule("layer1.0.bn2")
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        backbone.eval()(normalise(torch.from_numpy(images).permute(0, 3, 1, 2)))
    handle.remove()
    means = seen[0].mean((2, 3))
    deviations = ((seen[0] - means[:, :, None, None]) ** 2).mean((2, 3)).sqrt()
    expected = torch.cat((means, deviations.log()), 1).numpy()
    np.testing.assert_allclose(extract_style(backbone, images, batch_size=2), expected, rtol=1e-4, atol=1e-5)
    assert not layer._forward_pre_hooks, "the hook is removed"


def test_an_image_has_the_same_style_in_every_batch_and_the_backbone_is_not_changed(backbone):
    images, before = noise(7), {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    batches = []
    style = extract_style(backbone, images, batch_size=3, on_batch=batches.append)
    assert batches == [3, 3, 1]
    np.testing.assert_allclose(extract_style(backbone, images[::-1].copy())[::-1], style, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_damaged_weights_and_a_backbone_without_batch_norm_are_refused():
    damaged = build_backbone("resnet10t", seed=0)
    next(damaged.parameters()).data.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="not finite"):
        extract_style(damaged, noise(2))
    for neck in (False, True):
        with pytest.raises(UserError, match="no BatchNorm layer of a feature map, so images have no style"):
            extract_style(build_backbone("vit_tiny_patch16_224", size=(64, 32), neck=neck), noise(2))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 5))
def test_separate_styles_are_found_in_any_order_and_at_any_scale(seed, num_groups):
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(12 * num_groups) % num_groups)
    style = (np.eye(num_groups)[truth] * 50 + rng.normal(size=(len(truth), num_groups))) * 10.0 ** rng.integers(-2, 3, num_groups)
    groups = group_by_style(style.astype(np.float32), num_groups, seed=0)
    assert len(set(zip(groups.tolist(), truth.tolist(), strict=True))) == num_groups, "the same partition"
    assert list(dict.fromkeys(groups.tolist())) == list(range(-2, -2 - num_groups, -1)), "numbered in the order of the images"


def test_a_channel_without_variation_does_not_matter_and_equal_styles_are_no_groups():
    style = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    groups = group_by_style(style, 3, seed=0)
    constant = np.full((20, 1), 1e4, np.float32)
    np.testing.assert_array_equal(group_by_style(np.hstack((style, constant)), 3, seed=0), groups)
    assert set(group_by_style(np.ones((20, 3), np.float32), 3, seed=0)) == {NO_CAMERA}


@pytest.mark.parametrize(
    ("camids", "changes"),
    [
        ([1] * 6 + [2] * 2, {}),
        ([1] * 8, {}),
        ([-1] * 4 + [2] * 4, {}),
        ([-1] * 7 + [2], {"style_groups": 0}),
        ([-1] * 8, {"min_images": 5}),
        ([-1] * 8, {"by_camera": False}),
    ],
)
def test_cameras_stay_where_they_are_known_or_groups_are_not_wanted(backbone, camids, changes):
    known = np.array(camids)
    assert cameras_or_groups(backbone, noise(8), known, Statistics(**vars(GROUPS) | changes), seed=0) is known


def test_images_that_were_taken_under_different_light_are_in_different_groups(backbone):
    images, is_dark = noise(12), np.arange(12) % 3 == 0
    images[is_dark] //= 4
    groups = cameras_or_groups(backbone, images, np.full(12, NO_CAMERA), GROUPS, seed=0)
    assert len(set(zip(groups.tolist(), is_dark.tolist(), strict=True))) == 2


def test_a_few_known_cameras_do_not_prevent_groups(backbone):
    assert set(cameras_or_groups(backbone, noise(8), np.array([1, 2, 2] + [-1] * 5), GROUPS, seed=0)) == {-2, -3}


def test_known_cameras_can_be_ignored(backbone):
    images, known = noise(8), np.repeat([1, 2], 4)
    ignoring = replace(GROUPS, ignore_cameras=True)
    unknown = cameras_or_groups(backbone, images, np.full(8, NO_CAMERA), GROUPS, seed=0)
    np.testing.assert_array_equal(cameras_or_groups(backbone, images, known, ignoring, seed=0), unknown)
    assert set(cameras_or_groups(backbone, images, known, Statistics(ignore_cameras=True), seed=0)) == {NO_CAMERA}


def test_the_step_groups_the_images_of_a_folder_without_camera_names(home, model, tiny_pair, compute, tmp_path):
    for number, file in enumerate(sorted((tiny_pair[1] / "bounding_box_train").iterdir())):
        (tmp_path / f"{number:03d}.jpg").write_bytes(file.read_bytes())
    images = index.fn(str(tmp_path), "target")
    pixels = decode.fn(images, split="train", height=64, width=32)
    cameras = cameras_of(model, pixels, images, settings=GROUPS, seed=5, compute=compute)
    assert cameras.kind == "cameras" and cameras.rows == images.images.rows == 36
    rows, decoded = open_pixels(pixels)
    expected = cameras_or_groups(read_model(model)[0], decoded, np.full(36, NO_CAMERA), GROUPS, seed=5)
    assert camids(read_table(cameras))[rows].tolist() == expected.tolist() and set(expected) == {-2, -3}
    assert cameras_of(model, pixels, images, settings=Statistics(), seed=5, compute=compute) == images.images


def test_known_cameras_are_those_of_the_index_and_images_to_score_have_no_group(home, model, pixels, tiny_pair, compute):
    images = index.fn(str(tiny_pair[1]), "target")
    assert cameras_of(model, pixels, images, settings=GROUPS, seed=0, compute=compute) == images.images
    ignored = cameras_of(model, pixels, images, settings=Statistics(ignore_cameras=True), seed=0, compute=compute)
    assert read_table(ignored)["camid"].null_count == images.images.rows
    groups = camids(read_table(group_by_style_step.fn(model, pixels, images.images, num_groups=2, seed=0, compute=compute)))
    is_train = np.isin(np.arange(len(groups)), open_pixels(pixels)[0])
    assert (groups[~is_train] == NO_CAMERA).all() and set(groups[is_train]) == {-2, -3}
