"""Models on disk: they come back as they were, foreign ones are understood, unsafe ones are refused."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pul_core.errors import DataError
from pul_core.learning.backbone import build_backbone
from tasks.models import import_model, initial_model, load_file_into, model_file
from tasks.store.model_file import ModelConfig, model_size, read_model, write_model

CONFIG = ModelConfig(backbone="resnet10t", height=64, width=32)


@pytest.fixture
def backbone():
    return build_backbone("resnet10t", seed=3)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_model_comes_back_with_its_config(home, backbone):
    artifact = write_model(backbone, CONFIG)
    read, config = read_model(artifact)
    assert config == CONFIG
    assert same(read, backbone)
    assert model_size(artifact) == {"height": 64, "width": 32}


def test_equal_weights_are_equal_bytes(home, backbone):
    assert len({write_model(backbone, CONFIG).sha256 for _ in range(5)}) == 1


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3, "rank1": np.float64(0.5)}])
def test_checkpoints_of_other_projects(home, tmp_path, backbone, wrap):
    state = {f"module.{name}": tensor for name, tensor in backbone.state_dict().items()} | {"module.classifier.weight": torch.ones(5, 512)}
    torch.save(wrap(state), tmp_path / "model.pth.tar")
    read, config = read_model(import_model.fn(str(tmp_path / "model.pth.tar"), backbone="resnet10t", height=64, width=32))
    assert config == CONFIG
    assert same(read, backbone)


def test_own_files_say_what_they_are(home, tmp_path, backbone):
    from tasks.store.artifacts import read_bytes

    (tmp_path / "own.safetensors").write_bytes(read_bytes(write_model(backbone, CONFIG)))
    _, config = read_model(import_model.fn(str(tmp_path / "own.safetensors"), backbone="resnet50", height=256, width=128))
    assert config == CONFIG


def test_another_architecture_is_refused(home, tmp_path, backbone):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="does not fit the backbone"):
        load_file_into(backbone, tmp_path / "other.safetensors")


class Malicious:
    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('pwned').touch()",))


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_malicious_pickle_is_refused_and_not_run(home, tmp_path, monkeypatch, backbone, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps({"state_dict": Malicious()}))
    with pytest.raises(DataError):
        import_model.fn(str(tmp_path / name), backbone="resnet10t", height=64, width=32)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(("weights", "message"), [("missing.pth", "does not exist: give a file"), ("imagenet-packaged", "mobilenetv2_100")])
def test_weights_that_cannot_be_had(home, weights, message):
    with pytest.raises(DataError, match=message):
        initial_model.fn("resnet10t", weights=weights, height=64, width=32, seed=0)


def test_random_weights_follow_the_seed(home):
    first, again, other = (initial_model.fn("resnet10t", weights="random", height=64, width=32, seed=seed).sha256 for seed in (0, 0, 1))
    assert first == again != other


def test_packaged_weights_are_trained_ones(home):
    packaged, _ = read_model(initial_model.fn("mobilenetv2_100", weights="imagenet-packaged", height=64, width=32, seed=0))
    random = build_backbone("mobilenetv2_100", seed=0)
    assert not torch.equal(packaged.conv_stem.weight, random.conv_stem.weight)
    assert packaged.bn1.running_var.min() > 0
    assert packaged.bn1.running_mean.abs().min() > 0, "random ones are exactly zero"


def test_a_models_file_is_found_by_path_run_and_iteration(home, tmp_path):
    for number in (0, 2, 10):
        folder = home / "runs" / "amber-fox" / f"iteration={number}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(str(number))
    found = {}
    for name in ("amber-fox", "amber-fox/iteration=2", str(folder / "model.safetensors")):
        with model_file(name) as path:
            found[name] = path.read_text()
    assert list(found.values()) == ["10", "2", "10"]
    for name, message in {
        "amber-fox/iteration=3": "it has iteration=0, iteration=2, iteration=10",
        "red-fox": "there is no model red-fox",
        "/x/y": "there is no model /x/y",
    }.items():
        with pytest.raises(DataError, match=message), model_file(name):
            pass


def test_a_model_is_found_in_mlflow(home, tmp_path, monkeypatch, backbone):
    import mlflow

    from tasks.tracking.client import client
    from tasks.tracking.models import log_iteration_model

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    written = write_model(backbone, CONFIG)
    run = mlflow.MlflowClient().create_run(mlflow.create_experiment("models", (home / "mlartifacts").as_uri()))
    mlflow.MlflowClient().log_text(run.info.run_id, "no model", "notes.txt")
    client.cache_clear()
    log_iteration_model(run.info.run_id, written)
    model_id = client().get_run(run.info.run_id).data.tags["pul.model_id"]
    assert import_model.fn(f"models:/{model_id}", backbone="resnet50", height=1, width=1).sha256 == written.sha256
    assert import_model.fn(f"runs:/{run.info.run_id}/model", backbone="resnet50", height=1, width=1).sha256 == written.sha256
    for uri, message in {"models:/nobody/1": "MLflow has no model", f"runs:/{run.info.run_id}/notes.txt": "is no"}.items():
        with pytest.raises(DataError, match=message):
            import_model.fn(uri, backbone="resnet10t", height=64, width=32)
