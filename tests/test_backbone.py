"""The backbone: normalisation of images, names of tensors, and its features."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms.functional import normalize

from pul_core.learning.backbone import IMAGENET_MEAN, IMAGENET_STD, build_backbone, normalise
from pul_core.learning.foreign_weights import load_foreign_state


@pytest.fixture
def backbone():
    return build_backbone("resnet10t", seed=1)


def same_tensors(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_normalise_equals_torchvision():
    images = torch.randint(0, 256, (3, 3, 9, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = normalize(images.double() / 255, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(normalise(images).double(), expected, atol=1e-6, rtol=1e-6)


def test_normalise_keeps_the_memory_format_and_the_input():
    images = torch.randint(0, 256, (2, 3, 8, 4), dtype=torch.uint8)
    copy = images.clone()
    assert normalise(images.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert normalise(images).is_contiguous()
    assert torch.equal(images, copy)


def test_resnet50_has_the_tensors_and_shapes_of_torchvision():
    ours = {name: tuple(tensor.shape) for name, tensor in build_backbone("resnet50").state_dict().items()}
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in torchvision.models.resnet50().state_dict().items()}
    assert ours == {name: shape for name, shape in theirs.items() if not name.startswith("fc.")}


def test_resnet50_computes_the_features_of_torchvision():
    ours, theirs = build_backbone("resnet50").eval(), torchvision.models.resnet50().eval()
    theirs.fc = nn.Identity()
    load_foreign_state(ours, theirs.state_dict())
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-3)


def test_the_feature_is_the_average_of_the_last_feature_map(backbone):
    backbone.eval()
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, feature_map = backbone(images), backbone.forward_features(images)
    assert feature_map.shape[2] * feature_map.shape[3] > 1
    assert features.shape == (2, backbone.num_features)
    torch.testing.assert_close(features, feature_map.mean((2, 3)))


def test_random_weights_follow_from_the_seed():
    first, again, other = (build_backbone("resnet10t", seed=seed).state_dict() for seed in (4, 4, 5))
    assert same_tensors(first, again)
    assert not same_tensors(first, other)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_100", "efficientnet_b0", "resnetblur18", "convnext_atto"])
def test_a_backbone_that_is_built_without_initialisation_equals_the_one_whose_weights_it_loads(name):
    """Buffers that are not in the state dict, as the filters of resnetblur18, are equal, too; no random number is drawn."""
    trained = build_backbone(name, seed=3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    loaded = build_backbone(name, initialise=False)
    assert torch.equal(torch.get_rng_state(), state)
    loaded.load_state_dict(trained.state_dict())
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(loaded, kind)()), dict(getattr(trained, kind)())
        assert same_tensors(ours, theirs)
        assert [tensor.stride() for tensor in ours.values()] == [tensor.stride() for tensor in theirs.values()]


def test_a_backbone_is_channels_last(backbone):
    weight = next(parameter for parameter in backbone.parameters() if parameter.ndim == 4 and parameter.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["resnet5O", "resnet500"])
def test_the_error_for_a_misspelt_name_suggests_the_right_one(name):
    with pytest.raises(ValueError, match=name) as error:
        build_backbone(name)
    suggestions = str(error.value).partition("e.g. ")[2].split(", ")
    assert "resnet50" in suggestions


def test_the_error_for_an_unknown_name_suggests_common_ones():
    with pytest.raises(ValueError, match=r"'qqqqqqq'.*resnet50, mobilenetv2_100"):
        build_backbone("qqqqqqq")


def test_a_backbone_with_layers_after_its_pooling_is_refused():
    with pytest.raises(ValueError, match="mobilenetv3_small_050 has layers between its pooling and its classifier"):
        build_backbone("mobilenetv3_small_050")
