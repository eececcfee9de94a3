"""MLflow run life cycle: one experiment per domain pair, one parent run per flow run, and one nested run per iteration with its model.

Tracking is not part of the cached steps: it reads their artifacts each time, and recording an iteration again changes nothing. A retried
flow run finds its parent run by the flow run id and continues it.
"""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pandas as pd
import psutil
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.git_utils import get_git_commit
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from pul_core.errors import DataError
from tasks.engine.compute import Resources, resolve_compute
from tasks.engine.links import linked
from tasks.engine.progress import step_logger
from tasks.engine.status import status
from tasks.engine.steps import artifacts_in
from tasks.models import NOT_USED, licence_of, named_run
from tasks.store.artifacts import Artifact, locate, read_table, verify
from tasks.store.config import RESOLVED, Plan, flatten, parameters_of, read_config
from tasks.store.home import home
from tasks.store.licences import Licence, with_licence
from tasks.store.records import write_record
from tasks.store.references import ImageSet, Iteration, Reference, TrainedModel
from tasks.store.runs import create_run_folder, new_run_id, safe_run_name
from tasks.tracking.client import client, safe_name, search_all_runs, search_runs
from tasks.tracking.domain_pairs import domain_pair, experiment_of, registered_model_of
from tasks.tracking.figures import CURVES, curves_figure, iteration_figure, show_in_prefect
from tasks.tracking.metrics import iteration_metrics
from tasks.tracking.models import licence_tags, log_iteration_model, register_model
from tasks.tracking.registry import set_candidate
from tasks.tracking.results import IS_RUN, RUN_ID_TAG, find_run, run_id_of, sum_seconds

PROCESS_TAG = "pul.process"  # tag of a parent run: the process that executes it, as returned by `process_key`
RESUME = "PUL_RESUME"  # environment variable: id of the run that this process resumes
SWEEP = "PUL_SWEEP"  # environment variable: SWEEP_NAME/CHILD_NUMBER of the sweep child that this process executes
SUMMARY_METRICS = (
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


class TrackedRun(Reference):
    """A run: its id, name, MLflow run, folder ``$PUL_HOME/runs/ID``, compute resources and licences.

    ``original_model`` is the model it starts from; an earlier run by its id.
    """

    id: str
    name: str
    mlflow_run_id: str
    folder: str
    original_model: str | None
    resources: Resources
    licence: Licence = Licence()

    def cache_token(self) -> str:
        """Return an empty string: tracking never changes a cache key."""
        return ""


@linked("track-run")
def track_run(plan: Plan, target: ImageSet, sources: list[ImageSet]) -> TrackedRun:
    """Create the MLflow run of this flow run, or find it again on a retry or `pul resume`, and write the config to the run's folder.

    Args:
        plan: the resolved parameters, written to ``config.json`` with the compute resources.
        target: the target, recorded as a dataset input.
        sources: the sources, recorded as dataset inputs.

    Raises:
        DataError: the run is resumed, but its images have changed.
    """
    flow_run_id, licence = str(flow_run.id), licence_of(plan)
    process_tags = {PROCESS_TAG: process_key(os.getpid()), "pul.flow_run_id": flow_run_id, "pul.flow_run_url": flow_run.ui_url or ""}
    if existing_run := _existing_run(flow_run_id):
        run = existing_run
        for tag, value in process_tags.items():
            client().set_tag(run.info.run_id, tag, value)
        client().update_run(run.info.run_id, status="RUNNING")
        if plan.original_model:
            plan = replace(plan, original_model=run.data.params.get("original_model", plan.original_model))
    else:
        plan = replace(plan, original_model=_with_run_id(plan.original_model))
        run = _create_run(plan, target, sources, process_tags | licence_tags(licence))
    run_id, name = run_id_of(run), str(run.info.run_name)
    _tag_flow_run(flow_run_id, run_id)
    folder = create_run_folder(run_id, name, flow_run_id)
    _check_images_unchanged(folder, target, sources)
    resources = _record_config(run.info.run_id, folder / "config.json", plan, is_resumed=existing_run is not None)
    artifacts = {"images": target.images, **{f"source-{number}-images": source.images for number, source in enumerate(sources, 1)}}
    _link_artifacts(folder, artifacts | ({"labels": target.labels} if target.labels else {}))
    experiment = client().get_experiment(run.info.experiment_id).name
    status.run = run_id
    step_logger().info("Run %s: experiment %r, config %s", run_id, experiment, folder / "config.json")
    return TrackedRun(
        id=run_id,
        name=name,
        mlflow_run_id=run.info.run_id,
        folder=str(folder),
        original_model=plan.original_model,
        resources=resources,
        licence=licence,
    )


@linked("track-iteration-{iteration.iteration}")
def track_iteration(run: TrackedRun, iteration: Iteration, labels: Artifact | None) -> dict[str, float]:
    """Record an iteration in MLflow and in the run's folder.

    The iteration's nested run gets the model and the metrics, the parent run gets the same metrics with the iteration as the step, and the
    run's folder gets links to the artifacts.

    Args:
        run: the tracked run.
        iteration: references to the artifacts of the iteration.
        labels: labels.parquet of the target for the ``oracle_`` diagnostics; None if there are no labels.

    Returns:
        The metrics by their MLflow names.
    """
    metrics = iteration_metrics(iteration, labels)
    parent = client().get_run(run.mlflow_run_id)
    fingerprint = " ".join(
        artifact.sha256[:16] for artifact in (iteration.model, iteration.scores, iteration.scores_statistics) if artifact
    )
    nested, is_repeated = _iteration_run(run, parent, iteration.iteration, fingerprint)
    # The model comes first: MLflow would look up the history of each metric that the run has already, to link it to the model.
    statistics = iteration.statistics if iteration.iteration else None  # iteration 0 is direct transfer
    model = with_licence(iteration.model, _licence_of_iteration(run, iteration.iteration))
    model_id = log_iteration_model(nested, model, statistics.statistics if statistics else None)
    nested_metrics = [Metric(key, value, 0, 0, model_id=model_id) for key, value in metrics.items()] + _training_curves(iteration.trained)
    client().log_batch(nested.info.run_id, [metric for metric in nested_metrics if metric.key not in nested.data.metrics])
    parent_metrics = [Metric(key, value, 0, iteration.iteration) for key, value in metrics.items()]
    client().log_batch(run.mlflow_run_id, [metric for metric in parent_metrics if not (is_repeated and _is_logged(run, metric))])
    client().log_figure(nested.info.run_id, iteration_figure(iteration), "figures/iteration.png")
    curves = curves_figure(_history(run, [*CURVES]))
    client().log_figure(run.mlflow_run_id, curves, "figures/curves.png")
    show_in_prefect(curves, run.id)
    client().set_terminated(nested.info.run_id, "FINISHED")
    folder = Path(run.folder, f"iteration={iteration.iteration}")
    folder.mkdir(exist_ok=True)
    _link_artifacts(folder, _links(iteration) | {"model": model, "weights": iteration.model})
    status.iterations[iteration.iteration] = metrics | {"seconds": sum_seconds(metrics)}
    return metrics


@linked("finish-run")
def finish_run(run: TrackedRun, iterations: list[dict[str, float]], reason: str, explanation: str) -> None:
    """Close the MLflow run: record the stop reason, register the last model, and write the table of all iterations.

    Args:
        run: the tracked run.
        iterations: the metrics of iteration 0, 1, 2, ...
        reason: the stop reason.
        explanation: the stop reason in words.
    """
    client().set_tag(run.mlflow_run_id, "pul.stop_reason", reason)
    rows = [{"iteration": number, **metrics} for number, metrics in enumerate(iterations)]
    pd.DataFrame(rows).to_parquet(Path(run.folder, "iterations.parquet"), index=False)
    summary = [{name: round(row[name], 4) if name in row else None for name in ("iteration", *SUMMARY_METRICS)} for row in rows]
    create_table_artifact(summary, key="pul-iterations", description=f"Run **{run.id}** stopped: {reason}. {explanation}.")
    parent = client().get_run(run.mlflow_run_id)
    last_run, _ = _iteration_run(run, parent, len(iterations) - 1)
    name = registered_model_of(client().get_experiment(parent.info.experiment_id))
    licence = _licence_of_iteration(run, len(iterations) - 1)
    version = register_model(last_run.info.run_id, name, run.id, licence)
    client().set_terminated(run.mlflow_run_id, "FINISHED")
    set_candidate(name, version, client().get_run(run.mlflow_run_id), licence=licence)
    step_logger().info("Stopped after iteration %d: %s (%s)", len(iterations) - 1, reason, explanation)


def _licence_of_iteration(run: TrackedRun, iteration: int) -> Licence:
    """Return the licences of the model of an iteration; that of iteration 0 was not trained on the target."""
    return run.licence if iteration else run.licence.model_copy(update={"target_data": NOT_USED})


def close_run(flow_run_id: str, status: str) -> None:
    """Close the open MLflow runs of a flow run that did not finish, nested runs included."""
    for run in search_all_runs(f"tags.`pul.flow_run_id` = '{flow_run_id}'"):
        if run.info.status == "RUNNING":
            client().set_terminated(run.info.run_id, status)


def process_key(pid: int) -> str:
    """Return host name, process id and start time, which together distinguish a process from later ones with the same id.

    Raises:
        psutil.NoSuchProcess: there is no process with this id.
    """
    started_after_boot = psutil.Process(pid).create_time() - psutil.boot_time()  # unaffected by changes of the system clock
    return f"{socket.gethostname()} {pid} {started_after_boot:.0f}"


def _existing_run(flow_run_id: str) -> Run | None:
    """Return the MLflow run that this flow run continues: on `pul resume` that of the given id, on a retry its own."""
    if resumed := os.environ.get(RESUME):
        return find_run(resumed)
    runs = search_all_runs(f"tags.`pul.flow_run_id` = '{flow_run_id}' and {IS_RUN}")
    # If the run was resumed since, its MLflow run has the id of another flow run.
    runs = runs or search_all_runs(f"tags.`{RUN_ID_TAG}` = '{new_run_id(safe_run_name(str(flow_run.name)), flow_run_id)}' and {IS_RUN}")
    return runs[0] if runs else None


def _create_run(plan: Plan, target: ImageSet, sources: list[ImageSet], process_tags: dict[str, str]) -> Run:
    """Create the MLflow run of this flow run, in the experiment of its domain pair."""
    name = safe_run_name(str(flow_run.name))
    tags = {"pul.kind": "run", RUN_ID_TAG: new_run_id(name, str(flow_run.id)), "pul.recipe": plan.recipe, **process_tags}
    if commit := get_git_commit(__file__):
        tags["mlflow.source.git.commit"] = commit
    if sweep_child := os.environ.get(SWEEP):
        tags |= dict(zip(("pul.sweep", "pul.sweep_child"), sweep_child.split("/"), strict=True))
    experiment = experiment_of(domain_pair(plan, [source.name for source in sources], target.name))
    run = client().create_run(experiment.experiment_id, run_name=name, tags=tags)
    client().log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in flatten(parameters_of(plan)).items()])
    _log_inputs(run.info.run_id, [*(_dataset(images, "source") for images in sources), _dataset(target, "target")])
    return run


def _log_inputs(run_id: str, inputs: list[DatasetInput]) -> None:
    """Record the data sets of a run; again if MLflow fails to insert one that another run inserts at the same moment."""
    try:
        client().log_inputs(run_id, inputs)
    except MlflowException as error:
        if "IntegrityError" not in str(error):
            raise
        client().log_inputs(run_id, inputs)


def _with_run_id(reference: str | None) -> str | None:
    """Replace the name of an earlier run in the reference of a model by its id, because another run may get the same name later."""
    if reference is None or not (run := named_run(reference)):
        return reference
    folder, iteration = run
    return f"{folder.name}/{iteration}" if iteration else folder.name


def _tag_flow_run(flow_run_id: str, run_id: str) -> None:
    """Tag the flow run in Prefect with the id of the run, by which its page can be found."""
    with get_client(sync_client=True) as prefect:
        prefect.update_flow_run(UUID(flow_run_id), tags={*flow_run.tags, run_id})


def _check_images_unchanged(folder: Path, target: ImageSet, sources: list[ImageSet]) -> None:
    """Refuse to resume a run on other images, because its iterations would not be comparable.

    Raises:
        DataError: images were added, changed or deleted since the run began.
    """
    image_sets = {"images": target} | {f"source-{number}-images": source for number, source in enumerate(sources, 1)}
    for name, images in image_sets.items():
        link = folder / f"{name}.parquet"
        if link.is_symlink() and link.readlink().name != Path(images.images.uri).name:
            raise DataError(f"{images.root} has changed since run {folder.name} began: put it back as it was, or start a new run")


def _record_config(run_id: str, file: Path, plan: Plan, *, is_resumed: bool) -> Resources:
    """Resolve the compute resources of this start of a run, and record them with the plan in config.json and MLflow.

    A resumed run uses the resources of its last start as far as this machine has them.
    """
    records = read_config(file)[1] if is_resumed and file.is_file() else []
    resources = resolve_compute(plan.machine, records[-1] if records else None)
    if resources.record() not in records[-1:]:
        records.append(resources.record())
    config = parameters_of(plan) | {RESOLVED: records}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    client().log_dict(run_id, config, "config.json")
    for name in ("device", "threads", "training_dtype", "inference_dtype"):
        client().set_tag(run_id, f"pul.{name}", ", ".join(dict.fromkeys(str(record[name]) for record in records)))
    return resources


def _iteration_run(run: TrackedRun, parent: Run, iteration: int, fingerprint: str | None = None) -> tuple[Run, bool]:
    """Find or create the nested run of an iteration; one with other results (the code was edited before a retry) is replaced.

    Args:
        run: the tracked run.
        parent: its MLflow run.
        iteration: number of the iteration.
        fingerprint: fingerprint of the iteration's results; None accepts any results.

    Returns:
        The nested run, and whether these results may have been logged before.
    """
    condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.`pul.iteration` = '{iteration}'"
    known = search_runs([parent.info.experiment_id], condition, view=ViewType.ALL)
    existing = [nested for nested in known if nested.info.lifecycle_stage == LifecycleStage.ACTIVE]
    flow_run_id = parent.data.tags["pul.flow_run_id"]
    if existing and fingerprint in (None, existing[0].data.tags.get("pul.results")):
        nested, is_repeated = existing[0], True
        client().set_tag(nested.info.run_id, "pul.flow_run_id", flow_run_id)
    else:
        for stale in existing:
            client().delete_run(stale.info.run_id)
        tags = {
            "mlflow.parentRunId": parent.info.run_id,
            "pul.iteration": str(iteration),
            "pul.kind": "iteration",
            "pul.flow_run_id": flow_run_id,
            "pul.results": fingerprint or "",
        }
        nested = client().create_run(parent.info.experiment_id, run_name=f"{run.name} iteration {iteration}", tags=tags)
        is_repeated = bool(known) and not existing
    if "iteration" not in nested.data.params:
        client().log_param(nested.info.run_id, "iteration", iteration)
        nested = client().get_run(nested.info.run_id)
    return nested, is_repeated


def _is_logged(run: TrackedRun, metric: Metric) -> bool:
    """Return whether the parent run has a metric of this name and iteration."""
    return metric.step in [logged.step for logged in client().get_metric_history(run.mlflow_run_id, metric.key)]


def _history(run: TrackedRun, names: list[str]) -> dict[str, list[tuple[int, float]]]:
    """Return the values of metrics of the parent run by iteration."""
    history = {name: client().get_metric_history(run.mlflow_run_id, name) for name in names}
    return {name: sorted((metric.step, metric.value) for metric in metrics) for name, metrics in history.items() if metrics}


def _training_curves(trained: TrainedModel | None) -> list[Metric]:
    """Return loss and accuracy of each epoch."""
    epochs = read_table(trained.training).to_pylist() if trained else []
    curves = (("training_loss", "loss"), ("training_accuracy", "accuracy"))
    return [Metric(name, epoch[key], 0, epoch["epoch"]) for name, key in curves for epoch in epochs]


def _links(iteration: Iteration) -> dict[str, Artifact]:
    """Return the artifacts of an iteration by the names of their links; what belongs to the iteration before or to the run is left out."""
    artifacts = artifacts_in(iteration.model_copy(update={"reliable_before": None, "scores_statistics": None}))
    links = {"model" if artifact.kind == "models" else artifact.kind: artifact for artifact in artifacts if artifact.kind != "images"}
    return links | ({"scores_statistics": iteration.scores_statistics} if iteration.scores_statistics else {})


def _link_artifacts(folder: Path, artifacts: dict[str, Artifact]) -> None:
    """Link readable names, such as runs/ID/iteration=3/reliable.parquet, to artifacts on this disk, and record what the run refers to."""
    write_record(str(folder.relative_to(home() / "runs")), list(artifacts.values()))
    for name, artifact in artifacts.items():
        if "://" not in locate(artifact):
            link = folder / f"{name}{Path(artifact.uri).suffix}"
            link.unlink(missing_ok=True)
            link.symlink_to(Path(verify(artifact)))


def _dataset(images: ImageSet, role: str) -> DatasetInput:
    profile = json.dumps({"splits": images.splits, "layout": images.layout})
    dataset = Dataset(safe_name(images.name), images.images.sha256[:32], "local", json.dumps({"path": images.root}), profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", role)])
