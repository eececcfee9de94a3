"""Runs of a deployment under `pul up`: cancelled as in Prefect's UI, or abandoned by a killed worker."""

import json
import os
import signal
import urllib.request

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.campaign, pytest.mark.timeout(3600)]
STEPS = ["pretrain", "extract-features-0-query", "cluster-1", "select-1", "fine-tune-1", "evaluate-1", "track-iteration-1", "fine-tune-2"]
TESTED_STEPS = STEPS if "PUL_FAULTS" in os.environ else ["pretrain", "fine-tune-1"]
STOP_TIMEOUT_SECONDS = 60  # an idle machine needs a few seconds


class Up:
    """`pul up` in a new folder, and the API of its Prefect server."""

    def __init__(self, start, folder):
        self.folder = folder
        self.process, (self.port, _) = start(folder)

    def request(self, path, **body):
        """Call the API: POST with a body, GET without."""
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def state(self, run):
        return self.request(f"/flow_runs/{run}")["state"]["type"]

    def set_state(self, run, kind, name):
        return self.request(f"/flow_runs/{run}/set_state", state={"type": kind, "name": name}, force=name == "AwaitingRetry")

    def steps(self, run):
        return {task["name"] for task in self.request("/task_runs/filter", flow_runs={"id": {"any_": [run]}})}

    def start_run(self, parameters):
        deployment = self.request("/deployments/name/pul/iterate")["id"]
        return self.request(f"/deployments/{deployment}/create_flow_run", parameters=parameters, state={"type": "SCHEDULED"})["id"]


@pytest.fixture(scope="module")
def running(pul_up, tmp_path_factory):
    up = Up(pul_up, tmp_path_factory.mktemp("project"))
    yield up
    if up.process.poll() is None:
        up.process.send_signal(signal.SIGINT)
    up.process.wait(120)


@pytest.fixture(scope="module")
def parameters(tiny, tiny_pair):
    """The same parameters as in the campaign's other runs."""
    return tiny | {"fine_tuning": tiny["fine_tuning"] | {"epochs": 2}, "source": str(tiny_pair[0]), "target": str(tiny_pair[1])}


@pytest.mark.fault(
    "cancelled at a step, as in Prefect's UI", "its process ends within seconds, MLflow shows KILLED; Retry ends with the same bytes"
)
def test_cancel_and_retry(running, parameters, undisturbed, run_folder, tried, processes, wait_until):
    run = running.start_run(parameters)
    for step in TESTED_STEPS:
        wait_until(
            lambda step=step: running.state(run) == "RUNNING" and step in running.steps(run)
        )  # an earlier attempt may have started the step
        running.set_state(run, "CANCELLING", "Cancelling")
        wait_until(lambda: not processes("PREFECT__FLOW_RUN_ID", run), seconds=STOP_TIMEOUT_SECONDS)
        wait_until(lambda: running.state(run) == "CANCELLED", seconds=STOP_TIMEOUT_SECONDS)
        wait_until(lambda: "RUNNING" not in {item.info.status for item in run_folder(running.folder).runs}, seconds=STOP_TIMEOUT_SECONDS)
        running.set_state(run, "SCHEDULED", "AwaitingRetry")
    tried(len(TESTED_STEPS))
    wait_until(lambda: running.state(run) == "COMPLETED", seconds=900)
    run_folder(running.folder).assert_equals(undisturbed)


@pytest.mark.fault(
    "kill -9 of the worker", "`the worker ended ...: start pul up again`; no flow run is left behind; pul resume continues the run"
)
def test_the_worker_is_killed(running, parameters, driver, run_folder, processes, wait_until):
    run = running.start_run(parameters | {"seed": 1})
    wait_until(lambda: "pretrain" in running.steps(run))
    (worker,) = (process for process in psutil.Process(running.process.pid).children() if "worker" in process.cmdline())
    worker.kill()
    assert running.process.wait(120) == 1
    assert "the worker ended with code -9" in (running.folder / "up.log").read_text()
    assert not processes("PREFECT__FLOW_RUN_ID", run)
    command = driver.start(running.folder, "resume")
    assert command.wait() == 0, command.log
    assert {item.info.status for item in run_folder(running.folder).parents} == {"FINISHED"}
