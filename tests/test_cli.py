"""The `pul` command: results are printed as text or JSON, and invalid input ends it with one line and exit code 1."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest

from pul_core.clustering.suggestion import MAX_DISTANCES
from tasks.store.artifacts import locate

PUL = Path(sys.executable).with_name("pul")


@pytest.fixture
def pul(tmp_path):
    """Run `pul` in an empty directory with a clean environment."""

    def run(*arguments, timeout=300, **environment):
        inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        clean = inherited | {"HOME": str(tmp_path), **environment}
        return subprocess.run([PUL, *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture
def pul_here(home, monkeypatch):
    """Run `pul` in this process, which has imported everything already, and return its exit code or error message."""
    from deployments.cli import main
    from tasks.tracking import runs as tracking

    monkeypatch.chdir(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    tracking.client.cache_clear()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pul", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    yield run
    tracking.client.cache_clear()


def assert_rejected(completed, *words):
    assert completed.returncode == 1, completed.stderr
    lines = [line for line in completed.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("pul: "), completed.stderr
    for word in words:
        assert word in lines[0]


def error_line(completed):
    """Return the one line in which a failed command reports its error."""
    assert completed.returncode == 1 and "Traceback" not in completed.stderr
    (line,) = [line for line in completed.stderr.splitlines() if line.startswith("pul: ")]
    return line


def table_of(text):
    """Return titles and rows of a printed table, cells stripped."""
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if " | " in line]
    return lines[0], lines[1:]


def test_help_names_every_command(pul):
    done = pul("--help")
    assert done.returncode == 0
    for command in ("demo", "run", "evaluate", "resume", "results", "up", "doctor", "gc", "data", "sweep", "suggest"):
        assert command in done.stdout


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
        (
            ["run", "--target", "{target}", "--source", "{source}", "--target-layout", "best"],
            ["unknown layout 'best'", "folder-per-identity"],
        ),
        (["run", "--target", "{target}", "--source", "{source}", "--source-pattern", "(?P<who>.)"], ["named groups", "identity"]),
        (["run", "--target", "{target}", "--source", "{source}", "--source-layout", "folder"], ["0 identities", "state the layout"]),
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
        (["purge", ".."], ["no run .."]),
        (["purge", "--identity", "7"], ["--data"]),
        (["resume", "nobody"], ["no run 'nobody'"]),
        (["run", "--target", "{target}", "--source", "{source}", "--source", "{crops}"], ["crops", "no identities"]),
        (["run", "--target", "{target}", "--original-model", "/nowhere/model.pth"], ["no model /nowhere/model.pth"]),
        (["evaluate", "nobody", "{target}"], ["no model nobody", "RUN/iteration=N"]),
        (["evaluate", "models:/nobody/1", "{target}"], ["models:/nobody/1"]),
        (["evaluate", "{weights}", "nowhere"], ["nowhere", "is not a folder"]),
        (["evaluate", "{weights}", "{one}"], ["no queries"]),
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


@pytest.mark.parametrize(("arguments", "word"), [(["run", "--target", "nowhere"], "is not a folder"), (["results"], "pul demo")])
def test_the_process_writes_that_line_to_stderr_and_ends_with_code_1(pul, arguments, word):
    assert_rejected(pul(*arguments), word)


def test_a_dry_run_estimates_and_does_nothing(pul, tiny_pair, tmp_path):
    options = ["--backbone", "resnet10t", "--weights", "random", "--size", "64x32", "--threads", "1", "--dry-run"]
    done = pul("run", "--source", str(tiny_pair[0]), "--target", str(tiny_pair[1]), *options)
    assert done.returncode == 0, done.stderr
    assert "36 source images of 6 people -> 36 target images" in done.stdout
    for word in ("source training", "an iteration", "disk", "memory"):
        assert word in done.stdout
    assert not (tmp_path / ".pul" / "runs").exists()


def test_a_dry_sweep_lists_its_runs_and_does_nothing(pul, tiny_pair, tmp_path):
    data = ["--source", str(tiny_pair[0]), "--target", str(tiny_pair[1]), "--threads", "1"]
    done = pul("sweep", *data, "--grid", "selection.min_similarity=0.8,0.9", "--seeds", "0,1", "--parallel", "3", "--dry-run")
    assert done.returncode == 0, done.stderr
    titles, rows = table_of(done.stdout)
    assert titles == ["run", "setting", "seed"]
    assert rows == [
        [str(number), f"selection.min_similarity={value}", seed]
        for number, (value, seed) in enumerate(itertools.product(("0.8", "0.9"), ("0", "1")), 1)
    ]
    assert done.stdout.splitlines()[-1] == "4 runs, 3 at once, after 2 source trainings that they share"
    assert not (tmp_path / ".pul" / "sweeps").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_prints_means_and_its_table_and_its_config_repeats_it(pul, tiny_pair, tiny, tmp_path):
    options = [f"--set={section}.{name}={value}" for section, values in tiny.items() for name, value in values.items()]
    data = ["--source", str(tiny_pair[0]), "--target", str(tiny_pair[1])]
    done = pul("sweep", *data, *options, "--set=stopping.max_iterations=1", "--seeds", "0,1", timeout=900)
    assert done.returncode == 0, done.stderr
    assert "±" in done.stdout and "(oracle)" in done.stdout
    (folder,) = (tmp_path / ".pul" / "sweeps").iterdir()
    assert str(folder / "children.parquet") in done.stdout
    again = pul("sweep", "--config", str(folder / "sweep.json"), "--json", timeout=900)
    assert again.returncode == 0, again.stderr
    table = json.loads(again.stdout)
    assert [(child["seed"], child["status"]) for child in table["children"]] == [(0, "finished"), (1, "finished")]
    assert table["means"][0]["seeds"] == 2
    assert sorted(path.name for path in (tmp_path / ".pul" / "runs").iterdir()) == sorted(child["run"] for child in table["children"])


@pytest.mark.slow
def test_a_run_without_a_server_prints_its_results_and_its_config_repeats_it(pul, tiny_pair, tiny, tmp_path):
    options = [f"--set={section}.{name}={value}" for section, values in tiny.items() for name, value in values.items()]
    done = pul("run", "--source", str(tiny_pair[0]), "--target", str(tiny_pair[1]), *options)
    assert done.returncode == 0, done.stderr
    titles, rows = table_of(done.stdout)
    assert titles == ["iteration", "reliable", "clusters", "rank-1", "mAP"]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    results = json.loads(pul("results", "--json").stdout)
    assert [row["iteration"] for row in results["iterations"]] == [0, 1, 2]
    assert results["iterations"][0]["reliable_set_size"] is None
    assert all(0 <= row["rank_1"] <= 1 and 0 <= row["mAP"] <= 1 for row in results["iterations"])
    again = pul("run", "--config", f".pul/runs/{results['run']}/config.json")
    assert again.returncode == 0, again.stderr
    assert json.loads(pul("results", "--json").stdout)["iterations"] == results["iterations"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pul"], "everything lies below .pul"
    assert "Traceback" not in done.stderr + again.stderr


@pytest.mark.slow
def test_a_model_has_equal_scores_by_each_of_its_names(pul, tiny_pair, tiny, tmp_path):
    options = [f"--set={section}.{name}={value}" for section, values in tiny.items() for name, value in values.items()]
    target = str(tiny_pair[1])
    assert pul("run", "--source", str(tiny_pair[0]), "--target", target, *options).returncode == 0
    iterations = json.loads(pul("results", "--json").stdout)
    (run,) = (tmp_path / ".pul" / "runs").iterdir()

    def scores_of(model, *options):
        done = pul("evaluate", str(model), target, "--threads=1", "--json", *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = scores_of(f"{run.name}/iteration=0")["plain"]
    expected = iterations["iterations"][0]
    assert {name: first[name] for name in ("rank_1", "mAP", "mINP")} == {name: expected[name] for name in ("rank_1", "mAP", "mINP")}
    registered = f"models:/pul {iterations['experiment']}/1"
    last = scores_of(run.name, "--rerank", "--ties", "expected")
    assert len(last["reranked"]["cmc"]) == 50
    assert pq.read_table(last["reranked"]["scores"]).column_names[:4] == ["row", "split", "ap", "ap_trapezoidal"]
    for name in (run / "iteration=2" / "model.safetensors", registered):
        assert scores_of(name, "--ties", "expected")["plain"] == last["plain"]
    halves = scores_of(run.name, "--protocol", "viper")
    assert sorted(set(pq.read_table(halves["plain"]["scores"])["split"].to_pylist())) == list(range(10))
    done = pul("evaluate", run.name, target, "--rerank", "--threads=1")
    titles, rows = table_of(done.stdout)
    assert titles == ["metric", "plain", "reranked"]
    assert ["rank-1", f"{100 * last['plain']['rank_1']:.1f} %", f"{100 * last['reranked']['rank_1']:.1f} %"] in rows
    assert "5 queries scored, 0 without a correct match left out" in done.stdout
    assert_rejected(pul("evaluate", f"{run.name}/iteration=9", target), "iteration=9", "iteration=2")
    cuhk = pul("evaluate", run.name, target, "--protocol", "cuhk03_old", "--threads=1")
    assert error_line(cuhk) == "pul: the protocol requires 100 identities in both query and gallery, got 5: choose another protocol"


@pytest.mark.slow
def test_a_suggestion_is_a_marked_table_or_json_or_an_error(pul, model, market, tmp_path):
    arguments = ("suggest", locate(model), str(market(tmp_path / "crops", range(1, 31))), "--threads=1")
    done = pul(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    suggestion = json.loads(done.stdout)
    assert list(suggestion) == ["model", "data", "max_distance", "num_clusters", "num_clusters_at", "curve"]
    assert [point["max_distance"] for point in suggestion["curve"]] == list(MAX_DISTANCES)
    assert 2 <= suggestion["num_clusters"] <= 90
    text = pul(*arguments).stdout
    assert text.count("<-") in (1, 2) and f"--num-clusters {suggestion['num_clusters']}" in text
    assert len(list(tmp_path.glob(".pul/artifacts/curve/*.parquet"))) == 1
    identical = tmp_path / "identical"
    identical.mkdir()
    image = next((tmp_path / "crops").rglob("*.jpg"))
    for number in range(12):
        shutil.copy(image, identical / f"{number}.jpg")
    failed = pul("suggest", locate(model), str(identical), "--threads=1")
    assert error_line(failed).startswith("pul: there is nothing to suggest")


@pytest.mark.slow
def test_a_run_that_fails_half_way_reports_why_in_one_line(pul, tiny_pair, tiny):
    options = [f"--set={section}.{name}={value}" for section, values in tiny.items() for name, value in values.items()]
    done = pul("run", "--source", str(tiny_pair[0]), "--target", str(tiny_pair[1]), *options, "--set=selection.min_similarity=1")
    assert "lower min_similarity" in error_line(done)
