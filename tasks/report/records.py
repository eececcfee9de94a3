"""Records of where the reports of a run were written, so that `pul purge` finds them: ``$PUL_HOME/runs/ID/reports.json``."""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from tasks.report.page import MARKER
from tasks.store.home import home
from tasks.tracking.client import delete_logged


class ReportRecord(NamedTuple):
    """A report: its file, and its copies in MLflow as pairs of an MLflow run id and a path in that run's artifacts."""

    file: str
    logged: list[tuple[str, str]]


def record_report(run_ids: list[str], record: ReportRecord) -> None:
    """Record a report in the folders of the runs that it shows."""
    for run_id in run_ids:
        known = [each for each in reports_of(run_id) if each.file != record.file]
        path = home() / "runs" / run_id / "reports.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps([each._asdict() for each in [*known, record]], indent=2) + "\n", encoding="utf-8")
        partial.replace(path)


def reports_of(run_id: str) -> list[ReportRecord]:
    """Return the reports that show a run."""
    try:
        entries: list[dict[str, Any]] = json.loads((home() / "runs" / run_id / "reports.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [ReportRecord(entry["file"], [(run, path) for run, path in entry["logged"]]) for entry in entries]


def delete_reports(run_id: str) -> list[Path]:
    """Delete the reports that show a run, with their copies in MLflow, and the record of them.

    A file is deleted only if it still is a report; one that was moved or copied elsewhere is not found.

    Returns:
        The deleted files; those that still exist afterwards could not be deleted.
    """
    deleted = []
    for report in reports_of(run_id):
        file = Path(report.file)
        if is_report(file):
            deleted.append(file)
            with contextlib.suppress(OSError):  # it stays in the list, and exists
                file.unlink()
        deleted += [copy for mlflow_run_id, path in report.logged if (copy := delete_logged(mlflow_run_id, path))]
    (home() / "runs" / run_id / "reports.json").unlink(missing_ok=True)
    return deleted


def is_report(file: Path) -> bool:
    """Return whether a file is a report of this project."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return f'<meta name="generator" content="{MARKER}">'.encode() in opened.read(2000)
