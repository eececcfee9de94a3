"""Models on disk: they come back as they were, foreign ones are understood, unsafe ones are refused."""

import argparse
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pul_core.errors import DataError
from pul_core.learning.backbone import build_backbone
from pul_core.settings import Model
from tasks.models import complete_plan, describe_model, import_model, initial_model, load_file_into, model_file
from tasks.store.config import parameters_of, resolve_plan
from tasks.store.model_file import ModelConfig, model_size, read_model, write_model

CONFIG = ModelConfig(backbone="test_resnet", height=64, width=32)


@pytest.fixture
def backbone():
    return build_backbone("test_resnet", seed=3)


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
    state = {f"module.{name}": tensor for name, tensor in backbone.state_dict().items()} | {"module.classifier.weight": torch.ones(5, 96)}
    torch.save(wrap(state), tmp_path / "model.pth.tar")
    read, config = read_model(import_model.fn(str(tmp_path / "model.pth.tar"), backbone="test_resnet", height=64, width=32))
    assert config == CONFIG
    assert same(read, backbone)


def test_own_files_say_what_they_are(home, tmp_path, backbone):
    from tasks.store.artifacts import read_bytes

    (tmp_path / "own.safetensors").write_bytes(read_bytes(write_model(backbone, CONFIG)))
    _, config = read_model(import_model.fn(str(tmp_path / "own.safetensors")))
    assert config == CONFIG
    assert describe_model(str(tmp_path / "own.safetensors"), backbone="test_resnet", width=32) == CONFIG
    for name, value in {"backbone": "resnet50", "height": 65, "width": 128}.items():
        with pytest.raises(DataError, match=f"is a model with {name} .*{name} {value} was requested"):
            describe_model(str(tmp_path / "own.safetensors"), **{name: value})


def test_the_plan_of_a_run_has_the_backbone_and_size_of_its_model(home, tmp_path, backbone):
    from tasks.store.artifacts import read_bytes

    own, foreign = tmp_path / "own.safetensors", tmp_path / "resnet18.pth"
    own.write_bytes(read_bytes(write_model(backbone, CONFIG)))
    torch.save(build_backbone("resnet18").state_dict(), foreign)
    plan = complete_plan(resolve_plan({"target": "x", "original_model": str(own)}))
    assert (plan.model.backbone, plan.model.height, plan.model.width) == ("test_resnet", 64, 32)
    assert complete_plan(resolve_plan(parameters_of(plan))) == plan, "a saved config repeats the run"
    plan = complete_plan(resolve_plan({"target": "x", "original_model": str(foreign), "model": {"height": 64}}))
    assert (plan.model.backbone, plan.model.height, plan.model.width) == ("resnet18", 64, 128)
    for file, model in ((own, {"backbone": "resnet18"}), (own, {"height": 128}), (foreign, {"backbone": "resnet34"})):
        with pytest.raises(DataError, match=r"requested|does not fit the backbone resnet34"):
            complete_plan(resolve_plan({"target": "x", "original_model": str(file), "model": model}))


def _zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


def _tar(path, name):
    (path.parent / name).write_bytes(b"x")
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / name, name)


def _truncated(path):
    torch.save(build_backbone("test_resnet").state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


OTHER_FILES = {
    "is empty": lambda path: path.write_bytes(b""),
    "is a web page": lambda path: path.write_text("\n<!DOCTYPE html><html>Google Drive - Virus scan warning"),
    "git lfs pull": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
    "is a JSON text": lambda path: path.write_text('{"error": "not found"}'),
    "HDF5": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"),
    "compressed archive": lambda path: path.write_bytes(b"\x1f\x8b\x08xxxx"),
    "ONNX": lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch"),
    "zip archive of resnet/model.pth": lambda path: _zip(path, "resnet/model.pth"),
    "TorchScript": lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path),
    "its end is missing": _truncated,
    "tar archive of weights.pth": lambda path: _tar(path, "weights.pth"),
    "PyTorch before": lambda path: _tar(path, "storages"),
    r"save model.state_dict\(\)": lambda path: torch.save(build_backbone("test_resnet"), path),
    "pickled objects": lambda path: torch.save(build_backbone("test_resnet"), path, _use_new_zipfile_serialization=False),
    "has no named tensors": lambda path: torch.save({"epoch": 3}, path),
    "not a checkpoint": lambda path: path.write_bytes(b"\x80\x02}q"),
    "damaged or incomplete safetensors": lambda path: path.write_bytes((200).to_bytes(8, "little") + b'{"a":'),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("message", OTHER_FILES)
def test_files_that_are_no_weights_are_named(home, tmp_path, message):
    OTHER_FILES[message](tmp_path / "model.pth.tar")
    with pytest.raises(DataError, match=message) as error:
        describe_model(str(tmp_path / "model.pth.tar"))
    assert "\n" not in str(error.value) and str(tmp_path / "model.pth.tar") in str(error.value)


def test_objects_in_a_checkpoint_are_not_needed_for_its_weights(home, tmp_path, backbone):
    """PyTorch Lightning's checkpoints contain the hyperparameters, e.g. as a Namespace."""
    hyper_parameters = argparse.Namespace(lr=0.1, path=tmp_path)
    torch.save({"state_dict": backbone.state_dict(), "hyper_parameters": hyper_parameters}, tmp_path / "last.ckpt")
    read, _ = read_model(import_model.fn(str(tmp_path / "last.ckpt"), backbone="test_resnet", height=64, width=32))
    assert same(read, backbone)


def test_the_format_is_read_from_the_content(home, tmp_path, backbone):
    save_file({name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}, tmp_path / "model.pth")
    torch.save(backbone.state_dict(), tmp_path / "model.safetensors")
    for name in ("model.pth", "model.safetensors"):
        load_file_into(other := build_backbone("test_resnet", seed=5), tmp_path / name)
        assert same(other, backbone)


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
        import_model.fn(str(tmp_path / name), backbone="test_resnet", height=64, width=32)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(("weights", "message"), [("missing.pth", "does not exist: give a file"), ("imagenet-packaged", "mobilenetv2_100")])
def test_weights_that_cannot_be_had(home, weights, message):
    with pytest.raises(DataError, match=message):
        initial_model.fn(Model(backbone="test_resnet", weights=weights, height=64, width=32), seed=0)


def test_random_weights_follow_the_seed(home):
    model = Model(backbone="test_resnet", weights="random", height=64, width=32)
    first, again, other = (initial_model.fn(model, seed=seed).sha256 for seed in (0, 0, 1))
    assert first == again != other


def test_packaged_weights_are_trained_ones(home):
    packaged, _ = read_model(initial_model.fn(Model(backbone="mobilenetv2_100", weights="imagenet-packaged", height=64, width=32), seed=0))
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
    model_id = log_iteration_model(run, written)
    assert log_iteration_model(client().get_run(run.info.run_id), written) == model_id, "a retry does not log it again"
    logged = client().get_logged_model(model_id)
    assert (logged.experiment_id, logged.source_run_id, str(logged.status)) == (run.info.experiment_id, run.info.run_id, "READY")
    assert [output.model_id for output in client().get_run(run.info.run_id).outputs.model_outputs] == [model_id]
    assert not list(tmp_path.glob("mlruns*"))
    assert import_model.fn(f"models:/{model_id}", backbone="test_resnet").sha256 == written.sha256
    assert import_model.fn(f"runs:/{run.info.run_id}/model", backbone="test_resnet").sha256 == written.sha256
    for uri, message in {"models:/nobody/1": "MLflow has no model", f"runs:/{run.info.run_id}/notes.txt": "is no"}.items():
        with pytest.raises(DataError, match=message):
            import_model.fn(uri, backbone="test_resnet", height=64, width=32)
