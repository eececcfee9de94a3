"""The trunk: how images are normalised, what names its tensors have, whose weights fit."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms.functional import normalize

from pul_core.learning.backbone import IMAGENET_MEAN, IMAGENET_STD, PREFIXES, build_backbone, load_foreign_state, normalise


@pytest.fixture(scope="module")
def foreign():
    """The state dict of a trunk with other weights than a new one has."""
    return build_backbone("resnet10t", seed=9).state_dict()


@pytest.fixture
def backbone():
    return build_backbone("resnet10t", seed=1)


def same_tensors(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_normalise_equals_torchvisions():
    images = torch.randint(0, 256, (3, 3, 9, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = normalize(images.double() / 255, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(normalise(images).double(), expected, atol=1e-6, rtol=1e-6)


def test_normalise_keeps_the_memory_format_and_the_input():
    images = torch.randint(0, 256, (2, 3, 8, 4), dtype=torch.uint8)
    copy = images.clone()
    assert normalise(images.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert normalise(images).is_contiguous()
    assert normalise(images, torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(images, copy)


def test_resnet50_has_torchvisions_tensors_and_shapes():
    own = {name: tuple(tensor.shape) for name, tensor in build_backbone("resnet50").state_dict().items()}
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in torchvision.models.resnet50().state_dict().items()}
    assert own == {name: shape for name, shape in theirs.items() if not name.startswith("fc.")}


def test_resnet50_computes_torchvisions_features():
    own, theirs = build_backbone("resnet50").eval(), torchvision.models.resnet50().eval()
    theirs.fc = nn.Identity()
    load_foreign_state(own, theirs.state_dict())
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(own(images), theirs(images), atol=1e-4, rtol=1e-3)


def test_the_feature_is_the_average_of_the_last_feature_map(backbone):
    backbone.eval()
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, feature_map = backbone(images), backbone.forward_features(images)
    assert feature_map.shape[2] * feature_map.shape[3] > 1
    assert features.shape == (2, backbone.num_features)
    torch.testing.assert_close(features, feature_map.mean((2, 3)))


def test_a_trunk_follows_from_its_seed():
    first, again, other = (build_backbone("resnet10t", seed=seed).state_dict() for seed in (4, 4, 5))
    assert same_tensors(first, again)
    assert not same_tensors(first, other)


def test_a_trunk_is_channels_last(backbone):
    weight = next(parameter for parameter in backbone.parameters() if parameter.ndim == 4 and parameter.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["resnet5O", "resnet500"])
def test_a_misspelt_name_is_answered_by_the_one_that_was_meant(name):
    with pytest.raises(ValueError, match=name) as error:
        build_backbone(name)
    suggested = str(error.value).removeprefix(f"no backbone is called {name!r}").replace(";", ",").replace(" ", ",").split(",")
    assert "resnet50" in suggested


def test_an_unheard_of_name_is_answered_by_names_that_work():
    with pytest.raises(ValueError, match=r"'qqqqqqq'.*resnet50, mobilenetv2_100"):
        build_backbone("qqqqqqq")


def test_a_trunk_with_layers_behind_its_pool_is_refused():
    with pytest.raises(ValueError, match="mobilenetv3_small_050 puts layers between its pool and its classifier"):
        build_backbone("mobilenetv3_small_050")


@pytest.mark.parametrize("prefix", ["", *PREFIXES, "module.model.backbone.", "backbone.module.", "model.model."])
def test_a_foreign_state_fits_whatever_stands_before_its_names(backbone, foreign, prefix):
    taken = load_foreign_state(backbone, {prefix + name: tensor for name, tensor in foreign.items()})
    assert same_tensors(backbone.state_dict(), foreign)
    assert taken == len(foreign)


def test_a_classifier_is_left_out(backbone, foreign):
    classifier = {"fc.weight": torch.ones(5, 512), "fc.bias": torch.ones(5), "module.classifier.weight": torch.ones(7, 512)}
    taken = load_foreign_state(backbone, foreign | classifier)
    assert same_tensors(backbone.state_dict(), foreign)
    assert taken == len(foreign)


def test_counters_of_batches_may_be_missing(backbone, foreign):
    """Files older than PyTorch 0.4 have none."""
    old = {name: tensor for name, tensor in foreign.items() if not name.endswith("num_batches_tracked")}
    taken = load_foreign_state(backbone, old)
    assert taken == len(old)
    assert all(torch.equal(backbone.state_dict()[name], tensor) for name, tensor in old.items())


def damaged(foreign, how):
    name = next(name for name in foreign if name.startswith("layer2") and name.endswith("weight"))
    if how == "missing":
        return {key: tensor for key, tensor in foreign.items() if key != name}, name
    return foreign | {name: foreign[name][:-1]}, name


@pytest.mark.parametrize("how", ["missing", "another shape"])
def test_a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing(backbone, foreign, how):
    state, name = damaged(foreign, how)
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=name) as error:
        load_foreign_state(backbone, state)
    assert "another architecture" in str(error.value)
    assert same_tensors(backbone.state_dict(), before)


def test_another_architecture_is_refused(backbone):
    with torch.device("meta"):
        other = torchvision.models.resnet18().state_dict()
    with pytest.raises(ValueError, match="missing"):
        load_foreign_state(backbone, other)


def test_a_foreign_state_is_copied(backbone, foreign):
    name, kept = next(iter((name, tensor.clone()) for name, tensor in foreign.items()))
    load_foreign_state(backbone, foreign)
    with torch.no_grad():
        backbone.state_dict()[name].add_(1)
    assert torch.equal(foreign[name], kept)
