"""A run's iterations, read back from MLflow."""

from typing import Any

from pul_core.errors import DataError
from tasks.tracking.client import client


def read_results(name: str | None) -> dict[str, Any]:
    """Return a run's iterations from MLflow: metrics by name, as fractions; None where an iteration has none.

    Args:
        name: a run's name or the beginning of its MLflow id; None takes the newest run.

    Raises:
        DataError: there is no such run.
    """
    experiments = [experiment.experiment_id for experiment in client().search_experiments()]
    runs = client().search_runs(experiments, "tags.`pul.kind` = 'run'", order_by=["attributes.start_time DESC"])
    found = [run for run in runs if name is None or run.info.run_name == name or run.info.run_id.startswith(name)]
    if not found:
        raise DataError(f"there is no run {name!r}" if name else "there is no run yet: start one with `pul demo` or `pul run`")
    run = found[0]
    children = client().search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    by_number = sorted((int(child.data.tags["pul.iteration"]), child.data.metrics) for child in children)
    names = sorted({key for _, metrics in by_number for key in metrics if not key.startswith(("training_", "seconds_"))})
    iterations = [{"iteration": number, **{key: metrics.get(key) for key in names}} for number, metrics in by_number]
    stopped = run.data.tags.get("pul.stop_reason")
    status = {"status": run.info.status.lower(), "stop_reason": stopped, "experiment": client().get_experiment(run.info.experiment_id).name}
    return {"run": run.info.run_name, **status, "iterations": [{"reliable_set_size": None, **row} for row in iterations]}
