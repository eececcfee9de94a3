"""Feature extraction: order, batch sizes, unchanged weights, and the fallback from bfloat16 to float32."""

import numpy as np
import pytest
import torch
from torch import nn

from pul_core.errors import NotFiniteError
from pul_core.learning import extraction
from pul_core.learning.backbone import build_backbone, normalise
from pul_core.learning.extraction import extract_features


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (11, 64, 32, 3), dtype=np.uint8)


@pytest.fixture
def backbone():
    """A backbone whose BatchNorm statistics are not the initial ones."""
    backbone = build_backbone("test_resnet", seed=2)
    backbone.train()
    with torch.no_grad():
        backbone(torch.randn(8, 3, 64, 32, generator=torch.Generator().manual_seed(0)))
    return backbone


def extract(backbone, images, **options):
    return np.concatenate(list(extract_features(backbone, images, **options)))


def test_features_of_a_batch_equal_those_of_single_images(backbone, images):
    features = extract(backbone, images, batch_size=4)
    assert features.shape == (11, 96)
    assert features.dtype == np.float32
    backbone.eval()
    for image, feature in zip(images, features, strict=True):
        with torch.no_grad():
            alone = backbone(normalise(torch.from_numpy(image.transpose(2, 0, 1)[None].copy())))[0]
        np.testing.assert_allclose(feature, alone.numpy(), rtol=1e-4, atol=1e-5)


def test_different_images_have_different_features(backbone, images):
    """Otherwise the test above would pass with a backbone that ignores its input."""
    features = extract(backbone, images)
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    assert distances[~np.eye(11, dtype=bool)].min() > 1e-3


@pytest.mark.parametrize("batch_size", [1, 3, 11, 100])
def test_the_batch_size_affects_rounding_only(backbone, images, batch_size):
    batches = list(extract_features(backbone, images, batch_size=batch_size))
    assert [len(features) for features in batches] == [len(images[i : i + batch_size]) for i in range(0, 11, batch_size)]
    np.testing.assert_allclose(np.concatenate(batches), extract(backbone, images, batch_size=5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sizes", "expected"), [({}, [32, 8]), ({"cpu": 256}, [40])])
def test_the_default_batch_size_follows_the_kind_of_device(images, monkeypatch, sizes, expected):
    monkeypatch.setattr(extraction, "BATCH_SIZES", extraction.BATCH_SIZES | sizes)
    assert [len(features) for features in extract_features(MeanColour(), np.tile(images, (4, 1, 1, 1))[:40])] == expected
    assert extraction.BATCH_SIZES["cuda"] == 256


def test_extraction_changes_neither_weights_nor_statistics(backbone, images):
    backbone.train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    extract(backbone, images)
    assert not any(module.training for module in backbone.modules())
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_same_call_gives_the_same_bytes(backbone, images):
    assert extract(backbone, images).tobytes() == extract(backbone, images).tobytes()


def test_images_may_be_memory_mapped(backbone, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    np.testing.assert_array_equal(extract(backbone, mapped), extract(backbone, images))


def test_images_are_read_a_batch_at_a_time(backbone, images):
    """The first batch of features is yielded before the images of the second one are read."""
    read = []

    class Recorder(np.ndarray):
        def __getitem__(self, key):
            if isinstance(key, slice):
                read.append((key.start, key.stop))
            return super().__getitem__(key)

    batches = extract_features(backbone, images.view(Recorder), batch_size=4)
    assert read == []
    next(batches)
    assert read == [(0, 4)]


def test_no_images_give_no_batches(backbone):
    assert list(extract_features(backbone, np.zeros((0, 64, 32, 3), np.uint8))) == []


def test_bfloat16_is_close_and_returned_as_float32(backbone, images):
    approximate, exact = extract(backbone, images[:3], dtype="bfloat16"), extract(backbone, images[:3])
    assert approximate.dtype == np.float32
    assert not np.array_equal(approximate, exact)
    cosine = (approximate * exact).sum(1) / np.linalg.norm(approximate, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
@pytest.mark.fault("NaN and infinity in features that are extracted", "`features of images ... are not finite`")
def test_damaged_weights_are_named_with_the_images(backbone, images, damage):
    with torch.no_grad():
        next(backbone.parameters()).fill_(damage)
    with pytest.raises(NotFiniteError, match="images 0 to 3 are not finite"):
        extract(backbone, images, batch_size=4)


class MeanColour(nn.Module):
    """The mean colour of each image. The first image of the calls listed in ``fail_under_autocast`` is NaN under autocast, as with AMX."""

    def __init__(self, fail_under_autocast=(), *, always_fail=False):
        super().__init__()
        self.fail_under_autocast, self.always_fail, self.autocast = fail_under_autocast, always_fail, []

    def forward(self, pixels):
        features = pixels.mean((2, 3))
        self.autocast.append(torch.is_autocast_enabled(pixels.device.type))
        if self.always_fail or (self.autocast[-1] and sum(self.autocast) - 1 in self.fail_under_autocast):
            features[0, 1] = float("nan")
        return features


def test_a_batch_that_is_not_finite_in_bfloat16_is_computed_again_in_float32(images):
    backbone, counts = MeanColour(fail_under_autocast=(1, 2)), []
    features = extract(backbone, images, batch_size=4, dtype="bfloat16", on_float32_fallback=counts.append)
    assert backbone.autocast == [True, True, False, True, False]  # batches 2 and 3 twice
    assert counts == [4, 3]
    np.testing.assert_array_equal(features, extract(MeanColour(), images, batch_size=4))


def test_the_callback_for_float32_is_optional_and_not_called_for_finite_features(images):
    counts = []
    extract(MeanColour(), images, dtype="bfloat16", on_float32_fallback=counts.append)
    assert counts == []
    assert np.isfinite(extract(MeanColour(fail_under_autocast=(0,)), images, dtype="bfloat16")).all()


@pytest.mark.parametrize(("dtype", "calls"), [("bfloat16", [True, False]), ("float32", [False])])
def test_features_that_are_not_finite_in_float32_are_an_error(images, dtype, calls):
    backbone, counts = MeanColour(always_fail=True), []
    with pytest.raises(NotFiniteError, match="images 0 to 10 are not finite: the weights are damaged"):
        extract(backbone, images, dtype=dtype, on_float32_fallback=counts.append)
    assert backbone.autocast == calls
    assert counts == []
