"""Tracking is a replay: what stands in MLflow is read from artifacts, outside the cached steps, and saying it twice changes nothing.

One experiment for a pair of domains, one parent run for a flow run, one nested run for an iteration with that iteration's model. A retried
flow run finds its parent by the flow run's id and goes on with it.
"""

import json
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run

from pul_core.errors import DataError
from tasks.engine.links import linked
from tasks.engine.progress import step_logger
from tasks.store.artifacts import Artifact, locate, verify
from tasks.store.home import home
from tasks.store.readers import read_training
from tasks.store.references import ImageSet, Iteration, Reference, TrainedModel
from tasks.tracking.client import client, experiment_named, plain_name
from tasks.tracking.metrics import iteration_metrics
from tasks.tracking.models import log_iteration_model, register_model

PROCESS = "pul.process"
RESUME = "PUL_RESUME"  # name of the run that goes on in this process
SWEEP = "PUL_SWEEP"  # NAME/NUMBER: of which sweep this process runs which child


class TrackedRun(Reference):
    """Where a flow run is recorded: its MLflow run and its folder below ``$PUL_HOME/runs``."""

    run_id: str
    name: str
    folder: str

    def identity(self) -> str:
        """Tracking never enters a cache key."""
        return ""


@linked("track-run")
def track_run(plan: dict[str, Any], target: ImageSet, sources: list[ImageSet]) -> TrackedRun:
    """Open this flow run's MLflow run, or find it again on a retry or for `pul resume`, and write the run's config beside its artifacts.

    Args:
        plan: the resolved parameters, as they go into ``config.json``.
        target: recorded as a dataset input.
        sources: recorded as dataset inputs.
    """
    pair = plain_name(f"{' + '.join(source.name for source in sources) or Path(plan['original_model']).name} to {target.name}")
    experiment = experiment_named(pair)
    flow_run_id = str(flow_run.id)
    same = f"attributes.run_name = '{resumed}'" if (resumed := os.environ.get(RESUME)) else f"tags.`pul.flow_run_id` = '{flow_run_id}'"
    found = client().search_runs([experiment.experiment_id], f"{same} and tags.`pul.kind` = 'run'")
    name = str(found[0].info.run_name) if found else run_name(str(flow_run.name))
    tags = {"pul.kind": "run", "pul.flow_run_id": flow_run_id, "pul.flow_run_url": flow_run.ui_url or "", "pul.recipe": plan["recipe"]}
    if sweep := os.environ.get(SWEEP):
        tags |= dict(zip(("pul.sweep", "pul.sweep_child"), sweep.split("/"), strict=True))
    run = found[0] if found else client().create_run(experiment.experiment_id, run_name=name, tags=tags | _commit())
    run_id = run.info.run_id
    client().update_run(run_id, status="RUNNING")
    for tag, value in ((PROCESS, process_tag(os.getpid())), ("pul.flow_run_id", flow_run_id), ("pul.flow_run_url", flow_run.ui_url or "")):
        client().set_tag(run_id, tag, value)  # of a retried run they change
    if not found:
        client().log_batch(run_id, params=[Param(key, str(value)) for key, value in _flat(plan)])
        client().log_inputs(run_id, [*(_dataset(images, "source") for images in sources), _dataset(target, "target")])
    folder = home() / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_other_data(folder, target, sources)
    (folder / "config.json").write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    client().log_dict(run_id, plan, "config.json")
    for artifact in (target.images, target.labels):
        if artifact:
            _link_one(folder, artifact)
    for number, source in enumerate(sources, 1):
        _link_one(folder, source.images, f"source-{number}-images")
    step_logger().info("run %s: experiment %r, config %s", name, pair, folder / "config.json")
    return TrackedRun(run_id=run_id, name=name, folder=str(folder))


@linked("track-iteration-{iteration.iteration}")
def track_iteration(run: TrackedRun, iteration: Iteration, labels: Artifact | None) -> dict[str, float]:
    """Record an iteration: a nested run with its model and metrics, the same metrics by step on the parent, links in the run's folder.

    Args:
        run: the flow run's record.
        iteration: what it left.
        labels: the target's identities, for scores and ``oracle_`` diagnostics; None if there are none.

    Returns:
        The iteration's metrics by name.
    """
    metrics = iteration_metrics(iteration, labels)
    parent = client().get_run(run.run_id)
    child, changed = _child(parent.info.experiment_id, run, iteration.iteration, _fingerprint(iteration))
    known = client().get_run(child).data.metrics
    client().log_batch(child, metrics=[Metric(key, value, 0, 0) for key, value in metrics.items() if key not in known])
    steps = {key: {metric.step for metric in client().get_metric_history(run.run_id, key)} for key in metrics}
    fresh = [
        Metric(key, value, 0, iteration.iteration) for key, value in metrics.items() if changed or iteration.iteration not in steps[key]
    ]
    client().log_batch(run.run_id, metrics=fresh)
    if iteration.trained:
        _log_training(child, iteration.trained)
    log_iteration_model(child, iteration.model)
    client().set_terminated(child, "FINISHED")
    _link(run, iteration)
    return metrics


@linked("finish-run")
def finish_run(run: TrackedRun, iterations: list[dict[str, float]], reason: str, explanation: str) -> None:
    """Close the run: reason of the stop, the final model registered, one table of all iterations for Prefect and for the run's folder.

    Args:
        run: the flow run's record.
        iterations: metrics of iteration 0, 1, 2, ...
        reason: why the loop stopped.
        explanation: the same in words.
    """
    client().set_tag(run.run_id, "pul.stop_reason", reason)
    rows = [{"iteration": number, **metrics} for number, metrics in enumerate(iterations)]
    pd.DataFrame(rows).to_parquet(Path(run.folder, "iterations.parquet"), index=False)
    shown = [{"iteration": row["iteration"], **{key: _rounded(row.get(key)) for key in TABLE}} for row in rows]
    create_table_artifact(shown, key="pul-iterations", description=f"Run **{run.name}** stopped: {reason}. {explanation}.")
    experiment = client().get_experiment(client().get_run(run.run_id).info.experiment_id).name
    last, _ = _child(client().get_run(run.run_id).info.experiment_id, run, len(iterations) - 1)
    register_model(last, "pul " + experiment, run.name)
    client().set_terminated(run.run_id, "FINISHED")
    step_logger().info("stopped after iteration %d: %s (%s)", len(iterations) - 1, reason, explanation)


TABLE = (
    "reliable_set_size",
    "reliable_overlap",
    "reliable_agreement_ari",
    "num_clusters",
    "rank_1",
    "rank_5",
    "rank_10",
    "rank_20",
    "mAP",
    "mINP",
)


def run_name(text: str) -> str:
    """Return a run's name, which is also its folder's and may be typed in a shell. Whoever starts a flow run may have named it.

    Example:
        >>> run_name("amber-fox"), run_name("../../x"), run_name("a;rm -rf $(id)"), run_name("..")
        ('amber-fox', 'x', 'a-rm-rf-id', 'run')
    """
    return re.sub(r"[^\w.]+", "-", text, flags=re.ASCII).strip("-.")[:100] or "run"


def close_run(flow_run_id: str, status: str) -> None:
    """Close the MLflow runs of a flow run that ended before its time, children first."""
    experiments = [experiment.experiment_id for experiment in client().search_experiments()]
    for run in client().search_runs(experiments, f"tags.`pul.flow_run_id` = '{flow_run_id}'"):
        if run.info.status == "RUNNING":
            client().set_terminated(run.info.run_id, status)


def _refuse_other_data(folder: Path, target: ImageSet, sources: list[ImageSet]) -> None:
    """Let a run go on only with the images it began with: its table would tell of two data sets.

    Raises:
        DataError: images were added, changed or deleted since.
    """
    sets = {"images": target} | {f"source-{number}-images": source for number, source in enumerate(sources, 1)}
    for name, images in sets.items():
        link = folder / f"{name}.parquet"
        if link.is_symlink() and link.readlink().name != Path(images.images.uri).name:
            raise DataError(f"{images.root} changed since run {folder.name} began: put it back as it was, or start a new run")


def process_tag(pid: int) -> str:
    """Return what tells a process from any other, even from a later one with the same number.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    since_boot = psutil.Process(pid).create_time() - psutil.boot_time()  # a clock that is set changes both
    return f"{socket.gethostname()} {pid} {since_boot:.0f}"


def _fingerprint(iteration: Iteration) -> str:
    return " ".join(artifact.sha256[:16] for artifact in (iteration.model, iteration.scores) if artifact)


def _child(experiment_id: str, run: TrackedRun, iteration: int, fingerprint: str | None = None) -> tuple[str, bool]:
    """Return an iteration's nested run, and whether it takes the place of one with other results (the code was changed in between)."""
    of_parent = f"tags.`mlflow.parentRunId` = '{run.run_id}' and tags.`pul.iteration` = '{iteration}'"
    found = client().search_runs([experiment_id], of_parent)
    flow_run_id = client().get_run(run.run_id).data.tags["pul.flow_run_id"]
    if found and fingerprint in (None, found[0].data.tags.get("pul.results")):
        client().set_tag(found[0].info.run_id, "pul.flow_run_id", flow_run_id)
        return str(found[0].info.run_id), False
    for stale in found:
        client().delete_run(stale.info.run_id)
    tags = {"mlflow.parentRunId": run.run_id, "pul.iteration": str(iteration), "pul.kind": "iteration", "pul.flow_run_id": flow_run_id}
    tags |= {"pul.results": fingerprint or ""}
    child = client().create_run(experiment_id, run_name=f"{run.name} iteration {iteration}", tags=tags)
    client().log_param(child.info.run_id, "iteration", iteration)
    return str(child.info.run_id), bool(found)


def _log_training(child: str, trained: TrainedModel) -> None:
    if client().get_metric_history(child, "training_loss"):
        return
    history = read_training(trained)
    series = (("training_loss", "loss"), ("training_accuracy", "accuracy"))
    client().log_batch(child, metrics=[Metric(name, row[key], 0, row["epoch"]) for name, key in series for row in history])


def _link(run: TrackedRun, iteration: Iteration) -> None:
    """Give an iteration's artifacts readable names: runs/NAME/iteration=3/reliable.parquet points to the file in the store."""
    folder = Path(run.folder, f"iteration={iteration.iteration}")
    folder.mkdir(exist_ok=True)
    for artifact in _artifacts(iteration):
        _link_one(folder, artifact)


def _link_one(folder: Path, artifact: Artifact, name: str | None = None) -> None:
    if "://" in locate(artifact):
        return
    name = name or ("model" if artifact.kind == "models" else artifact.kind)
    link = folder / f"{name}{Path(artifact.uri).suffix}"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(verify(artifact)))


def _artifacts(iteration: Iteration) -> Iterable[Artifact]:
    yield iteration.model
    yield from (artifact for artifact in (iteration.features, iteration.scores) if artifact)
    if iteration.clusters:
        yield from (iteration.clusters.clusters, iteration.clusters.centres)
    if iteration.reliable:
        yield iteration.reliable.reliable
    if iteration.trained:
        yield iteration.trained.training


def _dataset(images: ImageSet, role: str) -> DatasetInput:
    profile = json.dumps({"splits": images.splits, "layout": images.layout})
    dataset = Dataset(plain_name(images.name), images.images.sha256[:32], "local", json.dumps({"path": images.root}), profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", role)])


def _flat(plan: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in plan.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _commit() -> dict[str, str]:
    from mlflow.utils.git_utils import get_git_commit

    commit = get_git_commit(__file__)
    return {"mlflow.source.git.commit": commit} if commit else {}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
