"""The command as a user types it: bad input is one line and exit code 1, nothing half-written stays."""

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
        clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **environment}
        return subprocess.run([PUL, *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture
def pul_here(home, monkeypatch):
    """Run `pul` in this process, which has imported everything already, and return its complaint."""
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


def refused(done, *words):
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("pul: "), done.stderr
    for word in words:
        assert word in lines[0]


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
        (["run", "--target", "{target}", "--source", "{source}", "--min-similarity", "2"], ["min_similarity", "less than or equal to 1"]),
        (["run", "--target", "{target}", "--source", "{source}", "--recipe", "best"], ["no recipe 'best'", "released-code"]),
        (["run", "--target", "{target}", "--source", "{source}", "--size", "big"], ["--size", "256x128"]),
        (["run", "--target", "{target}", "--source", "{source}", "--set", "x"], ["--set"]),
        (["run", "--target", "{target}", "--source", "{source}", "--set", "nonsense.epochs=2"], ["no parameter 'nonsense'"]),
        (["run", "--target", "{target}", "--source", "{source}", "--target-layout", "best"], ["no layout 'best'", "folder-per-identity"]),
        (["run", "--target", "{target}", "--source", "{source}", "--source-pattern", "(?P<who>.)"], ["named groups", "identity"]),
        (["run", "--target", "{target}", "--source", "{source}", "--source-layout", "folder"], ["0 identities", "state the layout"]),
        (["run", "--config", "none.json"], ["none.json"]),
        (["sweep", "--target", "{target}"], ["--source", "--original-model"]),
        (["sweep", "--source", "{source}"], ["a sweep needs a target"]),
        (["sweep", "--target", "nowhere", "--source", "{source}"], ["nowhere", "is not a folder"]),
        (["sweep", "--target", "{target}", "--grid", "selection.lambda=1"], ["no parameter 'selection.lambda'", "min_similarity"]),
        (["sweep", "--target", "{target}", "--grid", "selection.min_similarity"], ["--grid wants name=value,value"]),
        (
            ["sweep", "--target", "{target}", "--grid", "selection.min_similarity=0.8,high"],
            ["selection.min_similarity=high", "valid number"],
        ),
        (["sweep", "--target", "{target}", "--seeds", "0,0"], ["children 1 and 2", "same run"]),
        (["sweep", "--target", "{target}", "--source", "{source}", "--grid", "clustering.num_clusters=6,99"], ["num_clusters is 99", "36"]),
        (["data", "crop", "nowhere", "--out", "crops"], ["nowhere is not a folder"]),
        (["data", "extract", "nowhere.mat", "--out", "cuhk03"], ["nowhere.mat is no file"]),
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
        (["evaluate", "{weights}", "{target}", "--protocol", "best"], ["no protocol 'best'", "cross_camera"]),
        (["evaluate", "{weights}", "{target}", "--ties", "lucky"], ["no ties 'lucky'", "expected"]),
        (["suggest", "nobody", "{target}"], ["no model nobody", "RUN/iteration=N"]),
        (["suggest", "{weights}", "nowhere"], ["nowhere", "is not a folder"]),
        (["suggest", "{weights}", "{one}"], ["6 training images", "10 are the least"]),
        (["suggest", "{weights}", "{target}", "--size", "big"], ["--size", "256x128"]),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(pul_here, tiny_pair, market, tmp_path_factory, arguments, words):
    one = market(tmp_path_factory.mktemp("one"), range(1, 2))
    weights = one / "weights.safetensors"
    weights.touch()
    crops = one.with_name("crops")
    shutil.copytree(one / "bounding_box_train", crops, dirs_exist_ok=True)
    names = {"source": tiny_pair[0], "target": tiny_pair[1], "one": one, "weights": weights, "crops": crops}
    complaint = pul_here(*(argument.format(**names) for argument in arguments))
    assert complaint.startswith("pul: ") and "\n" not in complaint
    for word in words:
        assert word in complaint


@pytest.mark.parametrize(("arguments", "word"), [(["run", "--target", "nowhere"], "is not a folder"), (["results"], "pul demo")])
def test_the_process_ends_with_that_line_and_code_1(pul, arguments, word):
    refused(pul(*arguments), word)


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
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[:2] == [["1", "selection.min_similarity=0.8", "seed", "0"], ["2", "selection.min_similarity=0.8", "seed", "1"]]
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
    found = json.loads(again.stdout)
    assert [(child["seed"], child["status"]) for child in found["children"]] == [(0, "finished"), (1, "finished")]
    assert found["means"][0]["seeds"] == 2
    assert sorted(path.name for path in (tmp_path / ".pul" / "runs").iterdir()) == sorted(child["run"] for child in found["children"])


@pytest.mark.slow
def test_a_run_without_a_server_then_its_results_and_its_config_again(pul, tiny_pair, tiny, tmp_path):
    options = [f"--set={section}.{name}={value}" for section, values in tiny.items() for name, value in values.items()]
    done = pul("run", "--source", str(tiny_pair[0]), "--target", str(tiny_pair[1]), *options)
    assert done.returncode == 0, done.stderr
    heading = next(line for line in done.stdout.splitlines() if line.startswith("iteration"))
    assert [title.strip() for title in heading.split("|")] == ["iteration", "reliable", "clusters", "rank-1", "mAP"]
    found = json.loads(pul("results", "--json").stdout)
    assert [row["iteration"] for row in found["iterations"]] == [0, 1, 2]
    assert found["iterations"][0]["reliable_set_size"] is None
    assert all(0 <= row["rank_1"] <= 1 and 0 <= row["mAP"] <= 1 for row in found["iterations"])
    again = pul("run", "--config", f".pul/runs/{found['run']}/config.json")
    assert again.returncode == 0, again.stderr
    assert json.loads(pul("results", "--json").stdout)["iterations"] == found["iterations"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pul"], "everything lies below .pul"
    assert "Traceback" not in done.stderr + again.stderr


@pytest.mark.slow
def test_models_of_a_run_are_evaluated_by_every_name_they_have(pul, tiny_pair, tiny, tmp_path):
    options = [f"--set={section}.{name}={value}" for section, values in tiny.items() for name, value in values.items()]
    target = str(tiny_pair[1])
    assert pul("run", "--source", str(tiny_pair[0]), "--target", target, *options).returncode == 0
    iterations = json.loads(pul("results", "--json").stdout)
    (run,) = (tmp_path / ".pul" / "runs").iterdir()

    def figures(model, *more):
        done = pul("evaluate", str(model), target, "--threads=1", "--json", *more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = figures(f"{run.name}/iteration=0")["plain"]
    expected = iterations["iterations"][0]
    assert {name: first[name] for name in ("rank_1", "mAP", "mINP")} == {name: expected[name] for name in ("rank_1", "mAP", "mINP")}
    registered = f"models:/pul {iterations['experiment']}/1"
    last = figures(run.name, "--rerank", "--ties", "expected")
    assert len(last["reranked"]["cmc"]) == 50
    assert pq.read_table(last["reranked"]["scores"]).column_names[:4] == ["row", "split", "ap", "ap_trapezoidal"]
    for name in (run / "iteration=2" / "model.safetensors", registered):
        assert figures(name, "--ties", "expected")["plain"] == last["plain"]
    halves = figures(run.name, "--protocol", "viper")
    assert sorted(set(pq.read_table(halves["plain"]["scores"])["split"].to_pylist())) == list(range(10))
    done = pul("evaluate", run.name, target, "--rerank", "--threads=1")
    assert done.stdout.split()[:2] == ["plain", "reranked"]
    assert "5 queries scored, 0 without a right answer left out" in done.stdout
    refused(pul("evaluate", f"{run.name}/iteration=9", target), "iteration=9", "iteration=2")
    cuhk = pul("evaluate", run.name, target, "--protocol", "cuhk03_old", "--threads=1")
    assert [line for line in cuhk.stderr.splitlines() if line.startswith("pul: ")] == [
        "pul: the protocol needs 100 identities in both query and gallery, but there are 5"
    ]
    assert "Traceback" not in cuhk.stderr


@pytest.mark.slow
def test_a_suggestion_is_a_marked_table_json_for_programs_or_one_line(pul, model, market, tmp_path):
    arguments = ("suggest", locate(model), str(market(tmp_path / "crops", range(1, 31))), "--threads=1")
    done = pul(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == ["model", "data", "max_distance", "num_clusters", "num_clusters_at", "curve"]
    assert [point["max_distance"] for point in found["curve"]] == list(MAX_DISTANCES)
    assert 2 <= found["num_clusters"] <= 90
    shown = pul(*arguments).stdout
    assert shown.count("<-") in (1, 2) and f"--num-clusters {found['num_clusters']}" in shown
    assert len(list(tmp_path.glob(".pul/artifacts/curve/*.parquet"))) == 1
    alike = tmp_path / "alike"
    alike.mkdir()
    image = next((tmp_path / "crops").rglob("*.jpg"))
    for number in range(12):
        shutil.copy(image, alike / f"{number}.jpg")
    nothing = pul("suggest", locate(model), str(alike), "--threads=1")
    assert nothing.returncode == 1
    (complaint,) = [line for line in nothing.stderr.splitlines() if line.startswith("pul: ")]
    assert complaint.startswith("pul: there is nothing to suggest") and "Traceback" not in nothing.stderr


@pytest.mark.slow
def test_a_run_that_fails_half_way_says_why_in_a_line(pul, tiny_pair, tiny):
    options = [f"--set={section}.{name}={value}" for section, values in tiny.items() for name, value in values.items()]
    done = pul("run", "--source", str(tiny_pair[0]), "--target", str(tiny_pair[1]), *options, "--set=selection.min_similarity=1")
    assert done.returncode == 1
    (complaint,) = [line for line in done.stderr.splitlines() if line.startswith("pul: ")]
    assert "lower min_similarity" in complaint
    assert "Traceback" not in done.stderr
