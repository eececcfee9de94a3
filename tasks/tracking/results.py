"""The results of a run, read from MLflow."""

from typing import Any

from pul_core.errors import DataError
from tasks.tracking.client import client, search_all_runs


def read_results(name: str | None) -> dict[str, Any]:
    """Read the iterations of a run from MLflow.

    Args:
        name: name of the run, or a prefix of its MLflow id; None selects the newest run.

    Returns:
        ``run`` (the name), ``status``, ``stop_reason``, ``experiment`` and ``iterations``: one dictionary of metrics per iteration, with
        scores as fractions. A metric that an iteration does not have is None.

    Raises:
        DataError: the run does not exist.
    """
    runs = search_all_runs("tags.`pul.kind` = 'run'", order_by=["attributes.start_time DESC"])
    matches = [run for run in runs if name is None or run.info.run_name == name or run.info.run_id.startswith(name)]
    if not matches:
        raise DataError(f"there is no run {name!r}" if name else "there are no runs yet: start one with `pul demo` or `pul run`")
    run = matches[0]
    iteration_runs = client().search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    metrics = {int(iteration.data.tags["pul.iteration"]): iteration.data.metrics for iteration in iteration_runs}
    names = sorted({key for values in metrics.values() for key in values if not key.startswith(("training_", "seconds_"))})
    return {
        "run": run.info.run_name,
        "status": run.info.status.lower(),
        "stop_reason": run.data.tags.get("pul.stop_reason"),
        "experiment": client().get_experiment(run.info.experiment_id).name,
        "iterations": [
            {"reliable_set_size": None, "iteration": number, **{key: metrics[number].get(key) for key in names}}
            for number in sorted(metrics)
        ],
    }
