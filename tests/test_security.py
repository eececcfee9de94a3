"""The promises of SECURITY.md: nothing is unpickled, untrusted names and URLs are harmless, no telemetry is sent."""

import ast
import base64
import hashlib
import json
import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from deployments.environment import configure
from deployments.errors import user_message
from pul_core.errors import DataError
from pul_core.settings import Model
from tasks.data.contact_sheet import write_sheet
from tasks.data.locations import validate_location
from tasks.data.manifests import list_manifest
from tasks.engine.checkpoints import StepCheckpoint
from tasks.engine.records import is_trusted_result
from tasks.index import index
from tasks.models import import_model, initial_model
from tasks.store.artifacts import Artifact, DamagedArtifactError, locate, read_bytes, read_table
from tasks.store.model_file import read_model, read_model_bytes
from tasks.tracking.client import safe_name
from tasks.tracking.runs import safe_run_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("pul_core", "tasks", "flows", "deployments")
NAMES = ["<img src=x onerror=1>", "a;rm -rf x", "$(id)", "`id`", "it's", 'a"b', "a&b", "{{ x }}", "--help", "naïve ö"]
NAMES += ["\x1b[31mred", "a\nb"]


class Malicious:
    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('pwned').touch()",))


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """A pickle that creates a file when it is unpickled; after the test that file must not exist."""
    monkeypatch.chdir(tmp_path)
    yield pickle.dumps({"state_dict": Malicious()})
    assert not (tmp_path / "pwned").exists(), "the pickle was loaded"


def test_the_payload_works_when_it_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Malicious()))
    assert (tmp_path / "pwned").exists()


# --- pickle


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.pkl", "model.safetensors", "model"])
@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_as_weights_is_refused(home, tmp_path, payload, name, legacy):
    if legacy:
        (tmp_path / name).write_bytes(payload)
    else:
        torch.save({"state_dict": Malicious()}, tmp_path / name)  # a zip archive that contains the pickle
    with pytest.raises(DataError):
        import_model.fn(str(tmp_path / name), backbone="test_resnet", height=64, width=32)
    with pytest.raises(DataError):
        initial_model.fn(Model(backbone="test_resnet", weights=str(tmp_path / name), height=64, width=32), seed=0)


@pytest.mark.parametrize(("kind", "suffix"), [("features", "parquet"), ("images", "parquet"), ("models", "safetensors"), ("runs", "json")])
def test_a_pickle_in_the_place_of_an_artifact_is_refused(home, payload, kind, suffix):
    """It is refused for its format even if its digest is right, because whoever writes the file can also choose the digest."""
    sha256 = hashlib.sha256(payload).hexdigest()
    for digest in ("0" * 64, sha256):
        artifact = Artifact(kind=kind, uri=f"{kind}/{sha256[:32]}.{suffix}", sha256=digest, rows=1)
        Path(locate(artifact)).parent.mkdir(parents=True, exist_ok=True)
        Path(locate(artifact)).write_bytes(payload)
        reads = {"parquet": read_table, "safetensors": read_model, "json": lambda artifact: json.loads(read_bytes(artifact))}
        with pytest.raises((DamagedArtifactError, ValueError)):
            reads[suffix](artifact)


def test_a_pickle_in_the_place_of_a_checkpoint_is_refused(home, payload):
    from tasks.training import _restore

    with ThreadPoolExecutor(1) as writer:
        checkpoint = StepCheckpoint(home / "checkpoints" / "pretrain-1", writer)
        checkpoint.save("epoch", lambda: payload)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        _restore(None, checkpoint.load("epoch"))


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_pickle_as_a_manifest_is_refused(tmp_path, payload, name):
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(DataError):
        list(list_manifest(str(tmp_path / name)))


def test_a_pickle_as_an_image_is_refused(home, tmp_path, payload, draw):
    (tmp_path / "set").mkdir()
    Image.fromarray(draw(1, 1, 0)).save(tmp_path / "set" / "good.png")
    (tmp_path / "set" / "bad.jpg").write_bytes(payload)
    problems = read_table(index.fn(str(tmp_path / "set"), "target").images)["problem"].to_pylist()
    assert problems == ["undecodable", None]


def test_a_numpy_pickle_in_a_model_file_is_refused(home, payload):
    with pytest.raises(ValueError):
        read_model_bytes(payload)


FORGERIES = {
    "pickle": lambda record, payload: forged(record, payload, {"type": "pickle", "picklelib": "pickle"}),
    "pickle in the old record format": lambda record, payload: json.dumps(
        {**json.loads(record), "serializer": {"type": "pickle", "picklelib": "pickle"}, "result": base64.b64encode(payload).decode()}
    ),
    "another JSON library": lambda record, payload: forged(record, payload, {**serializer(record), "jsonlib": "pickle"}),
    "another decoder": lambda record, payload: forged(record, payload, {**serializer(record), "object_decoder": "builtins.print"}),
    "a function as a class": lambda record, payload: json.dumps(
        {**json.loads(record), "result": json.dumps({"__class__": "subprocess.getoutput", "data": ["touch pwned"]})}
    ),
    "a nested class": lambda record, payload: record.replace('\\"rows\\": 1', '\\"rows\\": {\\"__class__\\": \\"x.y\\", \\"data\\": 1}'),
    "a repeated name": lambda record, payload: record[:-1] + ', "metadata": ' + json.dumps(json.loads(record)["metadata"]) + "}",
    "a plain pickle": lambda record, payload: payload.decode("latin-1"),
}


def serializer(record):
    return json.loads(record)["metadata"]["serializer"]


def forged(record, payload, serializer):
    fields = json.loads(record)
    return json.dumps({"metadata": {**fields["metadata"], "serializer": serializer}, "result": base64.b64encode(payload).decode()})


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_record_is_not_trusted(payload, name):
    from prefect.results import ResultRecord, ResultRecordMetadata
    from prefect.serializers import JSONSerializer

    metadata = ResultRecordMetadata(serializer=JSONSerializer(), storage_key="key")
    result = Artifact(kind="test", uri="test/1.txt", sha256="1", rows=1)
    record = ResultRecord(result=result, metadata=metadata).serialize().decode()
    assert is_trusted_result(record.encode(), "key")
    assert not is_trusted_result(record.encode(), "other"), "an authentic record in the place of another"
    assert FORGERIES[name](record, payload) != record
    assert not is_trusted_result(FORGERIES[name](record, payload).encode("latin-1"), "key")


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_forged_result_is_refused_and_the_step_runs_again(home, payload):
    from prefect import flow
    from prefect.results import get_result_store

    from tasks.engine.steps import step, step_key
    from tasks.store.artifacts import write_bytes

    executed = []

    @step("made")
    def make(number: int) -> Artifact:
        executed.append(number)
        return write_bytes("test", "txt", 1, str(number).encode())

    key = step_key(make.fn, {"number": 1})

    @flow
    def run(record: str | None = None) -> str:
        storage = get_result_store().result_storage
        if record:
            storage.write_path(key, record.encode("latin-1"))
        make(1)
        return storage.read_path(key).decode()

    record = run()
    assert serializer(record)["type"] == "json"
    run()
    assert executed == [1], "the authentic record is used"
    for number, (name, forge) in enumerate(FORGERIES.items(), 2):
        assert forge(record, payload) != record
        assert is_trusted_result(run(forge(record, payload)).encode(), key), name
        assert len(executed) == number, name


def test_every_task_and_flow_stores_its_results_as_json():
    """Prefect's default is pickle."""
    import importlib
    import pkgutil

    from prefect import Flow, Task
    from prefect.settings import get_current_settings

    default = get_current_settings().results.default_serializer
    tasks_and_flows = []
    for package in ("tasks", "flows"):
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            values = [getattr(value, "task", value) for value in vars(importlib.import_module(module.name)).values()]
            tasks_and_flows += [value for value in values if isinstance(value, Task | Flow)]
    names = {value.name for value in tasks_and_flows}
    assert len(names) >= 16 and {"pretrain", "track_run", "finish_sweep"} <= names
    assert {value.result_serializer or default for value in tasks_and_flows} == {"json"}


def calls(package):
    """Yield place, function and keyword arguments of every call, and place and name of every import."""
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                yield f"{file.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), keywords
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", f"import {getattr(node, 'module', None) or alias.name}", {}


FORBIDDEN = re.compile(
    r"import (pickle|cloudpickle|dill|shelve|marshal)\b|(^|\.)(eval|exec|read_pickle|load_model|unsafe_load|full_load|system|popen)$"
    r"|^(pickle|cloudpickle|joblib|marshal|yaml)\.loads?$"
)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_code_unpickles_or_runs_a_shell(package):
    for place, name, keywords in calls(package):
        if name.endswith(".eval") and not keywords:  # eval() of a torch module
            continue
        assert not FORBIDDEN.search(name), f"{place}: {name}"
        if name.endswith("torch.load") or name == "load":
            assert keywords.get("weights_only") == "True", place
        if re.fullmatch(r"np\.load|numpy\.load", name):
            assert keywords.get("allow_pickle", "False") == "False", place
        assert keywords.get("shell", "False") == "False", place


# --- untrusted names, paths and URLs


@pytest.mark.parametrize("name", NAMES)
def test_a_malicious_folder_name_is_harmless(home, tmp_path, draw, name):
    """As the name of a data set, a camera or an image: in the index, the contact sheet and MLflow."""
    from tasks.tracking.runs import _dataset

    root = tmp_path / name
    (root / name).mkdir(parents=True)
    for shot in range(2):
        Image.fromarray(draw(1, 1, shot)).save(root / name / f"{name}_{shot}.png")
    images = index.fn(str(root), "target", layout="pattern", pattern=r"(?s:(?P<camera>.+)/.*)")
    table = read_table(images.images)
    assert table["problem"].null_count == 2 and set(table["camera"].to_pylist()) == {name}
    write_sheet(images, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size[1] > 0
    for text in (safe_name(f"{images.name} to x"), _dataset(images, "target").dataset.name, safe_run_name(name)):
        assert not re.search(r"""[<>"'&;$`|{}*\\\x00-\x1f/:]""", text), text
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", safe_run_name(name)), "neither an option nor a hidden file"


@pytest.mark.parametrize("name", ["../../x", "..", ".", "/etc/passwd", "a/../../b", "", "-rf", "x" * 300, "\0"])
def test_a_malicious_flow_run_name_cannot_leave_the_folder_of_runs(name):
    """Whoever starts a flow run can choose its name, which becomes the name of a folder."""
    runs = Path("/home/runs")
    assert Path(os.path.normpath(runs / safe_run_name(name))).parent == runs
    assert len(safe_run_name(name)) <= 100


@pytest.mark.parametrize("name", ["amber-fox", "lilac-otter_2", "a.b"])
def test_a_harmless_name_is_not_changed(name):
    assert safe_run_name(name) == safe_name(name) == name


@pytest.mark.parametrize("name", NAMES)
def test_an_error_message_contains_no_control_characters(name):
    line = user_message(DataError(f"there is no {name} here"))
    assert line and line.isprintable()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "unsupported protocol"),
        ("local:///etc/passwd", "unsupported protocol"),
        ("zip://list.csv::https://example.invalid/x.zip", "unsupported protocol"),
        ("https://example.invalid/x.zip::https://example.invalid/y", "unsupported protocol"),
        ("simplecache://x", "unsupported protocol"),
        ("reference://x", "unsupported protocol"),
        ("github://owner:repo@main/list.csv", "unsupported protocol"),
        ("HTTPS://example.invalid/list.csv", "unsupported protocol"),
        ("https://ana:geheim@example.invalid/list.csv", "environment"),
        ("s3://key:geheim@bucket/list.csv", "environment"),
        ("https://example.invalid/list.csv?token=geheim", "query"),
        ("memory://a/../../list.csv", r"'\.\.'"),
    ],
)
def test_a_forbidden_url_is_refused_without_repeating_its_password(home, url, message):
    for read in (lambda: index.fn(url, "target"), lambda: next(list_manifest(url))):
        with pytest.raises(DataError, match=message) as raised:
            read()
        assert "geheim" not in str(raised.value)


@pytest.mark.parametrize("path", ["memory://shop/list.csv", "abfs://container@account/list.csv", "/somewhere/a@b:c?d"])
def test_an_allowed_url_or_path_is_not_changed(path):
    assert validate_location(path) == path


@pytest.mark.parametrize("reference", ["http://example.invalid/m.safetensors", "file:///etc/passwd", "../../x", "..", "x\0y", "ftp://x/y"])
def test_a_model_is_downloaded_from_mlflow_only(home, reference):
    with pytest.raises(DataError, match=r"there is no model|is a folder: give the file of the model"):
        import_model.fn(reference, backbone="test_resnet", height=64, width=32)


@pytest.mark.parametrize("path", ["x\0y", "synthetic:0/../../x", "synthetic:../x/target"])
def test_an_invalid_path_is_refused_with_a_message(home, path):
    with pytest.raises(ValueError) as raised:
        index.fn(path, "target")
    assert user_message(raised.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(home, tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1_000_000, 1_000_000, 8, 2, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "bomb.png").write_bytes(image)
    assert read_table(index.fn(str(tmp_path / "set"), "target").images)["problem"].to_pylist() == ["too_large"]


# --- no telemetry


def test_the_telemetry_of_every_library_is_disabled():
    import huggingface_hub.constants as hub
    from mlflow.telemetry.utils import is_telemetry_disabled
    from prefect._internal.analytics.enabled import is_telemetry_enabled
    from prefect.settings import get_current_settings

    assert hub.HF_HUB_DISABLE_TELEMETRY
    assert is_telemetry_disabled()
    assert not is_telemetry_enabled()
    assert not get_current_settings().server.analytics_enabled


def test_configure_disables_telemetry(tmp_path, monkeypatch):
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PUL_HOME", str(tmp_path))
    configure()
    assert os.environ["DO_NOT_TRACK"] == "1" and os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1" and os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
