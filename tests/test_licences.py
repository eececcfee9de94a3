"""Licences of models: what is known, what is stated, where it is written, and that no cache key depends on it."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load as load_tensors

from pul_core.learning.backbone import build_backbone
from tasks.engine.steps import step_key
from tasks.models import NOT_USED, import_model, initial_model, licence_of, state_licence
from tasks.store.artifacts import read_bytes
from tasks.store.config import resolve_plan
from tasks.store.licences import Licence, licence_in, with_licence
from tasks.store.model_file import ModelConfig, model_size, read_model, write_model
from tasks.store.weights_file import read_metadata
from tasks.tracking.model_card import card_text
from tasks.training import pretrain

DRAWN = {"source": ["synthetic:0/source"], "target": "synthetic:0/target"}
LICENCE = Licence(weights="MIT", source_data="CC-BY-NC-4.0", target_data='contract "17", äö')


@pytest.fixture
def model(home):
    config = ModelConfig(backbone="test_resnet", height=64, width=32, neck=True)
    return write_model(build_backbone("test_resnet", neck=True, seed=2), config)


def licence(**parameters):
    return licence_of(resolve_plan(DRAWN | parameters))


def test_the_licence_is_in_the_header_and_nothing_else_changes(model, tmp_path):
    licensed = with_licence(model, LICENCE)
    before, after = read_model(model), read_model(licensed)
    assert before[1] == after[1] and model_size(licensed) == {"height": 64, "width": 32}
    tensors, expected = load_tensors(read_bytes(licensed)), load_tensors(read_bytes(model))
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)
    file = tmp_path / "model.safetensors"
    file.write_bytes(read_bytes(licensed))
    metadata = read_metadata(file)
    assert licence_in(metadata) == LICENCE
    assert json.loads(metadata["pul"])["licence"]["weights"] == "MIT"
    assert with_licence(licensed, LICENCE).sha256 == with_licence(model, LICENCE).sha256 == licensed.sha256 != model.sha256


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"backbone": "resnet50"}, "BSD-3-Clause, trained on ImageNet"),
        ({"backbone": "mobilenetv2_100"}, "Apache-2.0, trained on ImageNet"),
        ({"backbone": "swin_tiny_patch4_window7_224"}, "MIT, trained on ImageNet"),
        ({"backbone": "convnextv2_atto.fcmae_ft_in1k"}, "CC-BY-NC-4.0, trained on ImageNet"),
        ({"backbone": "mobilenetv2_100", "weights": "imagenet-packaged"}, "MIT (of the package), trained on ImageNet"),
        ({"weights": "random"}, "none (random weights)"),
        ({"weights": "random", "licence": "mine"}, "mine"),
    ],
)
def test_the_licence_of_known_weights(settings, weights):
    assert licence(model=settings).weights == weights


def test_the_licence_of_data_is_stated_or_unknown():
    assert licence() == licence().model_copy(update={"source_data": "Apache-2.0", "target_data": "Apache-2.0"})
    other = licence(source=["synthetic:0/source", "market"], target="mine")
    assert (other.source_data, other.target_data) == ("unknown", "unknown")
    stated = licence(source=["market"], source_data={"licence": "research only"}, target_data={"licence": "ours"})
    assert (stated.source_data, stated.target_data) == ("research only", "ours")


def test_a_run_inherits_the_licences_of_its_model_and_its_data(model, tmp_path):
    own, foreign = tmp_path / "own.safetensors", tmp_path / "foreign.pth"
    own.write_bytes(read_bytes(with_licence(model, LICENCE)))
    torch.save(build_backbone("test_resnet").state_dict(), foreign)
    inherited = licence_of(resolve_plan({"target": "mine", "original_model": str(own)}))
    assert inherited == Licence(weights="MIT", source_data='CC-BY-NC-4.0; contract "17", äö')
    assert licence_of(resolve_plan({"target": "mine", "original_model": str(foreign)})) == Licence()
    assert licence_of(resolve_plan({"target": "x", "original_model": str(own), "model": {"licence": "GPL-3.0"}})).weights == "GPL-3.0"
    assert licence(model={"weights": str(own)}).weights == "MIT"
    assert licence(model={"weights": str(foreign)}).weights == "unknown"


def test_another_licence_changes_no_cache_key(home, model, tmp_path, compute):
    """The model that steps exchange has no licence, also if it is imported from a file that has one."""
    plan = resolve_plan(DRAWN | {"model": {"backbone": "test_resnet", "weights": "random", "height": 64, "width": 32}})
    other = replace(plan, model=replace(plan.model, licence="other"))
    initial, with_other = (initial_model.fn(each.model, seed=0) for each in (plan, other))
    arguments = {"pixels": [], "labels": [], "cameras": None, "settings": plan.pretraining, "seed": 0, "compute": compute}
    assert step_key(pretrain.fn, arguments | {"initial": initial}) == step_key(pretrain.fn, arguments | {"initial": with_other})
    (tmp_path / "own.safetensors").write_bytes(read_bytes(with_licence(model, LICENCE)))
    assert import_model.fn(str(tmp_path / "own.safetensors")).sha256 == model.sha256


def test_the_source_model_was_not_trained_on_the_target(home, model, tmp_path):
    file = tmp_path / "source.safetensors"
    file.write_bytes(read_bytes(state_licence.fn(model, resolve_plan(DRAWN | {"model": {"weights": "random"}}))))
    assert licence_in(read_metadata(file)) == Licence(weights="none (random weights)", source_data="Apache-2.0", target_data=NOT_USED)


def test_a_card_lists_the_licences_and_the_mirror_images():
    card = {"title": "T", "limits": [], "licences": {**LICENCE.model_dump(), "code": "Apache-2.0"}}
    _, licences = card_text(card).split("## Licences")
    for row in ("| initial weights | MIT |", "| images of the source | CC-BY-NC-4.0 |", '| images of the target | contract "17", äö |'):
        assert row in licences
    with_flip = card_text(card | {"flip": True})
    assert "| features | the mean of those of an image and of its mirror image |" in with_flip and "mirror" not in card_text(card)
