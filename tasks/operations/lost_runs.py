"""Runs whose process is gone (killed, out of memory, machine switched off) are closed in MLflow and in Prefect: nothing "runs" for ever."""

import json
import socket
from typing import Any
from uuid import UUID

import psutil
from mlflow.entities import Run
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from pul_core.errors import DataError
from tasks.store.home import home
from tasks.tracking.client import client
from tasks.tracking.results import read_results
from tasks.tracking.runs import PROCESS, close_run, process_tag


def lost_runs() -> list[Run]:
    """Return the MLflow runs that are open although the process that wrote them is gone; other machines' are not judged."""
    return [run for run in _running() if _is_gone(run.data.tags.get(PROCESS))]


def open_runs() -> list[str]:
    """Return the names of all runs that are open in MLflow."""
    return [str(run.info.run_name) for run in _running()]


def _running() -> list[Run]:
    experiments = [experiment.experiment_id for experiment in client().search_experiments()]
    return list(client().search_runs(experiments, "attributes.status = 'RUNNING' and tags.`pul.kind` = 'run'"))


def close_lost_runs(*, prefect: bool) -> list[str]:
    """Close every lost run and return their names.

    Args:
        prefect: tell Prefect's server too; it has to be reachable.
    """
    lost = lost_runs()
    for run in lost:
        close_run(run.data.tags["pul.flow_run_id"], "FAILED")
        if prefect:
            _crash(UUID(run.data.tags["pul.flow_run_id"]))
    return [str(run.info.run_name) for run in lost]


def config_to_resume(name: str | None) -> tuple[str, dict[str, Any]]:
    """Return name and parameters of a run that did not finish.

    Args:
        name: of the run; None takes the newest one.

    Raises:
        DataError: there is no such run, it is finished, it still runs, or its config is gone.
    """
    found = read_results(name)
    name = str(found["run"])
    if found["status"] == "finished":
        raise DataError(f"run {name} is finished: see pul results {name}")
    if found["status"] == "running" and name not in [run.info.run_name for run in lost_runs()]:
        raise DataError(f"run {name} is still running: stop it first")
    config = home() / "runs" / name / "config.json"
    if not config.is_file():
        raise DataError(f"{config} is missing: start the run again with pul run")
    return name, json.loads(config.read_text(encoding="utf-8"))


def _is_gone(tag: str | None) -> bool:
    if tag is None or tag.split(" ")[0] != socket.gethostname():
        return False
    try:
        return process_tag(int(tag.split(" ")[1])) != tag
    except psutil.NoSuchProcess:
        return True


def _crash(flow_run_id: UUID) -> None:
    with get_client(sync_client=True) as server:
        try:
            state = server.read_flow_run(flow_run_id).state
        except ObjectNotFound:
            return
        if state and state.type in (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING):
            gone: Any = Crashed(message="The process of this run is gone. Press Retry: finished steps come from the cache.")
            server.set_flow_run_state(flow_run_id, gone, force=True)
