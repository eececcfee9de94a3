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
from tasks.tracking.results import IS_RUN, find_run, run_id_of
from tasks.tracking.runs import PROCESS_TAG, close_run, process_key


def lost_runs() -> list[Run]:
    """Return the MLflow runs that are open although their process on this machine is gone. Runs of other machines are not checked."""
    return [run for run in _open_runs() if is_lost(run)]


def is_lost(run: Run) -> bool:
    """Return whether an MLflow run is open although its process, on this machine, is gone."""
    return run.info.status == "RUNNING" and _is_gone(run.data.tags.get(PROCESS_TAG))


def running_runs() -> list[str]:
    """Return the ids of the runs that are open in MLflow and not lost."""
    return [run_id_of(run) for run in _open_runs() if not is_lost(run)]


def _open_runs() -> list[Run]:
    return search_all_runs(f"attributes.status = 'RUNNING' and {IS_RUN}")


def close_lost_runs(*, prefect: bool) -> list[str]:
    """Close the lost runs in MLflow and return their ids.

    Args:
        prefect: also mark their flow runs as crashed; requires that Prefect's server can be reached.
    """
    runs = lost_runs()
    for run in runs:
        flow_run_id = run.data.tags["pul.flow_run_id"]
        close_run(flow_run_id, "FAILED")
        if prefect:
            _mark_as_crashed(UUID(flow_run_id))
    return [run_id_of(run) for run in runs]


def config_to_resume(reference: str | None) -> tuple[str, dict[str, Any]]:
    """Return the id and the parameters of an unfinished run.

    Args:
        reference: see `tasks.tracking.results.find_run`; None selects the newest run.

    Raises:
        DataError: the run does not exist, is finished or running, or its config.json is missing, or several runs can be meant.
    """
    run = find_run(reference)
    run_id = run_id_of(run)
    if run.info.status == "FINISHED":
        raise DataError(f"run {run_id} is finished: pul results {run_id} shows its results")
    if run.info.status == "RUNNING" and not is_lost(run):
        raise DataError(f"run {run_id} is still running: stop it first")
    config = home() / "runs" / run_id / "config.json"
    if not config.is_file():
        raise DataError(f"{config} is missing: start the run again with pul run")
    return run_id, read_config(config)[0]


def _is_gone(key: str | None) -> bool:
    if key is None or key.split(" ")[0] != socket.gethostname():
        return False
    pid = int(key.split(" ")[1])
    try:
        return process_key(pid) != key
    except psutil.Error:
        return not _exists(pid)


def _exists(pid: int) -> bool:
    """Return whether a process exists, even one that psutil cannot see, where /proc is mounted with hidepid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def _mark_as_crashed(flow_run_id: UUID) -> None:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(flow_run_id).state
        except ObjectNotFound:
            return
        if state and state.type in (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING):
            crashed: Any = Crashed(message="The process of this run is gone. Retry continues it; finished steps come from the cache.")
            client.set_flow_run_state(flow_run_id, crashed, force=True)
