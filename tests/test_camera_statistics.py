"""Statistics of a target: against torch's own BatchNorm in training mode and numpy's covariance, and which images they depend on."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pul_core.errors import UserError
from pul_core.learning import camera_statistics, extraction
from pul_core.learning.backbone import build_backbone, normalise
from pul_core.learning.camera_statistics import CameraStatistics, batch_norm_layers, estimate_statistics
from pul_core.learning.extraction import extract_features
from pul_core.learning.foreign_weights import shape_of
from pul_core.settings import Statistics

CAMIDS = np.array([4, 2, 4, 4, -1, 2, 7, 2, 4, 2, 2, 4, -1, 7, 2])  # six images on cameras 2 and 5 on 4, two on 7, two unknown
SMALL = Statistics(by_camera=True, share=1, images_per_camera=6, min_images=4)


@pytest.fixture(scope="module")
def images():
    """Images of cameras with a tint of their own."""
    rng = np.random.default_rng(0)
    tint = rng.integers(0, 128, (10, 3))[CAMIDS]
    return (rng.integers(0, 128, (15, 64, 32, 3)) + tint[:, None, None]).astype(np.uint8)


@pytest.fixture(params=["test_resnet", "mobilenetv2_100"])
def backbone(request):
    """One backbone with torch's BatchNorm and one with timm's; statistics that are not the initial ones."""
    backbone = build_backbone(request.param, seed=1)
    with torch.no_grad():
        backbone.train()(torch.randn(8, 3, 64, 32, generator=torch.Generator().manual_seed(0)))
    return backbone


class Colour(nn.Sequential):
    """BatchNorm of the pixels, and their mean."""

    num_features = 3

    def __init__(self):
        super().__init__(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def estimate(backbone, images, camids=CAMIDS, settings=SMALL, **options):
    return estimate_statistics(backbone, images, camids, settings, **{"seed": 0} | options)


def extract(backbone, images, statistics=None, camids=CAMIDS, **options):
    return np.concatenate(list(extract_features(backbone, images, statistics=statistics, camids=camids, **options)))


def as_input(images):
    return normalise(torch.from_numpy(images).permute(0, 3, 1, 2))


def normalised_by(backbone, images, on):
    """Return the features of images by a copy of the backbone whose statistics torch's BatchNorm took from other images, in one batch."""
    adapted = copy.deepcopy(backbone).train()
    for layer in adapted.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # the statistics are those of the batch
    with torch.no_grad():
        adapted(as_input(images))
        return adapted.eval()(as_input(on)).numpy()


@pytest.mark.parametrize("share", [0.25, 1])
def test_the_share_weighs_the_camera_against_the_model(backbone, images, share):
    whole, mixed = (estimate(backbone, images, settings=replace(SMALL, share=part)) for part in (1, share))
    for name, layer in batch_norm_layers(backbone).items():
        for own, of_camera, result in (
            (layer.running_mean, whole.means, mixed.means),
            (layer.running_var, whole.variances, mixed.variances),
        ):
            expected = of_camera[name] + (1 - share) * (own.numpy() - of_camera[name])
            np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-6)


def test_features_equal_those_of_a_loop_over_cameras(backbone, images):
    features = extract(backbone, images, estimate(backbone, images, settings=replace(SMALL, images_per_camera=100)))
    expected = np.empty_like(features)
    for camid in (2, 4):
        here = np.isin(CAMIDS, camid)
        expected[here] = normalised_by(backbone, images[here], images[here])
    others = ~np.isin(CAMIDS, (2, 4))
    expected[others] = normalised_by(backbone, images, images[others])
    np.testing.assert_allclose(features, expected, atol=5e-3)
    assert np.abs(features - extract(backbone, images)).max() > 0.05, "the statistics have an effect"


def test_statistics_are_averages_over_batches_of_drawn_images(images, monkeypatch):
    """Seven of the images of one camera, in batches of four and three; those of all cameras are equally many of each."""
    monkeypatch.setattr(camera_statistics, "BATCH_SIZE", 4)
    batches, collect = [], camera_statistics._collect

    def spy(backbone, layers, pixels, on_batch):
        batches.append([batch.permute(0, 2, 3, 1).numpy() for batch in pixels])
        collect(backbone, layers, (torch.from_numpy(batch).permute(0, 3, 1, 2) for batch in batches[-1]), on_batch)

    monkeypatch.setattr(camera_statistics, "_collect", spy)
    camids = np.repeat([1, 3], [11, 4])
    counted = []
    statistics = estimate(Colour(), images, camids, replace(SMALL, images_per_camera=7), on_batch=counted.append)
    assert [[len(batch) for batch in entry] for entry in batches] == [[4, 3], [4], [4, 4]]
    assert counted == [4, 3, 4, 4, 4]
    assert statistics.camids.tolist() == [1, 3] and statistics.num_images.tolist() == [7, 4, 8]
    row_of = {image.tobytes(): row for row, image in enumerate(images)}
    drawn = [[row_of[image.tobytes()] for batch in entry for image in batch] for entry in batches]
    assert all(len(set(rows)) == len(rows) for rows in drawn), "no image twice"
    assert [np.bincount(camids[rows], minlength=4).tolist() for rows in drawn] == [[0, 7, 0, 0], [0, 0, 0, 4], [0, 4, 0, 4]]
    for entry, in_batches in enumerate(batches):
        pixels = [as_input(batch) for batch in in_batches]
        mean = torch.stack([batch.mean((0, 2, 3)) for batch in pixels]).mean(0)
        variance = torch.stack([batch.var((0, 2, 3), unbiased=True) for batch in pixels]).mean(0)
        np.testing.assert_allclose(statistics.means["0"][entry], mean, atol=2e-5)
        np.testing.assert_allclose(statistics.variances["0"][entry], variance, atol=2e-5)


def test_features_are_whitened_by_their_covariance_within_entries(backbone, images):
    """The oracle extracts the features of each entry's images and takes numpy's covariance and eigenvectors."""
    settings = replace(SMALL, whitening=0.5, shrinkage=0.2)
    counted = []
    plain, whitened = estimate(backbone, images), estimate(backbone, images, settings=settings, on_batch=counted.append)
    assert plain.whitening is None and whitened.whitening.transform.dtype == np.float32
    for layer in plain.means:
        np.testing.assert_array_equal(plain.means[layer], whitened.means[layer])
    drawn = camera_statistics.draw_images(CAMIDS, settings, seed=0)[1]
    assert sum(counted) == camera_statistics.count_forward_passes(CAMIDS, settings, seed=0) == 2 * sum(map(len, drawn))
    camid_of_entry = (2, 4, -1)
    features = [
        extract(backbone, images[rows], plain, np.full(len(rows), camid)).astype(np.float64)
        for camid, rows in zip(camid_of_entry, drawn, strict=True)
    ]
    mean, centred = np.concatenate(features).mean(0), np.concatenate([values - values.mean(0) for values in features])
    variance, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    transform = directions @ np.diag((variance.clip(0) + 0.2 * variance.clip(0).mean()) ** -0.25) @ directions.T
    np.testing.assert_allclose(whitened.whitening.mean, mean, rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(whitened.whitening.transform, transform, rtol=1e-2, atol=2e-3 * np.abs(transform).max())
    expected = (extract(backbone, images, plain) - whitened.whitening.mean) @ whitened.whitening.transform
    features = extract(backbone, images, whitened)
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_with_power_one_and_no_shrinkage_all_directions_of_a_camera_have_the_same_variance(images):
    images = np.random.default_rng(2).integers(0, 256, (40, 8, 4, 3)).astype(np.uint8)
    images[..., 1] = images[..., 0] // 2 + images[..., 1] // 2  # channels that are correlated
    settings = Statistics(by_camera=True, whitening=1, shrinkage=0)
    whitening = estimate(Colour(), images, np.full(40, 3), settings)
    np.testing.assert_allclose(np.cov(extract(Colour(), images, whitening, np.full(40, 3)).T, bias=True), np.eye(3), atol=0.02)


def test_identical_features_cannot_be_whitened(images):
    with pytest.raises(UserError, match=r"identical or not finite.*statistics.whitening=0"):
        estimate(Colour(), np.zeros_like(images), settings=replace(SMALL, whitening=0.5))


def test_images_of_other_cameras_change_neither_statistics_nor_features_of_a_camera(backbone, images):
    changed = images.copy()
    changed[CAMIDS != 4] = 255 - changed[CAMIDS != 4]
    statistics, others = (estimate(backbone, each) for each in (images, changed))
    for layer in statistics.means:
        np.testing.assert_array_equal(statistics.means[layer][1], others.means[layer][1])
        np.testing.assert_array_equal(statistics.variances[layer][1], others.variances[layer][1])
    before, after = extract(backbone, images, statistics), extract(backbone, changed, others)
    np.testing.assert_array_equal(before[CAMIDS == 4], after[CAMIDS == 4])
    assert (np.abs(before - after).max(1) > 1e-3)[CAMIDS != 4].all()


@pytest.mark.parametrize("block", [4, 1024])
def test_the_order_of_the_images_does_not_matter(backbone, images, monkeypatch, block):
    monkeypatch.setattr(extraction, "BLOCK", block)
    statistics = estimate(backbone, images)
    features = extract(backbone, images, statistics)
    order = np.random.default_rng(1).permutation(len(images))
    np.testing.assert_allclose(extract(backbone, images[order], statistics, CAMIDS[order]), features[order], atol=5e-3)
    assert extract(backbone, images, statistics).tobytes() == features.tobytes()
    blocks = list(extract_features(backbone, images, statistics=statistics, camids=CAMIDS))
    assert [len(part) for part in blocks] == ([4, 4, 4, 3] if block == 4 else [15])


def test_small_new_and_unknown_cameras_have_the_statistics_of_all(backbone, images):
    statistics = estimate(backbone, images)
    assert statistics.camids.tolist() == [2, 4]
    small, new, unknown, known = (extract(backbone, images[:3], statistics, np.full(3, camid)) for camid in (7, 99, -1, 2))
    assert small.tobytes() == new.tobytes() == unknown.tobytes() != known.tobytes()


def test_the_number_of_images_decides_which_cameras_have_statistics(images):
    by_number = [estimate(Colour(), images, settings=Statistics(min_images=number)).camids.tolist() for number in (2, 3, 6, 7)]
    assert by_number == [[2, 4, 7], [2, 4], [2], []]


def test_without_any_camera_the_statistics_are_those_of_all_images(images):
    statistics = estimate(Colour(), images, np.full(15, -1), Statistics(share=1))
    assert statistics.camids.tolist() == [] and statistics.num_images.tolist() == [15]
    np.testing.assert_allclose(statistics.means["0"][0], as_input(images).mean((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_the_backbone_is_not_changed(backbone, images):
    backbone.eval()
    before = copy.deepcopy(backbone)
    extract(backbone, images, estimate(backbone, images))
    assert all(torch.equal(tensor, backbone.state_dict()[name]) for name, tensor in before.state_dict().items())
    assert [part.training for part in backbone.modules()] == [part.training for part in before.modules()]
    assert {layer.momentum for layer in batch_norm_layers(backbone).values()} == {0.1}


def test_with_the_statistics_of_the_backbone_features_are_the_plain_ones(backbone, images):
    layers = batch_norm_layers(backbone)
    means, variances = (
        {name: np.tile(getattr(layer, part).numpy(), (2, 1)) for name, layer in layers.items()} for part in ("running_mean", "running_var")
    )
    statistics = CameraStatistics(np.array([4]), np.array([5, 15]), means, variances)
    np.testing.assert_allclose(extract(backbone, images, statistics), extract(backbone, images), atol=5e-3)


def test_statistics_repeat_and_follow_the_seed(images):
    same, again, other = (
        estimate(Colour(), images, settings=replace(SMALL, images_per_camera=4), seed=seed).means["0"] for seed in (0, 0, 1)
    )
    assert same.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("backbone", ["test_resnet"], indirect=True)  # the rounding errors of the other, untrained, are larger
def test_bfloat16_features_are_close(backbone, images):
    statistics = estimate(backbone, images)
    approximate, exact = extract(backbone, images, statistics, dtype="bfloat16"), extract(backbone, images, statistics)
    cosine = (approximate * exact).sum(1) / np.linalg.norm(approximate, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.99


def test_cameras_are_required_and_transformers_are_refused(backbone, images):
    statistics = estimate(backbone, images)
    with pytest.raises(ValueError, match="require the camera of each image"):
        extract(backbone, images, statistics, None)
    with pytest.raises(UserError, match=r"VisionTransformer has no BatchNorm layer.*statistics.by_camera=false"):
        batch_norm_layers(shape_of("vit_tiny_patch16_224"))
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        estimate(backbone, images[:1], CAMIDS[:1])
