"""The folders of runs, ``$PUL_HOME/runs/ID``, and the rule by which a run is found: its id, its name if no other run has it, or a prefix.

Names are labels: Prefect draws them from a list of words, and *Custom run* lets people repeat one. The id never changes and is never
repeated: it consists of the name and eight digits of the id of the flow run that created the run.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from pul_core.errors import DataError
from tasks.store.home import home

MAX_LISTED = 10
MIN_PREFIX = 4  # characters: a shorter text is not taken for the beginning of an id


def safe_run_name(text: str) -> str:
    """Turn a flow run's name, which can be any text, into a run name that is safe as a folder name and in a shell.

    Example:
        >>> safe_run_name("amber-fox"), safe_run_name("../../x"), safe_run_name("a;rm -rf $(id)"), safe_run_name("..")
        ('amber-fox', 'x', 'a-rm-rf-id', 'run')
    """
    return re.sub(r"[^\w.]+", "-", text, flags=re.ASCII).strip("-.")[:100] or "run"


def new_run_id(name: str, flow_run_id: str) -> str:
    """Return the id of a new run.

    Args:
        name: the name of the run.
        flow_run_id: the id of the flow run that creates it. Its last digits are used, because the first ones count the time.

    Example:
        >>> new_run_id("amber-fox", "0195d3f2-8a51-7c39-8003-d44a1f2e3d4c")
        'amber-fox-1f2e3d4c'
    """
    return f"{name}-{flow_run_id[-8:]}"


def matching_ids(reference: str, names: Mapping[str, str]) -> list[str]:
    """Return the ids of the runs that a user can mean: the run with this id, else those with this name, else those whose id starts with it.

    Args:
        reference: what the user wrote.
        names: the name of each run by its id.

    Example:
        >>> names = {"baseline-1f2e3d4c": "baseline", "baseline-2-aa2e3d4c": "baseline-2", "amber-fox-bb2e3d4c": "amber-fox"}
        >>> [matching_ids(reference, names) for reference in ("baseline", "amber-fox-b", "base", "baseline-1f2e3d4c")]
        [['baseline-1f2e3d4c'], ['amber-fox-bb2e3d4c'], ['baseline-1f2e3d4c', 'baseline-2-aa2e3d4c'], ['baseline-1f2e3d4c']]
    """
    if reference in names:
        return [reference]
    if "/" in reference or not any(character.isalnum() for character in reference):
        return []
    name = safe_run_name(reference)
    of_this_name = [run_id for run_id in names if names[run_id] == name]
    return of_this_name or [run_id for run_id in names if len(reference) >= MIN_PREFIX and run_id.startswith(reference)]


def find_run_folder(reference: str) -> Path | None:
    """Return the folder of a run, given by its id, its name or a prefix of its id; None if there is no such run on this disk.

    Raises:
        DataError: several runs can be meant.
    """
    folders = {folder.name: folder for folder in (home() / "runs").glob("*") if folder.is_dir()}
    run_ids = matching_ids(reference, {run_id: str(_record(folder).get("name", run_id)) for run_id, folder in folders.items()})
    if len(run_ids) > 1:
        raise ambiguous(reference, {run_id: _describe(folders[run_id]) for run_id in run_ids})
    return folders[run_ids[0]] if run_ids else None


def create_run_folder(run_id: str, name: str, flow_run_id: str) -> Path:
    """Return the folder of a run; a new one gets run.json: the run's id, its name, the flow run that created it and when."""
    folder = home() / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.json").exists():
        record = {"id": run_id, "name": name, "flow_run_id": flow_run_id, "started": format_time(datetime.now())}
        (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


def ambiguous(reference: str, runs: Mapping[str, str]) -> DataError:
    """Return the error for a reference that fits several runs.

    Args:
        reference: what the user wrote.
        runs: start time and status of each of these runs, by its id.

    Example:
        >>> str(ambiguous("baseline", {"baseline-1f2e3d4c": "09:00, finished", "baseline-aa2e3d4c": "09:05, failed"}))
        "'baseline' fits 2 runs: give the id of one: baseline-1f2e3d4c (09:00, finished), baseline-aa2e3d4c (09:05, failed)"
    """
    listed = ", ".join(f"{run_id} ({described})" for run_id, described in list(runs.items())[:MAX_LISTED])
    more = f", and {len(runs) - MAX_LISTED} more" if len(runs) > MAX_LISTED else ""
    return DataError(f"{reference!r} fits {len(runs)} runs: give the id of one: {listed}{more}")


def format_time(time: datetime) -> str:
    """Return a local time as text."""
    return time.isoformat(" ", "seconds")


def _record(folder: Path) -> dict[str, str]:
    """Return a folder's run.json; empty for a run of an older version, whose id is its name, or if the file is damaged."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _describe(folder: Path) -> str:
    status = "finished" if (folder / "iterations.parquet").exists() else "not finished"
    return f"{_record(folder).get('started', 'start unknown')}, {status}"
