"""Features of many images: in their order, whatever the batch, and from a model that does not learn on the way."""

import numpy as np
import pytest
import torch

from pul_core.errors import NotFiniteError
from pul_core.learning.backbone import build_backbone, normalise
from pul_core.learning.extraction import extract_features


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (11, 64, 32, 3), dtype=np.uint8)


@pytest.fixture
def backbone():
    """A trunk whose BatchNorm statistics are not the initial ones."""
    trunk = build_backbone("resnet10t", seed=2)
    trunk.train()
    with torch.no_grad():
        trunk(torch.randn(8, 3, 64, 32, generator=torch.Generator().manual_seed(0)))
    return trunk


def extract(backbone, images, **options):
    return np.concatenate(list(extract_features(backbone, images, **options)))


def test_features_are_those_of_one_image_after_the_other(backbone, images):
    found = extract(backbone, images, batch_size=4)
    assert found.shape == (11, 512)
    assert found.dtype == np.float32
    backbone.eval()
    for image, feature in zip(images, found, strict=True):
        with torch.no_grad():
            alone = backbone(normalise(torch.from_numpy(image.transpose(2, 0, 1)[None].copy())))[0]
        np.testing.assert_allclose(feature, alone.numpy(), rtol=1e-4, atol=1e-5)


def test_different_images_have_different_features(backbone, images):
    """Without it the test above would pass on a trunk that ignores its input."""
    found = extract(backbone, images)
    distances = np.linalg.norm(found[:, None] - found[None], axis=2)
    assert distances[~np.eye(11, dtype=bool)].min() > 1e-3


@pytest.mark.parametrize("batch_size", [1, 3, 11, 100])
def test_the_batch_size_changes_rounding_only(backbone, images, batch_size):
    blocks = list(extract_features(backbone, images, batch_size=batch_size))
    assert [len(block) for block in blocks] == [len(images[i : i + batch_size]) for i in range(0, 11, batch_size)]
    np.testing.assert_allclose(np.concatenate(blocks), extract(backbone, images, batch_size=5), rtol=1e-4, atol=1e-5)


def test_extraction_leaves_weights_and_statistics_as_they_are(backbone, images):
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
    """A generator that is asked for one block has not touched what follows."""
    read = []

    class Recorder(np.ndarray):
        def __getitem__(self, key):
            if isinstance(key, slice):
                read.append((key.start, key.stop))
            return super().__getitem__(key)

    blocks = extract_features(backbone, images.view(Recorder), batch_size=4)
    assert read == []
    next(blocks)
    assert read == [(0, 4)]


def test_no_images_are_no_blocks(backbone):
    assert list(extract_features(backbone, np.zeros((0, 64, 32, 3), np.uint8))) == []


def test_bfloat16_is_close_and_returned_as_float32(backbone, images):
    rough, exact = extract(backbone, images[:3], bf16=True), extract(backbone, images[:3])
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    cosine = (rough * exact).sum(1) / np.linalg.norm(rough, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
@pytest.mark.fault("NaN and infinity in features that are extracted", "`features of images ... are not finite`")
def test_damaged_weights_are_named_with_the_images(backbone, images, damage):
    with torch.no_grad():
        next(backbone.parameters()).fill_(damage)
    with pytest.raises(NotFiniteError, match="images 0 to 3 are not finite"):
        extract(backbone, images, batch_size=4)
