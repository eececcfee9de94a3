"""What is done to a run, and that it ends in the same bytes all the same. `make test-faults` tries more of each (PUL_FAULTS=N)."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PUL = Path(sys.executable).with_name("pul")
KILLS = int(os.environ.get("PUL_FAULTS", "1"))


def environment(home):
    return {"PATH": os.environ["PATH"], "HOME": str(home)}


def start(home, command, log="run.log"):
    with (home / log).open("ab") as file:
        return subprocess.Popen(command, cwd=home, env=environment(home), stdout=file, stderr=file, start_new_session=True)


def artifacts(home):
    """Names of artifacts are digests of their content."""
    return {str(path.relative_to(home)) for path in (home / ".pul").glob("artifacts/*/*")}


def results(home):
    done = subprocess.run([PUL, "results", "--json"], cwd=home, env=environment(home), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def command(tiny, tiny_pair):
    sections = tiny | {"fine_tuning": tiny["fine_tuning"] | {"epochs": 3}, "pretraining": tiny["pretraining"] | {"epochs": 4}}
    options = [f"--set={section}.{name}={value}" for section, values in sections.items() for name, value in values.items()]
    return [PUL, "run", "--source", str(tiny_pair[0]), "--target", str(tiny_pair[1]), *options]


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    """An uninterrupted run: its artifacts, its metrics and how long it took."""
    home = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    assert start(home, command).wait(300) == 0, (home / "run.log").read_text()
    return artifacts(home), results(home)["iterations"], time.monotonic() - started


def statuses(home):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/.pul/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return client, runs


@pytest.mark.timeout(1800)
def test_killed_anywhere_and_started_again_a_run_ends_in_the_same_bytes(command, undisturbed, tmp_path):
    wanted, iterations, seconds = undisturbed
    rng = random.Random(int(os.environ.get("PUL_FAULTS_SEED", "0")))
    for number in range(KILLS):
        home = tmp_path / str(number)
        home.mkdir()
        process = start(home, command)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.2, 0.95) * seconds)
        process.kill()
        process.wait()
        assert start(home, command).wait(300) == 0, (home / "run.log").read_text()
        assert_same(home, wanted, iterations)


@pytest.mark.timeout(900)
def test_resume_goes_on_in_the_same_run(command, undisturbed, tmp_path):
    wanted, iterations, _ = undisturbed
    process = start(tmp_path, command)
    wait_for(process, tmp_path, "'cluster-2'")
    process.kill()
    process.wait()
    name = results(tmp_path)["run"]
    assert start(tmp_path, [PUL, "resume"]).wait(300) == 0, (tmp_path / "run.log").read_text()
    assert results(tmp_path)["run"] == name
    assert_same(tmp_path, wanted, iterations)
    parents = [run for run in statuses(tmp_path)[1] if run.data.tags["pul.kind"] == "run"]
    assert [run.info.status for run in parents] == ["FINISHED"]
    again = subprocess.run([PUL, "resume"], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (again.returncode, f"run {name} is finished" in again.stderr) == (1, True)


def wait_for(process, home, words):
    deadline = time.monotonic() + 300
    while words not in (home / "run.log").read_text():
        assert time.monotonic() < deadline and process.poll() is None, (home / "run.log").read_text()
        time.sleep(0.1)


def assert_same(home, wanted, iterations):
    assert artifacts(home) == wanted
    assert results(home)["iterations"] == iterations
    client, runs = statuses(home)
    assert "RUNNING" not in {run.info.status for run in runs}
    for run in runs:
        for name in run.data.metrics:
            history = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
            assert len(history) == len(set(history)), f"{name} stands twice"
    assert not list((home / ".pul").glob("checkpoints/*"))


@pytest.mark.timeout(600)
def test_sigterm_closes_the_run_and_leaves_no_process(command, tmp_path):
    process = start(tmp_path, command)
    wait_for(process, tmp_path, "'pretrain'")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert "RUNNING" not in {run.info.status for run in statuses(tmp_path)[1]}
    assert not left_on(tmp_path)


def left_on(home):
    """Processes that work on a home."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PUL_HOME") == str(home / ".pul"):
                found.append(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
