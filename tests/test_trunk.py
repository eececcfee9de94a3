"""The switches of the trunk: GeM pooling, last stride 1, the neck, and mirror images at extraction; each alone and through the steps."""

import copy
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pul_core.errors import DataError, UserError
from pul_core.learning.backbone import GeM, architecture, build_backbone, check_backbone, normalise
from pul_core.learning.camera_statistics import batch_norm_layers, estimate_statistics
from pul_core.learning.extraction import extract_features
from pul_core.learning.foreign_weights import load_foreign_state
from pul_core.learning.training import begin_training, train
from pul_core.settings import Augmentation, Memory, Model, Statistics, Training
from tasks.extract import extract_features as extract_step
from tasks.models import complete_plan, describe_model, import_model, initial_model, with_flip
from tasks.preflight import check_plan
from tasks.store.artifacts import column, locate, read_bytes, read_table
from tasks.store.config import parameters_of, resolve_plan
from tasks.store.model_file import ModelConfig, read_model, read_model_config, write_model
from tasks.store.readers import open_pixels
from tasks.tracking.reid_model import ReIDModel

TRUNK = Model(backbone="test_resnet", weights="random", height=64, width=32, pool="gem", last_stride=1, neck=True)
TRAINING = Training(epochs=1, batch_size=4, augmentation=Augmentation(erase_probability=0))
CLASSES = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 64, 32, 3), np.uint8)


@pytest.fixture
def backbone():
    """A backbone with a neck, after one forward pass in training mode, so that its BatchNorm statistics are not the initial ones."""
    backbone = build_backbone(**architecture(TRUNK), seed=1).train()
    with torch.no_grad():
        backbone(random(8, 3, 64, 32))
        backbone.bn_neck.weight.copy_(torch.linspace(0.5, 2, backbone.num_features))
    return backbone


def extract(backbone, images, **options):
    return np.concatenate(list(extract_features(backbone, images, **options)))


def without_neck(backbone):
    plain = copy.deepcopy(backbone)
    plain.bn_neck = nn.Identity()
    return plain


def test_gem_is_the_average_at_1_approaches_the_maximum_and_equals_the_formula():
    feature_map = random(4, 6, 5, 3).abs()
    torch.testing.assert_close(GeM(1)(feature_map), feature_map.mean((2, 3), keepdim=True))
    maximum = feature_map.amax((2, 3), keepdim=True)
    assert (GeM(60)(feature_map) / maximum - 1).abs().max() < 0.05
    assert (GeM(3)(feature_map) < 0.95 * maximum).all()
    expected = np.mean(feature_map.double().numpy() ** 2.5, axis=(2, 3), keepdims=True) ** (1 / 2.5)
    np.testing.assert_allclose(GeM(2.5)(feature_map).detach(), expected, rtol=1e-5)


def test_gem_grows_with_its_exponent_and_learns_it():
    pools = [GeM(exponent)(random(2, 3, 4, 2).abs()) for exponent in (1, 2, 3, 5)]
    assert all((low < high).all() for low, high in pairwise(pools))
    pool = GeM()
    pool(random(2, 3, 4, 2)).sum().backward()  # with values below 0
    assert pool.exponent.item() == 3 and pool.exponent.grad.isfinite() and pool.exponent.grad != 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gem_does_not_overflow_under_autocast(dtype):
    large = torch.full((1, 1, 2, 2), 100.0, dtype=dtype)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(GeM()(large), torch.full((1, 1, 1, 1), 100.0))


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_100", "convnext_atto"])
def test_a_backbone_pools_by_gem(name):
    gem, plain = build_backbone(name, pool="gem", seed=2).eval(), build_backbone(name, seed=2).eval()
    assert set(gem.state_dict()) - set(plain.state_dict()) == {next(key for key in gem.state_dict() if key.endswith("pool.pool.exponent"))}
    images = random(2, 3, 64, 32)
    with torch.no_grad():
        pooled = GeM()(plain.forward_features(images))
        difference = gem(images) - plain(images)
        if name != "convnext_atto":  # which normalises after the pooling
            torch.testing.assert_close(gem(images), pooled.flatten(1))
            assert (difference > -1e-5).all(), "the maps are not negative, so GeM is at least their average"
        assert difference.abs().max() > 1e-3


NETWORKS = ["resnet50", "resnet18", "resnet10t", "resnet50d", "seresnet50", "resnext50_32x4d", "mobilenetv2_100", "mobilenetv4_conv_small"]


@pytest.mark.parametrize("name", [*NETWORKS[:-1], "efficientnet_b0", "tf_efficientnet_b0", "efficientnetv2_rw_t"])
def test_last_stride_1_doubles_the_feature_map_and_keeps_all_tensors(name):
    with torch.device("meta"), torch.no_grad():
        plain, fine = (build_backbone(name, last_stride=stride).eval() for stride in (2, 1))
        sizes = [backbone.forward_features(torch.zeros(2, 3, 128, 64)).shape for backbone in (plain, fine)]
    assert sizes[0][2:] == (4, 2) and sizes[1][2:] == (8, 4) and sizes[0][:2] == sizes[1][:2]
    assert {key: tensor.shape for key, tensor in plain.state_dict().items()} == {key: t.shape for key, t in fine.state_dict().items()}


def test_with_last_stride_1_every_second_position_is_that_of_stride_2():
    """A single strided block: its output with stride 1, read at every second position, is its output with stride 2."""
    plain, fine = (build_backbone("resnet18", last_stride=stride, seed=3).eval() for stride in (2, 1))
    inputs = random(2, 256, 8, 4)
    with torch.no_grad():
        coarse, dense = (backbone.layer4[0](inputs) for backbone in (plain, fine))
        conv_coarse, conv_dense = (backbone.layer4[0].conv1(inputs) for backbone in (plain, fine))
    torch.testing.assert_close(conv_dense[:, :, ::2, ::2], conv_coarse)
    assert dense.shape[2:] == (8, 4) and coarse.shape[2:] == (4, 2)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "densenet121", "convnext_atto", "resnetblur18"])
def test_networks_without_a_last_stride_are_refused(name):
    with pytest.raises(UserError, match=f"last_stride=1 is not defined for backbone {name}: set model.last_stride=2, or choose"):
        check_backbone(name, (224, 224), last_stride=1)


def test_networks_without_a_feature_map_have_no_gem():
    with pytest.raises(UserError, match=r"vit_tiny_patch16_224 does not end in average pooling of a feature map: set model.pool=average"):
        check_backbone("vit_tiny_patch16_224", (224, 224), pool="gem")


def test_the_neck_is_batch_norm_of_the_features(backbone):
    images = random(6, 3, 64, 32, seed=1)
    plain, neck = without_neck(backbone).eval(), copy.deepcopy(backbone.bn_neck)
    with torch.no_grad():
        features = plain(images)
        expected = (features - neck.running_mean) / (neck.running_var + neck.eps).sqrt() * neck.weight
        torch.testing.assert_close(backbone.eval()(images), expected)
        features = without_neck(backbone).train()(images)
        expected = (features - features.mean(0)) / (features.var(0, unbiased=False) + neck.eps).sqrt() * neck.weight
        torch.testing.assert_close(backbone.train()(images), expected, atol=1e-4, rtol=1e-4)


def test_an_untrained_neck_changes_nothing():
    images = random(2, 3, 64, 32)
    plain, necked = (build_backbone("test_resnet", neck=neck, seed=4).eval() for neck in (False, True))
    torch.testing.assert_close(necked(images), plain(images), rtol=1e-4, atol=1e-4)


def test_training_with_a_neck_has_one_batch_norm_and_no_bias(images, backbone):
    training = begin_training(backbone, TRAINING, num_classes=3, seed=0)
    assert isinstance(training.classifier[0], nn.Identity)
    assert isinstance(begin_training(build_backbone("test_resnet"), TRAINING, num_classes=3, seed=0).classifier[0], nn.BatchNorm1d)
    before = copy.deepcopy(backbone.state_dict())
    list(train(training, images, np.arange(12), CLASSES, TRAINING, seed=0))
    changed = {name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"bn_neck.weight", "bn_neck.running_mean", "bn_neck.running_var", "global_pool.pool.exponent"} <= changed
    assert not backbone.bn_neck.bias.any()


def test_training_with_a_neck_equals_training_with_the_batch_norm_of_the_classifier(images):
    """The same layer in another place: equal losses, but for its bias, whose gradient is zero in the first step."""
    settings = replace(TRAINING, batch_size=12, label_smoothing=0)
    losses = []
    for neck in (False, True):
        training = begin_training(build_backbone("test_resnet", neck=neck, seed=5), settings, num_classes=3, seed=0)
        losses.append(next(train(training, images, np.arange(12), CLASSES, settings, seed=0)).loss)
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_memory_is_initialised_with_what_the_neck_makes_of_all_images(images, backbone):
    settings = replace(TRAINING, memory=Memory(entries="images", momentum=1), batch_size=6)
    training = begin_training(backbone, settings, num_classes=3, classes=CLASSES, seed=0)
    plain, weight = without_neck(backbone), backbone.bn_neck.weight.detach().clone()
    with torch.no_grad():
        pixels = normalise(torch.from_numpy(images).permute(0, 3, 1, 2))
        features = plain.eval()(pixels)
        centred = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-5).sqrt()
    list(train(training, images, np.arange(12), CLASSES, settings, seed=0))
    torch.testing.assert_close(training.classifier[-1].vectors, nn.functional.normalize(centred * weight), atol=2e-3, rtol=0)
    assert len(training.backbone.bn_neck._parameters) == 2, "the backbone keeps its neck"


def test_statistics_by_camera_include_the_neck(images, backbone):
    """The features of a camera equal those of a copy whose layers, the neck among them, took the statistics of the camera's images."""
    assert "bn_neck" in batch_norm_layers(backbone)
    camids = np.repeat([1, 2], 6)
    tinted = images.copy()
    tinted[6:] //= 3
    statistics = estimate_statistics(backbone, tinted, camids, Statistics(by_camera=True, share=1, min_images=4), seed=0)
    assert statistics.means["bn_neck"].shape == (3, 96)
    features = extract(backbone, tinted, statistics=statistics, camids=camids)
    for here in (camids == 1, camids == 2):
        adapted, pixels = copy.deepcopy(backbone).train(), normalise(torch.from_numpy(tinted[here]).permute(0, 3, 1, 2))
        for layer in batch_norm_layers(adapted).values():
            layer.momentum = 1
        with torch.no_grad():
            adapted(pixels)
            expected = adapted.eval()(pixels)
            adapted.bn_neck.load_state_dict(backbone.bn_neck.state_dict())
            with_the_neck_of_the_model = adapted(pixels)
        np.testing.assert_allclose(features[here], expected, atol=1e-2)
        assert (with_the_neck_of_the_model - expected).abs().max() > 0.1


@pytest.mark.parametrize("by_camera", [False, True])
def test_features_of_mirror_images_are_equal_and_the_mean_of_both(images, backbone, by_camera):
    camids = np.repeat([1, 2], 6)
    options = {"camids": camids}
    if by_camera:
        options["statistics"] = estimate_statistics(backbone, images, camids, Statistics(min_images=4), seed=0)
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    features, of_mirrored = (extract(backbone, pixels, flip=True, **options) for pixels in (images, mirrored))
    np.testing.assert_array_equal(features, of_mirrored)
    plain, plain_mirrored = (extract(backbone, pixels, **options) for pixels in (images, mirrored))
    np.testing.assert_allclose(features, (plain + plain_mirrored) / 2, atol=1e-5)
    assert np.abs(plain - plain_mirrored).max() > 0.05


def test_pretrained_and_own_weights_load_with_every_switch(backbone):
    """A checkpoint of the plain network fits; GeM's exponent and the neck are loaded where the checkpoint has them."""
    plain = build_backbone("test_resnet", seed=7)
    loaded = load_foreign_state(other := build_backbone(**architecture(TRUNK), seed=8), plain.state_dict())
    assert loaded.left_out == []
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in plain.state_dict().items())
    assert other.global_pool.pool.exponent.item() == 3 and torch.equal(other.bn_neck.weight, torch.ones(96))
    with torch.no_grad():
        backbone.global_pool.pool.exponent.fill_(4)
    wrapped = {f"module.{name}": tensor for name, tensor in backbone.state_dict().items()}
    loaded = load_foreign_state(other, wrapped)
    assert loaded.left_out == [] and loaded.num_tensors == len(wrapped)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in backbone.state_dict().items())
    assert load_foreign_state(build_backbone("test_resnet"), wrapped).left_out == ["global_pool", "bn_neck"]


def test_a_deep_copy_keeps_the_neck(backbone):
    images = random(2, 3, 64, 32)
    twin = copy.deepcopy(backbone).eval()
    torch.testing.assert_close(twin(images), backbone.eval()(images))
    with torch.no_grad():
        twin.bn_neck.weight.zero_()
    assert not twin(images).any() and backbone(images).any()


def test_the_model_file_states_the_switches_and_old_files_have_the_defaults(home, backbone):
    config = ModelConfig(backbone="test_resnet", height=64, width=32, pool="gem", last_stride=1, neck=True, flip=True)
    written = write_model(backbone, config)
    read, stated = read_model(written)
    assert stated == config == read_model_config(read_bytes(written))
    assert all(torch.equal(tensor, backbone.state_dict()[name]) for name, tensor in read.state_dict().items())
    images = random(2, 3, 64, 32)
    torch.testing.assert_close(read.eval()(images), backbone.eval()(images))
    plain = write_model(build_backbone("test_resnet"), ModelConfig(backbone="test_resnet", height=64, width=32))
    assert b'{\\"backbone\\":\\"test_resnet\\",\\"height\\":64,\\"width\\":32}' in read_bytes(plain)[:40_000], (
        "as before there were switches"
    )


def test_flip_changes_nothing_before_extraction(home, pixels, compute):
    """Source training does not depend on it, so it is added to the config of the trained model."""
    initial, flipped = (initial_model.fn(replace(TRUNK, flip=flip), seed=0) for flip in (False, True))
    assert initial.sha256 == flipped.sha256
    assert (
        len({initial_model.fn(changed, seed=0).sha256 for changed in (TRUNK, replace(TRUNK, neck=False), replace(TRUNK, last_stride=2))})
        == 3
    )
    flipped = with_flip.fn(initial.model_copy(update={"seconds": 80.0}))
    assert flipped.seconds == 80, "the time of source training"
    backbone, config = read_model(flipped)
    assert config == read_model(initial)[1].model_copy(update={"flip": True})
    images = open_pixels(pixels)[1]
    for model, flip in ((initial, False), (flipped, True)):
        expected = extract(backbone, images, flip=flip)
        table = read_table(extract_step.fn(model, pixels, compute=compute, iteration=0, split="train"))
        np.testing.assert_array_equal(column(table, "feature"), expected)
        loaded = ReIDModel()
        loaded.load_context(SimpleNamespace(artifacts={"weights": locate(model)}))
        np.testing.assert_array_equal(loaded.predict(None, {"pixels": list(images)}), expected)


def test_a_run_takes_the_switches_of_its_model(home, tmp_path, backbone):
    own, foreign = tmp_path / "own.safetensors", tmp_path / "foreign.pth"
    own.write_bytes(read_bytes(initial_model.fn(TRUNK, seed=0)))
    torch.save(build_backbone("resnet18").state_dict(), foreign)
    plan = complete_plan(resolve_plan({"target": "x", "original_model": str(own)}))
    assert (plan.model.pool, plan.model.last_stride, plan.model.neck, plan.model.flip) == ("gem", 1, True, False)
    assert complete_plan(resolve_plan(parameters_of(plan))) == plan
    flipped = complete_plan(resolve_plan({"target": "x", "original_model": str(own), "model": {"flip": True}}))
    assert flipped.model == replace(plan.model, flip=True), "it does not belong to the weights"
    assert read_model(import_model.fn(str(own), default=flipped.model))[1].flip
    settings = {"pool": "gem", "last_stride": 1, "neck": True, "flip": True}
    plan = complete_plan(resolve_plan({"target": "x", "original_model": str(foreign), "model": settings}))
    imported, config = read_model(import_model.fn(str(foreign), backbone="resnet18", height=256, width=128, default=plan.model))
    assert {name: getattr(config, name) for name in settings} == settings
    assert {"bn_neck.weight", "global_pool.pool.exponent"} <= set(imported.state_dict())
    with pytest.raises(DataError, match="is a model with pool gem, but pool average was requested"):
        describe_model(str(own), pool="average")


def test_switches_that_a_network_does_not_have_end_a_run_before_it_starts():
    with pytest.raises(UserError, match="last_stride=1 is not defined for backbone densenet121"):
        check_plan(resolve_plan({"target": "x", "model": {"backbone": "densenet121", "weights": "random", "last_stride": 1}}))
