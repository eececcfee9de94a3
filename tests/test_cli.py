"""The `pul` command: results are printed as text or JSON, and invalid input ends it with one line and exit code 1."""

import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from pul_core.errors import DataError
from tasks.hub import check_hub

PUL = Path(sys.executable).with_name("pul")


@pytest.fixture
def pul(tmp_path):
    """Run `pul` in an empty directory with a clean environment."""

    def run(*arguments, timeout=300, **environment):
        inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        clean = inherited | {"HOME": str(tmp_path), **environment}
        return subprocess.run([PUL, *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=timeout, check=False)

    return run


def assert_rejected(completed, *words):
    assert completed.returncode == 1, completed.stderr
    lines = [line for line in completed.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("pul: "), completed.stderr
    for word in words:
        assert word in lines[0]


def test_help_names_every_command(pul):
    done = pul("--help")
    assert done.returncode == 0
    for command in ("demo", "run", "evaluate", "resume", "results", "up", "doctor", "gc", "data", "sweep", "suggest"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["run", "evaluate", "sweep", "suggest"])
def test_the_help_shows_every_example_on_a_line_of_its_own(pul_here, capsys, command):
    assert pul_here(command, "--help") == 0
    usage, _, options = capsys.readouterr().out.partition("Options:")
    examples = [line for line in usage.splitlines() if line.startswith(f"  pul {command} ")]
    assert len(examples) >= 2 and options and "\\b" not in usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], ["--target"]),
        (["run", "--target", "nowhere"], ["nowhere", "is not a folder"]),
        (["run", "--target", "."], ["holds no images"]),
        (["run", "--target", "synthetic:0/nobody"], ["synthetic:SEED/source"]),
        (["run", "--target", "{target}"], ["--source", "--original-model"]),
        (["run", "--target", "{target}", "--source", "{one}"], ["1 identities", "at least 2"]),
        (["run", "--target", "{target}", "--source", "{source}", "--num-clusters", "99"], ["num_clusters is 99", "36"]),
        (
            ["run", "--target", "{target}", "--source", "{source}", "--set", "selection.min_similarity=2"],
            ["min_similarity", "less than or equal to 1"],
        ),
        (["run", "--target", "{target}", "--source", "{source}", "--recipe", "best"], ["no recipe 'best'", "released-code"]),
        (["run", "--target", "{target}", "--source", "{source}", "--size", "big"], ["--size", "256x128"]),
        (["run", "--target", "{target}", "--source", "{source}", "--set", "x"], ["--set"]),
        (["run", "--target", "{target}", "--source", "{source}", "--set", "nonsense.epochs=2"], ["no parameter 'nonsense'"]),
        (["run", "--target", "{target}", "--source", "{source}", "--set", "fine_tuning.epoch=3"], ["did you mean fine_tuning.epochs?"]),
        (["run", "--target", "{target}", "--source", "{source}", "--set", "fine_tunning.epochs=3"], ["did you mean fine_tuning?"]),
        (
            ["run", "--target", "{target}", "--source", "{source}", "--target-layout", "best"],
            ["unknown layout 'best'", "folder-per-identity"],
        ),
        (["run", "--target", "{target}", "--source", "{source}", "--source-pattern", "(?P<who>.)"], ["named groups", "identity"]),
        (
            ["run", "--target", "{target}", "--source", "{source}", "--source-layout", "folder"],
            ["0 identities", "state --source-layout folder-per-identity"],
        ),
        (["run", "--target", "{target}", "--source", "{source}", "--target-layout", "pattern"], ["--target-pattern '(?P<camera>"]),
        (["sweep", "--target", "{target}", "--source", "{source}", "--source-layout", "pattern"], ["--source-pattern '(?P<camera>"]),
        (["embed", "{weights}", "{target}", "--layout", "pattern", "--out", "f.parquet"], ["--pattern '(?P<camera>"]),
        (["run", "--nonsense"], ["No such option: --nonsense", "pul run --help"]),
        (["nonsense"], ["No such command 'nonsense'", "pul --help"]),
        (["run", "--seed", "first"], ["--seed", "valid integer"]),
        (["run", "--config", "none.json"], ["none.json cannot be read (No such file or directory)", "give a JSON file"]),
        (["run", "--config", "{one}"], ["cannot be read (Is a directory)", "give a JSON file"]),
        (["run", "--config", "{text}"], ["is not valid JSON", "give a JSON file"]),
        (["run", "--config", "{binary}"], ["is not valid JSON", "give a JSON file"]),
        (["run", "--config", "{list}"], ["must contain a JSON object", "got a list"]),
        (["sweep", "--config", "none.json"], ["none.json cannot be read", "give a JSON file"]),
        (["sweep", "--config", "{object}"], ["no parameter 'nonsense'", "base, grid, variants, seeds, parallel"]),
        (["sweep", "--target", "{target}"], ["--source", "--original-model"]),
        (["sweep", "--source", "{source}"], ["a sweep requires a target"]),
        (["sweep", "--target", "nowhere", "--source", "{source}"], ["nowhere", "is not a folder"]),
        (["sweep", "--target", "{target}", "--grid", "selection.lambda=1"], ["no parameter 'selection.lambda'", "min_similarity"]),
        (["sweep", "--target", "{target}", "--grid", "selection.min_similarity"], ["--grid must be name=value,value"]),
        (
            ["sweep", "--target", "{target}", "--grid", "selection.min_similarity=0.8,high"],
            ["selection.min_similarity=high", "valid number"],
        ),
        (["sweep", "--target", "{target}", "--seeds", "0,0"], ["children 1 and 2", "same run"]),
        (["sweep", "--target", "{target}", "--source", "{source}", "--grid", "kmeans.num_clusters=6,99"], ["num_clusters is 99", "36"]),
        (["data", "crop", "nowhere", "--out", "crops"], ["nowhere is not a folder"]),
        (["data", "extract", "nowhere.mat", "--out", "cuhk03"], ["nowhere.mat is not a file"]),
        (["data", "crop", "{one}", "--out", "{text}/crops"], ["--out", "is not a writable folder", "choose another path"]),
        (["data", "extract", "{text}", "--out", "{text}/cuhk03"], ["--out", "is not a writable folder", "choose another path"]),
        (["data", "check", "{one}", "--sheet", "{text}/sheet.png"], ["--sheet", "is not a writable folder", "choose another path"]),
        (["data", "check", "{one}", "--sheet", "sheet.txt"], ["--sheet must be a file that ends in .png or .jpg", "sheet.txt"]),
        (["results"], ["pul demo"]),
        (["purge", ".."], ["no run '..'"]),
        (["purge", "--identity", "7"], ["--data"]),
        (["resume", "nobody"], ["no run 'nobody'"]),
        (["run", "--target", "{target}", "--source", "{source}", "--source", "{crops}"], ["crops", "no identities"]),
        (["run", "--target", "{target}", "--original-model", "/nowhere/model.pth"], ["no model /nowhere/model.pth"]),
        (["evaluate", "nobody", "{target}"], ["no model nobody", "RUN/iteration=N"]),
        (["evaluate", "models:/nobody/1", "{target}"], ["models:/nobody/1"]),
        (["evaluate", "{weights}", "nowhere"], ["nowhere", "is not a folder"]),
        (["evaluate", "{weights}", "{one}"], ["0 query and 0 gallery images"]),
        (["evaluate", "{weights}", "{target}", "--protocol", "best"], ["got 'best'", "cross_camera"]),
        (["evaluate", "{weights}", "{target}", "--ties", "lucky"], ["got 'lucky'", "expected"]),
        (["suggest", "nobody", "{target}"], ["no model nobody", "RUN/iteration=N"]),
        (["suggest", "{weights}", "nowhere"], ["nowhere", "is not a folder"]),
        (["suggest", "{weights}", "{one}"], ["6 training images", "requires at least 10"]),
        (["suggest", "{weights}", "{target}", "--size", "big"], ["--size", "256x128"]),
    ],
)
def test_invalid_input_is_reported_in_one_line(pul_here, tiny_pair, market, tmp_path_factory, arguments, words):
    one = market(tmp_path_factory.mktemp("one"), range(1, 2))
    contents = {"weights.safetensors": b"", "text": b"no JSON", "binary": b"\xff\xfe", "list": b"[]", "object": b'{"nonsense": 1}'}
    for name, content in contents.items():
        one.with_name(name).write_bytes(content)
    crops = one.with_name("crops")
    shutil.copytree(one / "bounding_box_train", crops, dirs_exist_ok=True)
    paths = {"source": tiny_pair[0], "target": tiny_pair[1], "one": one, "crops": crops}
    paths |= {Path(name).stem: one.with_name(name) for name in contents}
    message = pul_here(*(argument.format(**paths) for argument in arguments))
    assert message.startswith("pul: ") and "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_without_a_command_the_help_is_printed(pul_here, capsys, arguments):
    assert pul_here(*arguments) == 2
    assert capsys.readouterr().err.startswith(f"Usage: {' '.join(['pul', *arguments])} [OPTIONS] COMMAND")


def test_a_home_that_cannot_be_created_is_reported_in_one_line(pul_here, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    for home, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "home", "Not a directory")):
        monkeypatch.setenv("PUL_HOME", str(home))
        message = pul_here("doctor")
        assert message == f"pul: PUL_HOME={home} cannot be created ({reason}): set PUL_HOME to a folder that you can write"


def test_folders_without_write_permission_are_reported_in_one_line(pul_here, monkeypatch, home, market):
    data = str(market(home / "data", range(1, 2)))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != home)
    assert pul_here("results") == f"pul: PUL_HOME={home} is not writable: set PUL_HOME to a folder that you can write"
    monkeypatch.setenv("PUL_HOME", str(home / "another"))
    message = f"cannot be written, {home} is not a writable folder: choose another path"
    assert pul_here("data", "check", data, "--sheet", "sheet.png") == f"pul: --sheet sheet.png {message}"
    assert pul_here("data", "crop", data, "--out", "new/crops") == f"pul: --out new/crops {message}"


def test_the_process_writes_that_line_to_stderr_and_ends_with_code_1(pul):
    assert_rejected(pul("run", "--target", "nowhere"), "is not a folder")


@pytest.mark.parametrize(
    ("status", "hint"), [("finished", ""), ("killed", ": pul resume fox continues it"), ("failed", ": pul resume fox continues it")]
)
def test_results_of_an_interrupted_run_say_how_to_continue(status, hint):
    from deployments.cli import _results_text

    results = {"iterations": [], "seconds": [], "stop_reason": None, "run": "fox", "status": status}
    assert _results_text(results).splitlines()[-1] == f"run fox, {status}{hint}"


def test_a_dry_run_estimates_and_does_nothing(pul_here, home, tiny_pair, capsys):
    options = ["--backbone", "test_resnet", "--weights", "random", "--size", "64x32", "--threads", "1", "--dry-run"]
    assert pul_here("run", "--source", tiny_pair[0], "--target", tiny_pair[1], *options) == 0
    printed, said = capsys.readouterr()
    assert "timing test_resnet on a few batches of noise" in said
    assert "36 source images of 6 people -> 36 target images" in printed
    for word in ("source training", "an iteration", "disk", "memory"):
        assert word in printed
    assert not (home / "runs").exists()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An HTTP server in place of the hub, with an empty cache: a function sets the status of each file; the paths that were requested."""
    statuses, requested = {}, []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            requested.append(self.path)
            self.send_response(statuses.get(Path(self.path).name, 404))
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield statuses, requested
        server.shutdown()


@pytest.mark.parametrize(
    ("statuses", "problem"),
    [
        ({"model.safetensors": 200}, None),
        ({"pytorch_model.bin": 200}, None),
        ({"model.safetensors": 302}, None),  # to the place of the file
        ({}, "Not Found"),
        ({"model.safetensors": 503, "pytorch_model.bin": 200}, "Service Unavailable"),
    ],
)
def test_the_hub_has_the_weights_of_a_backbone_or_the_reason_is_stated(hub, statuses, problem):
    """They are not downloaded: the server knows no request but HEAD."""
    hub[0].update(statuses)
    if problem:
        with pytest.raises(DataError, match=f"weights of resnet50 cannot be fetched .*: {problem}.*--weights FILE"):
            check_hub("resnet50")
    else:
        check_hub("resnet50")
    assert hub[1][0] == "/timm/resnet50.tv_in1k/resolve/main/model.safetensors"


def test_weights_in_the_cache_need_no_hub(hub, tmp_path):
    folder = tmp_path / "hub" / "models--timm--resnet50.tv_in1k"
    (folder / "snapshots" / "a").mkdir(parents=True)
    (folder / "snapshots" / "a" / "model.safetensors").touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a")
    check_hub("resnet50")
    assert not hub[1]


def test_a_dry_run_without_the_hub_ends_before_the_estimate(pul_here, tiny_pair, monkeypatch, free_port, capsys):
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"http://127.0.0.1:{free_port()}/{{repo_id}}{{revision}}{{filename}}")
    options = ["--backbone", "resnet18.a1_in1k", "--size", "64x32", "--dry-run"]
    message = pul_here("run", "--source", tiny_pair[0], "--target", tiny_pair[1], *options)
    assert re.fullmatch(r"pul: ImageNet weights of resnet18.a1_in1k cannot be fetched \(127.0.0.1:\d+: .*refused\): .*", message)
    assert not capsys.readouterr().out


def test_a_dry_sweep_lists_its_runs_and_does_nothing(pul_here, home, tiny_pair, capsys, table_of):
    data = ["--source", tiny_pair[0], "--target", tiny_pair[1], "--threads", "1"]
    assert pul_here("sweep", *data, "--grid", "selection.min_similarity=0.8,0.9", "--seeds", "0,1", "--parallel", "3", "--dry-run") == 0
    printed = capsys.readouterr().out
    titles, rows = table_of(printed)
    assert titles == ["run", "setting", "seed"]
    assert rows == [
        [str(number), f"selection.min_similarity={value}", seed]
        for number, (value, seed) in enumerate(itertools.product(("0.8", "0.9"), ("0", "1")), 1)
    ]
    assert printed.splitlines()[-1] == "4 runs, 3 at once, after 2 source trainings that they share"
    assert not (home / "sweeps").exists()


@pytest.mark.slow
def test_a_run_without_a_server_prints_its_results(pul, tiny_pair, tiny_options, tmp_path, table_of):
    """The command starts a Prefect server of its own; that the config of a run repeats it is in test_flow."""
    done = pul("run", "--source", str(tiny_pair[0]), "--target", str(tiny_pair[1]), *tiny_options)
    assert done.returncode == 0, done.stderr
    titles, rows = table_of(done.stdout)
    assert titles == ["iteration", "reliable", "clusters", "rank-1", "mAP", "seconds"]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    results = json.loads(pul("results", "--json").stdout)
    assert [row["iteration"] for row in results["iterations"]] == [0, 1, 2]
    assert results["iterations"][0]["reliable_set_size"] is None
    assert all(0 <= row["rank_1"] <= 1 and 0 <= row["mAP"] <= 1 for row in results["iterations"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pul"], "everything lies below .pul"
    assert "Traceback" not in done.stderr
    hint = [line.split("  #")[0].split() for line in done.stderr.split("next:\n")[1].splitlines()[:2]]
    name = results["run"]
    assert hint == [["pul", "report", name], ["pul", "export", name, "--format", "onnx"]]
    assert "Task run 'fine-tune-1' - Finished in state Completed()" in done.stderr, "a run prints its progress"
    done = pul("evaluate", results["run"], str(tiny_pair[1]), "--threads", "1")
    assert (done.returncode, done.stderr) == (0, ""), "a command whose output is a result prints nothing else"
    assert done.stdout.startswith("metric ")


def test_a_command_that_prints_a_result_hides_the_log_unless_its_level_is_set(pul_here, monkeypatch):
    """Prefect's handler is that of the terminal; its server has a handler of its own, which receives everything."""
    from prefect.logging.handlers import PrefectConsoleHandler

    from deployments.errors import print_only_warnings

    (handler,) = (handler for handler in logging.getLogger().handlers if isinstance(handler, PrefectConsoleHandler))
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "INFO")
    print_only_warnings()
    assert handler.level == logging.NOTSET
    monkeypatch.delenv("PREFECT_LOGGING_LEVEL")
    print_only_warnings()
    assert handler.level == logging.WARNING
