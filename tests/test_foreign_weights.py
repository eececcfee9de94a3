"""Weights of other projects. The checkpoints are built here, with the names and shapes of those that the named projects write."""

import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.errors import DataError
from pul_core.learning.backbone import build_backbone
from pul_core.learning.foreign_weights import WRAPPERS, load_foreign_state, recognise_backbone
from tasks.store.weights_file import _nested_tensors

STATE, UNTRAINED = build_backbone("resnet18", seed=9).state_dict(), build_backbone("resnet18", seed=1)
CLASSIFIER = {"classifier.weight": torch.ones(5, 512)}
NECK = {"feat_bn.weight": torch.ones(512), "feat_bn.bias": torch.zeros(512), "feat_bn.num_batches_tracked": torch.tensor(3)}


def prefixed(prefix, state=STATE):
    return {prefix + name: tensor for name, tensor in state.items()}


def numbered(*indices, state=STATE):
    places = dict(zip(("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), indices, strict=True))
    return {f"{places[name.split('.')[0]]}.{name.split('.', 1)[1]}": tensor for name, tensor in state.items()}


def other(seed=2):
    return build_backbone("resnet18", seed=seed).state_dict()


FORMS = {
    "torchvision": (STATE | {"fc.weight": torch.ones(5, 512), "fc.bias": torch.ones(5)}, ["fc"]),
    "torchreid": ({"state_dict": prefixed("module.", STATE | CLASSIFIER), "epoch": 3, "rank1": 0.5}, ["classifier"]),
    "fast-reid": (
        {"model": prefixed("backbone.") | {"pixel_mean": torch.ones(1, 3, 1, 1), "heads.bottleneck.0.weight": torch.ones(512)}},
        ["pixel_mean", "heads"],
    ),
    "SpCL": (
        {"state_dict": prefixed("module.", prefixed("base.", numbered(0, 1, 4, 5, 6, 7)) | NECK | CLASSIFIER)},
        ["feat_bn", "classifier"],
    ),
    "Cluster Contrast, GeM": ({"state_dict": prefixed("base.", numbered(0, 1, 4, 5, 6, 7)) | {"gap.p": torch.ones(1)}}, ["gap"]),
    "MMT": ({"state_dict": prefixed("module.base.", numbered(0, 1, 3, 4, 5, 6)) | prefixed("module.", NECK)}, ["feat_bn"]),
    "OpenUnReID": ({"state_dicts": [prefixed("module.backbone.") | {"module.bn_neck.weight": torch.ones(512)}]}, ["bn_neck"]),
    "Lightning": (
        {
            "state_dict": prefixed("model.net."),
            "hyper_parameters": {"lr": 0.1},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        },
        ["optimizer_states"],
    ),
    "compiled": (prefixed("_orig_mod.module.encoder._orig_mod."), []),
    "compiled layers": ({name.replace("layer1.", "layer1._orig_mod."): tensor for name, tensor in STATE.items()}, []),
    "timm": ({"arch": "resnet18", "state_dict": STATE, "state_dict_ema": STATE, "version": 2}, ["state_dict_ema"]),
    "without counters": ({name: tensor for name, tensor in STATE.items() if not name.endswith("num_batches_tracked")}, []),
    "float64": ({name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in STATE.items()}, []),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_trunk_is_loaded_whatever_is_around_it(form):
    checkpoint, _ = FORMS[form]
    backbone = copy.deepcopy(UNTRAINED)
    loaded = load_foreign_state(backbone, dict(_nested_tensors(checkpoint)))
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in backbone.state_dict().items() if "num_batches" not in name)
    left_out = [] if form == "timm" else FORMS[form][1]
    assert form == "timm" or loaded.left_out == left_out
    assert bool(loaded.notes) == (form in ("MMT", "timm"))


PARTS = st.lists(st.sampled_from([*WRAPPERS, "model", "backbone", "net", "student", "a-b", "0", "base"]), max_size=4)


@settings(deadline=None, max_examples=25)
@given(PARTS, st.booleans(), st.randoms(use_true_random=False))
def test_any_prefix_and_any_order_of_the_tensors(parts, is_numbered, random):
    state = numbered(0, 1, 4, 5, 6, 7) if is_numbered else STATE
    items = list(prefixed("".join(f"{part}." for part in parts), state).items())
    random.shuffle(items)
    backbone = copy.deepcopy(UNTRAINED)
    load_foreign_state(backbone, dict(items) | CLASSIFIER)
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in backbone.state_dict().items())


def test_half_precision_weights_are_converted():
    backbone = copy.deepcopy(UNTRAINED)
    load_foreign_state(backbone, {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in STATE.items()})
    assert torch.equal(backbone.conv1.weight, STATE["conv1.weight"].half().float())


@pytest.mark.parametrize("averaged", ["model_ema", "ema", "teacher", "state_dict_ema", "model1_ema.module", "mean_net"])
def test_of_two_models_the_averaged_one_is_used_and_named(averaged):
    backbone = copy.deepcopy(UNTRAINED)
    loaded = load_foreign_state(backbone, prefixed("model.", other()) | prefixed(f"{averaged}."))
    assert torch.equal(backbone.conv1.weight, STATE["conv1.weight"])
    assert "2 models in the file fit" in loaded.notes[0] and "not model" in loaded.notes[0]


def test_torchvisions_mobilenet_is_recognised_by_the_order_of_its_layers():
    theirs = torchvision.models.mobilenet_v2()
    with torch.no_grad():
        theirs.eval()
        images = torch.randn(1, 3, 64, 32, generator=torch.Generator().manual_seed(0))
        expected = theirs.features(images).mean((2, 3))
    for state in (theirs.state_dict(), dict(sorted(theirs.state_dict().items()))):
        assert recognise_backbone(state) == "mobilenetv2_100"
        ours = build_backbone("mobilenetv2_100").eval()
        assert load_foreign_state(ours, state).left_out == ["classifier"]
        with torch.no_grad():
            torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "mobilenetv2_100", "seresnet50"])
def test_common_backbones_are_recognised(name):
    with torch.device("meta"):
        state = build_backbone(name).state_dict()
    assert recognise_backbone(prefixed("module.", state)) == name


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (STATE, ["they look like resnet18, choose that backbone"]),
        ({"blocks.0.attn.qkv.weight": torch.ones(1)}, ["tensors are missing", "a transformer of timm, whose name has to be stated"]),
        ({"visual.transformer.resblocks.0.ln_1.weight": torch.ones(1)}, ["a CLIP model with the tensor names of OpenAI"]),
        ({"conv2.0.conv2a.conv1.weight": torch.ones(1)}, ["an OSNet or IBN network of another kind"]),
        ({"optimizer.state.0.exp_avg": torch.ones(1)}, ["an optimiser without its model"]),
        ({"x": torch.ones(1)}, ["choose the backbone they belong to"]),
    ],
)
def test_other_architectures_are_refused_and_named(state, words):
    with pytest.raises(DataError) as error:
        load_foreign_state(build_backbone("resnet50", initialise=False), state)
    assert all(word in str(error.value) for word in [*words, "another architecture"])


def test_layers_inside_the_trunk_that_the_backbone_lacks_are_refused():
    squeezed = STATE | {"layer1.0.se.fc1.weight": torch.ones(4, 64, 1, 1)}
    half = "layer1.0.bn1."  # IBN-a: the other half of the channels is normalised per image
    ibn = {name.replace(half, f"{half}BN."): tensor[:32] if half in name and tensor.ndim else tensor for name, tensor in STATE.items()}
    for state, words in (
        (squeezed, ["layers that the backbone lacks, e.g. layer1.0.se.fc1.weight"]),
        (
            ibn | {"layer1.0.bn1.IN.weight": torch.ones(32)},
            ["missing, e.g. layer1.0.bn1.weight", "an OSNet or IBN network of another kind"],
        ),
        (STATE | {"layer2.0.conv1.weight": torch.ones(1)}, ["layer2.0.conv1.weight has shape (1,)"]),
        (STATE | {"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}, ["not finite"]),
        (STATE | {"conv1.weight": torch.ones((64, 3, 7, 7), dtype=torch.int8)}, ["has the type torch.int8"]),
    ):
        backbone = copy.deepcopy(UNTRAINED)
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        with pytest.raises(DataError) as error:
            load_foreign_state(backbone, state)
        assert all(word in str(error.value) for word in words), str(error.value)
        assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items()), "nothing changes"
