"""Lost runs: runs whose process has died (killed, out of memory, power failure) but that MLflow and Prefect still show as running."""

import os
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
from tasks.store.config import read_config
from tasks.store.home import home
from tasks.tracking.client import search_all_runs
from tasks.tracking.results import read_results
from tasks.tracking.runs import PROCESS_TAG, close_run, process_key


def lost_runs() -> list[Run]:
    """Return the MLflow runs that are open although their process on this machine is gone. Runs of other machines are not checked."""
    return [run for run in _open_runs() if _is_gone(run.data.tags.get(PROCESS_TAG))]


def running_runs() -> list[str]:
    """Return the names of the MLflow runs that are open and not lost."""
    lost = {run.info.run_name for run in lost_runs()}
    return [str(run.info.run_name) for run in _open_runs() if run.info.run_name not in lost]


def _open_runs() -> list[Run]:
    return search_all_runs("attributes.status = 'RUNNING' and tags.`pul.kind` = 'run'")


def close_lost_runs(*, prefect: bool) -> list[str]:
    """Close the lost runs in MLflow and return their names.

    Args:
        prefect: also mark their flow runs as crashed; requires that Prefect's server can be reached.
    """
    runs = lost_runs()
    for run in runs:
        flow_run_id = run.data.tags["pul.flow_run_id"]
        close_run(flow_run_id, "FAILED")
        if prefect:
            _mark_as_crashed(UUID(flow_run_id))
    return [str(run.info.run_name) for run in runs]


def config_to_resume(name: str | None) -> tuple[str, dict[str, Any]]:
    """Return the name and the parameters of an unfinished run.

    Args:
        name: name of the run; None selects the newest run.

    Raises:
        DataError: the run does not exist, is finished or running, or its config.json is missing.
    """
    results = read_results(name)
    name = str(results["run"])
    if results["status"] == "finished":
        raise DataError(f"run {name} is finished: pul results {name} shows its results")
    if results["status"] == "running" and name not in [run.info.run_name for run in lost_runs()]:
        raise DataError(f"run {name} is still running: stop it first")
    config = home() / "runs" / name / "config.json"
    if not config.is_file():
        raise DataError(f"{config} is missing: start the run again with pul run")
    return name, read_config(config)[0]


def _is_gone(key: str | None) -> bool:
    if key is None or key.split(" ")[0] != socket.gethostname():
        return False
    pid = int(key.split(" ")[1])
    try:
        return process_key(pid) != key
    except psutil.AccessDenied:
        return False
    except psutil.NoSuchProcess:
        return not _is_hidden(pid)


def _is_hidden(pid: int) -> bool:
    """Return whether a process exists that psutil cannot see: another user's, where /proc is mounted with hidepid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return False


def _mark_as_crashed(flow_run_id: UUID) -> None:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(flow_run_id).state
        except ObjectNotFound:
            return
        if state and state.type in (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING):
            crashed: Any = Crashed(message="The process of this run is gone. Retry continues it; finished steps come from the cache.")
            client.set_flow_run_state(flow_run_id, crashed, force=True)
