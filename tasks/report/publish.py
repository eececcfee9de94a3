"""Writes a report to a file, logs it to MLflow as an artifact of its runs, and links it from their pages in Prefect."""

import os
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate

from pul_core.errors import UserError
from tasks.report.records import ReportRecord, is_report, record_report
from tasks.report.run_data import RunData
from tasks.tracking.client import client, ui_url

FOLDER = "report"  # in the artifacts of an MLflow run
ARTIFACT_KEY = "pul-report"


def write_report(file: Path, page: str) -> None:
    """Write a report, completely or not at all.

    Raises:
        UserError: there is another file of this name, or it cannot be written.
    """
    if file.exists() and not is_report(file):
        raise UserError(f"{file} exists and is not a report: choose another file")
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{file} cannot be written ({error.strerror}): choose another file, or free some space") from error


def log_report(runs: list[RunData], file: Path, page: str) -> None:
    """Log a report to the MLflow run of each run that it shows, and record where it is."""
    name = f"{FOLDER}/report.html" if len(runs) == 1 else f"{FOLDER}/{file.name}"
    record_report([run.id for run in runs], ReportRecord(str(file), [(run.mlflow_run_id, name) for run in runs]))
    for run in runs:
        client().log_text(run.mlflow_run_id, page, name)


def link_report(runs: list[RunData], file: Path) -> None:
    """Add a link to a report to the flow run of each run in Prefect."""
    name = "report.html" if len(runs) == 1 else file.name
    with get_client(sync_client=True) as prefect:
        for run in runs:
            if run.flow_run_id is None:
                continue
            page = f"{ui_url()}/#/experiments/{run.experiment_id}/runs/{run.mlflow_run_id}/artifacts/{FOLDER}/{name}"
            link = f"[Report of run {run.id}]({page})" if ui_url() else f"The report of run {run.id} is in MLflow: `{FOLDER}/{name}`"
            text = f"{link}\n\nThe same file: `{file}`"
            prefect.create_artifact(
                ArtifactCreate(key=ARTIFACT_KEY, type="markdown", data=text, description="Report", flow_run_id=UUID(run.flow_run_id))
            )
