"""What SECURITY.md promises, tried: nothing is unpickled, names and places from outside stay harmless, nothing is sent anywhere."""

import ast
import base64
import hashlib
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from deployments.complaints import in_one_line
from deployments.environment import configure
from pul_core.errors import DataError
from tasks.data.contact_sheet import write_sheet
from tasks.data.manifests import manifest
from tasks.data.places import checked_url
from tasks.engine.checkpoints import Kept
from tasks.engine.records import is_ours
from tasks.index import index
from tasks.models import import_model, initial_model
from tasks.store.artifacts import Artifact, DamagedArtifactError, locate, read_bytes, read_table
from tasks.store.model_file import read_model, read_model_bytes
from tasks.tracking.client import plain_name
from tasks.tracking.runs import run_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("pul_core", "tasks", "flows", "deployments")
NAMES = ["<img src=x onerror=1>", "a;rm -rf x", "$(id)", "`id`", "it's", 'a"b', "a&b", "{{ x }}", "--help", "naïve ö"]
NAMES += ["\x1b[31mred", "a\nb"]


class Malicious:
    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('pwned').touch()",))


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """Bytes that leave a file when they are unpickled; that they do not is looked at afterwards."""
    monkeypatch.chdir(tmp_path)
    yield pickle.dumps({"state_dict": Malicious()})
    assert not (tmp_path / "pwned").exists(), "it was run"


def test_the_payload_would_run(tmp_path, monkeypatch):
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
        torch.save({"state_dict": Malicious()}, tmp_path / name)  # a zip archive with the pickle in it
    with pytest.raises(DataError):
        import_model.fn(str(tmp_path / name), backbone="resnet10t", height=64, width=32)
    with pytest.raises(DataError):
        initial_model.fn("resnet10t", weights=str(tmp_path / name), height=64, width=32, seed=0)


@pytest.mark.parametrize(("kind", "suffix"), [("features", "parquet"), ("images", "parquet"), ("models", "safetensors"), ("runs", "json")])
def test_a_pickle_in_the_place_of_an_artifact_is_refused(home, payload, kind, suffix):
    """Whoever can write it can give its digest too: refused are a wrong digest and a wrong format."""
    sha256 = hashlib.sha256(payload).hexdigest()
    for digest in ("0" * 64, sha256):
        artifact = Artifact(kind=kind, uri=f"{kind}/{sha256[:32]}.{suffix}", sha256=digest, rows=1)
        Path(locate(artifact)).parent.mkdir(parents=True, exist_ok=True)
        Path(locate(artifact)).write_bytes(payload)
        reads = {"parquet": read_table, "safetensors": read_model, "json": lambda artifact: json.loads(read_bytes(artifact))}
        with pytest.raises((DamagedArtifactError, ValueError)):
            reads[suffix](artifact)


def test_a_pickle_in_the_place_of_a_checkpoint_is_refused(home, payload):
    from tasks.training import _go_on

    kept = Kept(home / "checkpoints" / "pretrain-1")
    kept.save("epoch", payload)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        _go_on(None, kept.load("epoch"))


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_pickle_as_a_manifest_is_refused(tmp_path, payload, name):
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(DataError):
        list(manifest(str(tmp_path / name)))


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
    "pickle by the old name": lambda record, payload: json.dumps(
        {**json.loads(record), "serializer": {"type": "pickle", "picklelib": "pickle"}, "result": base64.b64encode(payload).decode()}
    ),
    "another JSON library": lambda record, payload: forged(record, payload, {**serializer(record), "jsonlib": "pickle"}),
    "another decoder": lambda record, payload: forged(record, payload, {**serializer(record), "object_decoder": "builtins.print"}),
    "any function as a class": lambda record, payload: json.dumps(
        {**json.loads(record), "result": json.dumps({"__class__": "subprocess.getoutput", "data": ["touch pwned"]})}
    ),
    "a class inside": lambda record, payload: record.replace('\\"rows\\": 1', '\\"rows\\": {\\"__class__\\": \\"x.y\\", \\"data\\": 1}'),
    "said twice": lambda record, payload: record[:-1] + ', "metadata": ' + json.dumps(json.loads(record)["metadata"]) + "}",
    "the bare pickle": lambda record, payload: payload.decode("latin-1"),
}


def serializer(record):
    return json.loads(record)["metadata"]["serializer"]


def forged(record, payload, serializer):
    told = json.loads(record)
    return json.dumps({"metadata": {**told["metadata"], "serializer": serializer}, "result": base64.b64encode(payload).decode()})


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_record_is_told_from_one_of_ours(payload, name):
    from prefect.results import ResultRecord, ResultRecordMetadata
    from prefect.serializers import JSONSerializer

    metadata = ResultRecordMetadata(serializer=JSONSerializer(), storage_key="key")
    result = Artifact(kind="test", uri="test/1.txt", sha256="1", rows=1)
    record = ResultRecord(result=result, metadata=metadata).serialize().decode()
    assert is_ours(record.encode(), "key")
    assert not is_ours(record.encode(), "other"), "a whole record in the place of another"
    assert FORGERIES[name](record, payload) != record
    assert not is_ours(FORGERIES[name](record, payload).encode("latin-1"), "key")


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_forged_result_of_prefect_is_refused_and_the_step_runs_again(home, payload):
    from prefect import flow
    from prefect.results import get_result_store

    from tasks.engine.steps import step, step_key
    from tasks.store.artifacts import write_bytes

    ran = []

    @step("made")
    def make(number: int) -> Artifact:
        ran.append(number)
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
    assert ran == [1], "the true record is believed"
    for number, (name, forge) in enumerate(FORGERIES.items(), 2):
        assert forge(record, payload) != record
        assert is_ours(run(forge(record, payload)).encode(), key), name
        assert len(ran) == number, name


def test_every_task_and_flow_keeps_its_results_as_json():
    """Prefect's own default is pickle."""
    import importlib
    import pkgutil

    from prefect import Flow, Task
    from prefect.settings import get_current_settings

    default = get_current_settings().results.default_serializer
    found = []
    for package in ("tasks", "flows"):
        for module in pkgutil.iter_modules([str(ROOT / package)]):
            named = vars(importlib.import_module(f"{package}.{module.name}")).values()
            loaded = [getattr(value, "task", value) for value in named]
            found += [value for value in loaded if isinstance(value, Task | Flow)]
    assert len({value.name for value in found}) >= 16
    assert {value.result_serializer or default for value in found} == {"json"}


def calls(package):
    for file in sorted((ROOT / package).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                yield f"{file.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), words
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", f"import {getattr(node, 'module', None) or alias.name}", {}


FORBIDDEN = re.compile(
    r"import (pickle|cloudpickle|dill|joblib|shelve|marshal)\b|(^|\.)(eval|exec|read_pickle|load_model|unsafe_load|full_load|system|popen)$"
    r"|^(pickle|cloudpickle|joblib|marshal|yaml)\.loads?$"
)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_code_unpickles_or_asks_a_shell(package):
    for place, name, words in calls(package):
        if name.endswith(".eval") and not words:  # of a torch module
            continue
        assert not FORBIDDEN.search(name), f"{place}: {name}"
        if name.endswith("torch.load") or name == "load":
            assert words.get("weights_only") == "True", place
        if re.fullmatch(r"np\.load|numpy\.load", name):
            assert words.get("allow_pickle", "False") == "False", place
        assert words.get("shell", "False") == "False", place


# --- names and places from outside


@pytest.mark.parametrize("name", NAMES)
def test_a_folders_name_stays_harmless(home, tmp_path, draw, name):
    """A set named by its folder, cameras and images named by anything: index, contact sheet, experiment, data set in MLflow."""
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
    for text in (plain_name(f"{images.name} to x"), _dataset(images, "target").dataset.name, run_name(name)):
        assert not re.search(r"""[<>"'&;$`|{}*\\\x00-\x1f/:]""", text), text
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", run_name(name)), "also no option and no hidden file"


@pytest.mark.parametrize("name", ["../../x", "..", ".", "/etc/passwd", "a/../../b", "", "-rf", "x" * 300, "\0"])
def test_a_flow_runs_name_stays_below_the_runs(name):
    """Whoever starts a flow run may name it, and its folder is named by that."""
    runs = Path("/home/runs")
    assert Path(os.path.normpath(runs / run_name(name))).parent == runs
    assert len(run_name(name)) <= 100


@pytest.mark.parametrize("name", ["amber-fox", "lilac-otter_2", "a.b"])
def test_a_plain_name_stays_as_it_is(name):
    assert run_name(name) == plain_name(name) == name


@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_of_refusal_does_not_steer_the_terminal(name):
    line = in_one_line(DataError(f"there is no {name} here"))
    assert line and line.isprintable()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "no protocol"),
        ("local:///etc/passwd", "no protocol"),
        ("zip://list.csv::https://example.invalid/x.zip", "no protocol"),
        ("https://example.invalid/x.zip::https://example.invalid/y", "no protocol"),
        ("simplecache://x", "no protocol"),
        ("reference://x", "no protocol"),
        ("github://owner:repo@main/list.csv", "no protocol"),
        ("HTTPS://example.invalid/list.csv", "no protocol"),
        ("https://ana:geheim@example.invalid/list.csv", "environment"),
        ("s3://key:geheim@bucket/list.csv", "environment"),
        ("https://example.invalid/list.csv?token=geheim", "query"),
        ("memory://a/../../list.csv", r"'\.\.'"),
    ],
)
def test_a_url_that_may_not_be_opened_is_refused_and_its_password_not_repeated(home, url, message):
    for refuse in (lambda: index.fn(url, "target"), lambda: next(manifest(url))):
        with pytest.raises(DataError, match=message) as refused:
            refuse()
        assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("place", ["memory://shop/list.csv", "abfs://container@account/list.csv", "/somewhere/a@b:c?d"])
def test_a_plain_url_or_path_passes(place):
    assert checked_url(place) == place


@pytest.mark.parametrize("reference", ["http://example.invalid/m.safetensors", "file:///etc/passwd", "../../x", "..", "x\0y", "ftp://x/y"])
def test_a_model_is_fetched_from_nowhere_but_mlflow(home, reference):
    with pytest.raises(DataError, match="there is no model"):
        import_model.fn(reference, backbone="resnet10t", height=64, width=32)


@pytest.mark.parametrize("path", ["x\0y", "synthetic:0/../../x", "synthetic:../x/target"])
def test_a_path_that_is_none_is_refused_in_a_sentence(home, path):
    with pytest.raises(ValueError) as refused:
        index.fn(path, "target")
    assert in_one_line(refused.value)


def test_a_png_of_terabytes_is_refused_before_it_is_decoded(home, tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1_000_000, 1_000_000, 8, 2, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "bomb.png").write_bytes(image)
    assert read_table(index.fn(str(tmp_path / "set"), "target").images)["problem"].to_pylist() == ["too_large"]


# --- nothing is sent anywhere


def test_no_library_reports_home():
    import huggingface_hub.constants as hub
    from mlflow.telemetry.utils import is_telemetry_disabled
    from prefect._internal.analytics.enabled import is_telemetry_enabled
    from prefect.settings import get_current_settings

    assert hub.HF_HUB_DISABLE_TELEMETRY
    assert is_telemetry_disabled()
    assert not is_telemetry_enabled()
    assert not get_current_settings().server.analytics_enabled


def test_what_is_set_keeps_it_so(tmp_path, monkeypatch):
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PUL_HOME", str(tmp_path))
    configure()
    assert os.environ["DO_NOT_TRACK"] == "1" and os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1" and os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
