"""The results of runs, read from MLflow."""

import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mlflow.entities import Run

from pul_core.errors import DataError
from pul_core.stopping import Degenerate, degeneration
from tasks.store.home import home
from tasks.store.runs import MIN_PREFIX, ambiguous, format_time, matching_ids, safe_run_name
from tasks.tracking.client import client, search_all_runs, search_runs

RUN_ID_TAG = "pul.run_id"  # tag of a parent run: the id of the run, see `tasks.store.runs`
NO_RUNS = "there are no runs yet: start one with `pul demo` or `pul run`"
IS_RUN = "tags.`pul.kind` = 'run'"


def run_id_of(run: Run) -> str:
    """Return the id of a run from its MLflow run; that of a run of an older version is its name."""
    return str(run.data.tags.get(RUN_ID_TAG, run.info.run_name))


def newest_run(condition: str = IS_RUN) -> Run:
    """Return the newest MLflow run of a run that meets a condition.

    Raises:
        DataError: there is none.
    """
    if newest := search_all_runs(condition, order_by=["attributes.start_time DESC"], limit=1):
        return newest[0]
    raise DataError(NO_RUNS)


def find_run(reference: str | None) -> Run:
    """Return the MLflow run of a run.

    Args:
        reference: the id of the run, its name, or a prefix of its id or of its MLflow id; None selects the newest run.

    Raises:
        DataError: there is no such run, or several runs can be meant.
    """
    if reference is None:
        return newest_run()
    filters = [f"attributes.run_name = '{safe_run_name(reference)}'"]
    if re.fullmatch(r"[\w.-]+", reference, re.ASCII):
        filters += [f"{attribute} LIKE '{reference}%'" for attribute in (f"tags.`{RUN_ID_TAG}`", "attributes.run_id")]
    runs = {run.info.run_id: run for condition in filters for run in search_all_runs(f"{IS_RUN} and {condition}")}
    run_ids = matching_ids(reference, {run_id_of(run): str(run.info.run_name) for run in runs.values()})
    matches = [run for run in runs.values() if run_id_of(run) in run_ids] or [
        run for run in runs.values() if len(reference) >= MIN_PREFIX and run.info.run_id.startswith(reference)
    ]
    if not matches:
        raise DataError(f"there is no run {reference!r}: give the id of a run, the name of its folder in {home() / 'runs'}")
    if len(matches) > 1:
        newest_first = sorted(matches, key=lambda run: run.info.start_time, reverse=True)
        raise ambiguous(reference, {run_id_of(run): _describe(run) for run in newest_first})
    return matches[0]


def read_results(reference: str | None) -> dict[str, Any]:
    """Read the iterations of a run from MLflow.

    Args:
        reference: see `find_run`.

    Returns:
        ``run`` (the id), ``name``, ``status``, ``stop_reason``, ``experiment``, ``seconds`` (the computing time of each iteration), and
        ``iterations``: one dictionary of metrics per iteration, with scores as fractions. A metric that an iteration does not have is None.

    Raises:
        DataError: the run does not exist, or several runs can be meant.
    """
    run = find_run(reference)
    metrics = all_metrics(run)
    names = sorted({key for values in metrics.values() for key in values if not key.startswith(("training_", "seconds_"))})
    return {
        "run": run_id_of(run),
        "name": run.info.run_name,
        "status": run.info.status.lower(),
        "stop_reason": run.data.tags.get("pul.stop_reason"),
        "experiment": client().get_experiment(run.info.experiment_id).name,
        "seconds": [round(sum_seconds(metrics[number]), 3) for number in sorted(metrics)],
        "iterations": [
            {"reliable_set_size": None, "iteration": number, **{key: metrics[number].get(key) for key in names}}
            for number in sorted(metrics)
        ],
    }


def list_runs() -> list[dict[str, Any]]:
    """Return all runs of the store, the newest first.

    Returns:
        For each run ``run`` (the id), ``name``, ``started`` (local time), ``recipe``, ``experiment`` (its source and target), ``status``,
        ``iterations`` (the number of the last one, None before iteration 0) and its metrics ``reliable_set_size``, ``rank_1`` and ``mAP``,
        scores as fractions; a metric that is unknown is None.

    Raises:
        DataError: there are no runs.
    """
    runs = search_all_runs(IS_RUN, order_by=["attributes.start_time DESC"])
    if not runs:
        raise DataError(NO_RUNS)
    iterations = defaultdict[str, dict[int, Run]](dict)  # by the MLflow id of the run, and by number
    for nested in search_all_runs("tags.`pul.kind` = 'iteration'"):
        iterations[nested.data.tags["mlflow.parentRunId"]][int(nested.data.tags["pul.iteration"])] = nested
    experiments = {id_: client().get_experiment(id_).name for id_ in {run.info.experiment_id for run in runs}}
    rows = []
    for run in runs:
        of_run = iterations[run.info.run_id]
        metrics = of_run[max(of_run)].data.metrics if of_run else {}
        rows.append(
            {
                "run": run_id_of(run),
                "name": run.info.run_name,
                "started": _start_of(run),
                "recipe": run.data.tags.get("pul.recipe"),
                "experiment": experiments[run.info.experiment_id],
                "status": run.info.status.lower(),
                "iterations": max(of_run, default=None),
                **{name: metrics.get(name) for name in ("reliable_set_size", "rank_1", "mAP")},
            }
        )
    return rows


def interrupted_runs() -> dict[str, str]:
    """Return the runs that failed or were killed, and were not resumed since: the status of each by its id, the newest first."""
    runs = [run for status in ("FAILED", "KILLED") for run in search_all_runs(f"{IS_RUN} and attributes.status = '{status}'")]
    runs.sort(key=lambda run: run.info.start_time, reverse=True)
    return {run_id_of(run): run.info.status.lower() for run in runs}


def all_metrics(run: Run) -> dict[int, dict[str, float]]:
    """Return all metrics of each iteration of a run, by the iteration's number."""
    iteration_runs = search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    return {int(iteration.data.tags["pul.iteration"]): iteration.data.metrics for iteration in iteration_runs}


def degeneration_of(metrics: Mapping[str, float | None], algorithm: str) -> Degenerate | None:
    """Return how the reliable set of an iteration is degenerate, or None: see `pul_core.stopping.degeneration`.

    Args:
        metrics: of the iteration; iteration 0 has no reliable set.
        algorithm: the name of the clustering, ``clustering.algorithm``.

    Example:
        >>> metrics = {"reliable_set_size": 990, "reliable_fraction": 0.99, "num_clusters": 50}
        >>> degeneration_of(metrics, "kmeans"), degeneration_of(metrics, "dbscan"), degeneration_of({}, "kmeans")
        ('stable_everything', None, None)
    """
    size, share, num_clusters = (metrics.get(name) for name in ("reliable_set_size", "reliable_fraction", "num_clusters"))
    if size is None or num_clusters is None:
        return None
    num_images = round(size / share) if share else 0
    return degeneration(int(size), num_clusters=int(num_clusters), num_images=num_images, by_density=algorithm == "dbscan")


def sum_seconds(metrics: Mapping[str, float]) -> float:
    """Return the computing time of an iteration's steps, without the time for its scores.

    Example:
        >>> sum_seconds({"seconds_cluster": 2.0, "seconds_fine_tune": 60.5, "seconds_evaluate": 1.0, "mAP": 0.3})
        62.5
    """
    return sum(value for name, value in metrics.items() if name.startswith("seconds_") and name != "seconds_evaluate")


def _describe(run: Run) -> str:
    return f"{_start_of(run)}, {run.info.status.lower()}"


def _start_of(run: Run) -> str:
    """Return the local time when a run was started first."""
    return format_time(datetime.fromtimestamp(run.info.start_time // 1000))
