"""Networks that people have: transformers of timm at 256 x 128, OSNet and IBN ResNets, and their checkpoints."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from pul_core.errors import DataError, UserError
from pul_core.learning.backbone import architecture, build_backbone, check_backbone
from pul_core.learning.camera_statistics import batch_norm_layers
from pul_core.learning.extraction import extract_features
from pul_core.learning.foreign_weights import load_foreign_state, recognise_backbone, shape_of
from pul_core.learning.ibn_resnet import IBN, IBN_RESNETS
from pul_core.learning.osnet import OSNETS
from pul_core.learning.training import begin_training, train
from pul_core.settings import Model, Training
from tasks.models import check_weights, describe_model, import_model
from tasks.preflight import checked_plan
from tasks.store.config import resolve_plan
from tasks.store.model_file import read_model

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
TALL = (256, 128)
TRANSFORMERS = [
    "vit_tiny_patch16_224",
    "vit_base_patch16_clip_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "vit_small_patch14_dinov2",
    "beit_base_patch16_224",
    "xcit_nano_12_p16_224",
]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_accept_the_size_of_people(name):
    size = (252, 126) if "patch14" in name else TALL
    check_backbone(name, size)
    check_backbone(name, size, neck=True)
    with pytest.raises(UserError, match=r"of 250 x 125 pixels.*: choose "):
        check_backbone(name, (250, 125))


def test_every_kind_of_network_has_one_size_of_its_name_and_all_sizes_that_it_can():
    """Convolutional networks get no size; a transformer without one has that of its name."""
    assert build_backbone("resnet10t", size=TALL).state_dict().keys() == build_backbone("resnet10t").state_dict().keys()
    shapes = [shape_of("vit_tiny_patch16_224", size=size).pos_embed.shape for size in (None, (224, 224), TALL)]
    assert [tuple(shape) for shape in shapes] == [(1, 197, 192), (1, 197, 192), (1, 129, 192)]


def test_the_feature_of_a_vit_is_its_class_token_and_that_of_a_swin_the_average():
    with torch.no_grad():
        vit, swin = (build_backbone(name, size=TALL, seed=1).eval() for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"))
        images = random(2, 3, *TALL)
        tokens, feature_map = vit.forward_features(images), swin.forward_features(images)
        assert tokens.shape == (2, 129, 192) and feature_map.shape == (2, 8, 4, 768)
        torch.testing.assert_close(vit(images), tokens[:, 0])
        torch.testing.assert_close(swin(images), feature_map.mean((1, 2)))


def test_a_vit_is_trained_and_extracted():
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 32, 3), np.uint8)
    settings = Training(epochs=1, batch_size=6)
    backbone = build_backbone("vit_tiny_patch16_224", size=(64, 32), seed=0)
    before = backbone.pos_embed.detach().clone()
    list(train(begin_training(backbone, settings, num_classes=3, seed=0), images, np.arange(6), np.arange(6) % 3, settings, seed=0))
    assert not torch.equal(backbone.pos_embed, before)
    assert next(extract_features(backbone, images, flip=True)).shape == (6, 192)


def test_without_batch_norm_there_are_no_statistics_by_camera_unless_there_is_a_neck():
    plan = {"target": "x", "model": {"backbone": "vit_tiny_patch16_224", "weights": "random"}, "statistics": {"by_camera": True}}
    with pytest.raises(UserError, match=r"VisionTransformer has no BatchNorm layer.*statistics.by_camera=false"):
        checked_plan(plan)
    plan["model"]["neck"] = True
    checked_plan(plan)
    assert list(batch_norm_layers(shape_of(**architecture(resolve_plan(plan).model)))) == ["bn_neck"]


def test_the_position_embedding_of_a_vit_for_squares_is_interpolated(home, tmp_path):
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=9)
    torch.nn.init.normal_(plain.pos_embed)
    state = plain.state_dict()
    backbone = build_backbone("vit_tiny_patch16_224", size=TALL, seed=3)
    assert load_foreign_state(backbone, {f"module.{name}": tensor for name, tensor in state.items()}).left_out == ["head"]
    grid = state["pos_embed"][:, 1:].reshape(1, 14, 14, 192).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(16, 8), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(backbone.pos_embed, torch.cat((state["pos_embed"][:, :1], grid), 1))
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items() if name != "pos_embed")
    torch.save(state, tmp_path / "vit.pth")
    read, config = read_model(import_model.fn(str(tmp_path / "vit.pth"), backbone="vit_tiny_patch16_224", height=256, width=128))
    assert (config.height, config.width) == TALL and torch.equal(read.pos_embed, backbone.pos_embed)
    not_square = dict(state) | {"pos_embed": state["pos_embed"][:, :-1]}
    with pytest.raises(DataError, match=r"tensor pos_embed has shape \(1, 196, 192\) in the file and \(1, 129, 192\) in the backbone"):
        load_foreign_state(backbone, not_square)


def test_swin_checkpoints_load_at_other_sizes_and_own_ones_as_they_are():
    """The window of the last stage has 8 x 4 positions instead of 7 x 7."""
    state = build_backbone("swin_tiny_patch4_window7_224", seed=1).state_dict()
    rows, columns = torch.meshgrid(torch.arange(-6.0, 7), torch.arange(-6.0, 7), indexing="ij")  # differences of positions
    state["layers.3.blocks.0.attn.relative_position_bias_table"][:, :2] = torch.stack((rows, columns), -1).reshape(169, 2)
    tables = {"layers.0.blocks.0.attn.relative_position_index": torch.ones(49, 49), "layers.0.blocks.1.attn_mask": torch.ones(64, 49, 49)}
    backbone = build_backbone("swin_tiny_patch4_window7_224", size=TALL, initialise=False)
    load_foreign_state(backbone, state | tables)
    loaded = backbone.state_dict()
    differing = {name for name, tensor in loaded.items() if tensor.shape != state[name].shape}
    assert differing == {f"layers.3.blocks.{block}.attn.relative_position_bias_table" for block in (0, 1)}
    table = loaded["layers.3.blocks.0.attn.relative_position_bias_table"].reshape(13, 7, 24)
    expected = torch.meshgrid(torch.arange(-6.0, 7), torch.arange(-3.0, 4), indexing="ij")
    torch.testing.assert_close(table[:, :, :2], torch.stack(expected, -1), atol=0.2, rtol=0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items() if name not in differing)
    again = build_backbone("swin_tiny_patch4_window7_224", size=TALL, initialise=False)
    load_foreign_state(again, loaded)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    "name",
    ["resnet50_ibn_a", "resnet18_ibn_a", "osnet_x1_0", "osnet_x0_25", "osnet_ibn_x1_0", "osnet_ain_x1_0", "vit_base_patch16_clip_224"],
)
def test_checkpoints_of_these_networks_are_recognised(home, tmp_path, name):
    state = {f"module.{key}": tensor for key, tensor in shape_of(name).state_dict().items()}
    assert recognise_backbone(state) == name


def test_an_ibn_layer_normalises_half_of_the_channels_for_each_image():
    layer, x = IBN(6).train(), random(5, 6, 4, 3)
    expected = torch.cat((nn.functional.instance_norm(x[:, :3]), nn.functional.batch_norm(x[:, 3:], None, None, training=True)), 1)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        assert torch.equal(layer(x)[:2, :3], layer(x[:2])[:, :3]) and not torch.allclose(layer(x)[:2, 3:], layer(x[:2])[:, 3:])


def test_an_ibn_resnet_has_the_published_names_and_the_switches_of_a_resnet():
    plain, ibn = shape_of("resnet50").state_dict(), shape_of("resnet50_ibn_a").state_dict()
    first = {name for name in plain if ".bn1." in name and not name.startswith("layer4")}
    assert set(plain) - set(ibn) == first
    published = {"layer1.0.bn1.IN.weight", "layer1.0.bn1.IN.bias", "layer1.0.bn1.BN.running_var", "layer3.5.bn1.BN.weight"}
    assert published <= set(ibn) and all(".bn1.IN." in name or ".bn1.BN." in name for name in set(ibn) - set(plain))
    check_backbone("resnet50_ibn_a", TALL, pool="gem", last_stride=1, neck=True)
    with torch.device("meta"):
        fine = build_backbone("resnet50_ibn_a", last_stride=1).forward_features(torch.zeros(2, 3, *TALL))
    assert fine.shape == (2, 2048, 16, 8)


@pytest.mark.parametrize("name", ["osnet_x1_0", "osnet_x0_25", "osnet_ibn_x1_0", "osnet_ain_x0_25"])
def test_osnet_has_one_feature_of_512_numbers_and_gem(name):
    check_backbone(name, TALL, pool="gem", neck=True)
    with pytest.raises(UserError, match=f"last_stride=1 is not defined for backbone {name}"):
        check_backbone(name, TALL, last_stride=1)


def test_random_weights_of_these_networks_follow_from_the_seed_and_have_no_imagenet_weights():
    for name in ("osnet_x0_25", "resnet18_ibn_a"):
        first, again, other = (build_backbone(name, seed=seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
        assert not all(torch.equal(tensor, other[key]) for key, tensor in first.items())
        with pytest.raises(DataError, match=f"no ImageNet weights of {name}"):
            check_weights("imagenet", name)
    with pytest.raises(UserError, match=r"there is no backbone 'osnet_x2_0': choose another, e.g. osnet_x1_0"):
        build_backbone("osnet_x2_0")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="torchreid is not installed: make peers")
def test_torchreids_networks_have_the_same_features(home, tmp_path):
    """Every OSNet and the IBN ResNets that torchreid has: its tensors load without a rest, and features agree, also with a neck."""
    names = [*OSNETS, "resnet50_ibn_a"]
    script = [PYTHON, ROOT / "tests" / "peers_networks.py", tmp_path, *names]
    done = subprocess.run(script, check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    for name, neck in [*((name, False) for name in names), ("osnet_x0_25", True)]:
        saved, file = torch.load(tmp_path / f"{name}.pt"), tmp_path / "checkpoint.pth"
        torch.save({"state_dict": saved["state_dict"], "epoch": 3}, file)
        assert describe_model(str(file)).backbone == name, "recognised by its tensors"
        default = Model(height=64, width=32, neck=neck)
        backbone, config = read_model(import_model.fn(str(file), default=default))
        assert (config.backbone, config.height, config.neck) == (name, 64, neck)
        with torch.no_grad():
            torch.testing.assert_close(backbone.eval()(saved["images"]), saved["features"], atol=1e-3, rtol=1e-3)
        loaded = load_foreign_state(build_backbone(name, initialise=False), saved["state_dict"])
        assert loaded.left_out == ["classifier"] and loaded.num_tensors == len(saved["state_dict"]) - 2


def test_every_name_is_documented():
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in [*OSNETS, *IBN_RESNETS])
