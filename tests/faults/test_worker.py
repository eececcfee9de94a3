"""Runs of a deployment under `pul up`: cancelled as from Prefect's UI, and left alone by a worker that is killed."""

import json
import os
import signal
import urllib.request

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.campaign, pytest.mark.timeout(3600)]
STEPS = ["pretrain", "extract-features-0-query", "cluster-1", "select-1", "fine-tune-1", "evaluate-1", "track-iteration-1", "fine-tune-2"]
TRIED = STEPS if "PUL_FAULTS" in os.environ else ["pretrain", "fine-tune-1"]
GONE_SECONDS = 60  # on a busy machine; a few on a quiet one


class Up:
    """`pul up` in a folder of its own, and its API."""

    def __init__(self, start, folder):
        self.folder = folder
        self.process, (self.port, _) = start(folder)

    def ask(self, path, **body):
        """Get an answer of the API; post the body if there is one."""
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def state(self, run):
        return self.ask(f"/flow_runs/{run}")["state"]["type"]

    def set_state(self, run, kind, name):
        return self.ask(f"/flow_runs/{run}/set_state", state={"type": kind, "name": name}, force=name == "AwaitingRetry")

    def steps(self, run):
        return {task["name"] for task in self.ask("/task_runs/filter", flow_runs={"id": {"any_": [run]}})}

    def begin(self, parameters):
        deployment = self.ask("/deployments/name/pul/iterate")["id"]
        return self.ask(f"/deployments/{deployment}/create_flow_run", parameters=parameters, state={"type": "SCHEDULED"})["id"]


@pytest.fixture(scope="module")
def running(pul_up, tmp_path_factory):
    started = Up(pul_up, tmp_path_factory.mktemp("project"))
    yield started
    if started.process.poll() is None:
        started.process.send_signal(signal.SIGINT)
    started.process.wait(120)


@pytest.fixture(scope="module")
def parameters(tiny, tiny_pair):
    """Those of the campaign's other runs."""
    return tiny | {"fine_tuning": tiny["fine_tuning"] | {"epochs": 2}, "source": str(tiny_pair[0]), "target": str(tiny_pair[1])}


@pytest.mark.fault(
    "cancel at a step, as from Prefect's UI", "its process is gone in seconds, MLflow says killed; Retry ends in the same bytes"
)
def test_cancel_and_retry(running, parameters, undisturbed, left, tried, processes, wait_until):
    run = running.begin(parameters)
    for step in TRIED:
        wait_until(lambda step=step: running.state(run) == "RUNNING" and step in running.steps(run))  # an earlier attempt may have begun it
        running.set_state(run, "CANCELLING", "Cancelling")
        wait_until(lambda: not processes("PREFECT__FLOW_RUN_ID", run), seconds=GONE_SECONDS)
        wait_until(lambda: running.state(run) == "CANCELLED", seconds=GONE_SECONDS)
        wait_until(lambda: "RUNNING" not in {found.info.status for found in left(running.folder).runs}, seconds=GONE_SECONDS)
        running.set_state(run, "SCHEDULED", "AwaitingRetry")
    tried(len(TRIED))
    wait_until(lambda: running.state(run) == "COMPLETED", seconds=900)
    left(running.folder).assert_like(undisturbed)


@pytest.mark.fault("kill -9 of the worker", "`the worker ended ...: start pul up again`; nothing runs on without it; pul resume goes on")
def test_the_worker_is_killed(running, parameters, driver, left, processes, wait_until):
    run = running.begin(parameters | {"seed": 1})
    wait_until(lambda: "pretrain" in running.steps(run))
    (worker,) = (process for process in psutil.Process(running.process.pid).children() if "worker" in process.cmdline())
    worker.kill()
    assert running.process.wait(120) == 1
    assert "the worker ended with code -9" in (running.folder / "up.log").read_text()
    assert not processes("PREFECT__FLOW_RUN_ID", run)
    command = driver.start(running.folder, "resume")
    assert command.wait() == 0, command.log
    assert {found.info.status for found in left(running.folder).parents} == {"FINISHED"}
