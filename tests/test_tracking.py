"""Tracking an iteration is a replay: after a failure at any write to MLflow, a retry completes it, and nothing appears twice."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from pul_core.settings import Machine, Model
from tasks.engine.compute import resolve_compute
from tasks.models import initial_model
from tasks.store.artifacts import write_table
from tasks.store.references import Clusters, Iteration, Reliable, TrainedModel
from tasks.tracking import runs
from tasks.tracking.client import client
from tasks.tracking.runs import TrackedRun, track_iteration

WRITES = (
    "create_run",
    "log_param",
    "log_outputs",
    "log_model_artifacts",
    "finalize_logged_model",
    "set_tag",
    "log_batch",
    "log_figure",
    "set_terminated",
)


class KilledError(BaseException):
    """Stands in for the death of the process: MLflow's own handlers of errors must not run either."""


@pytest.fixture(scope="module")
def tracked_run(module_home):
    """A function that starts a run."""

    def start(name):
        experiment_id = client().create_experiment(name, (module_home / "mlartifacts").as_uri())
        run_id = client().create_run(experiment_id, run_name=name, tags={"pul.flow_run_id": name}).info.run_id
        folder = module_home / "runs" / name
        folder.mkdir(parents=True)
        resources = resolve_compute(Machine(device="cpu", threads=1))
        return TrackedRun(id=name, name=name, mlflow_run_id=run_id, folder=str(folder), original_model=None, resources=resources)

    return start


@pytest.fixture(scope="module")
def iterations(module_home):
    """Two iterations whose results differ by their number."""
    model = initial_model.fn(Model(backbone="test_resnet", weights="random", height=64, width=32), seed=0)

    def iteration(number, before):
        rows = np.arange(8 - number)
        clusters = {"row": np.arange(8), "cluster": np.arange(8) // 4, "similarity": np.ones(8)}
        flags = {name: np.zeros(len(rows), bool) for name in ("labelled", "unclustered")}
        epochs = {"epoch": [1, 2], "images": [8, 8], "loss": [2.0, 1.0 + number], "accuracy": [0.5, 0.6]}
        return Iteration(
            iteration=number,
            model=model,
            clusters=Clusters(
                clusters=write_table("clusters", pa.table(clusters)),
                centres=write_table("centres", pa.table({"row": [0, 4]})),
                num_clusters=2,
                num_single_image_clusters=0,
            ),
            reliable=Reliable(reliable=write_table("reliable", pa.table({"row": rows, "pseudo_label": rows // 4, **flags})), num_classes=2),
            reliable_before=before,
            trained=TrainedModel(model=model, training=write_table("training", pa.table(epochs))),
        )

    first = iteration(1, None)
    return [first, iteration(2, first.reliable)]


@pytest.fixture(scope="module")
def undisturbed(tracked_run, iterations):
    """The record of an undisturbed run."""
    run = tracked_run("undisturbed")
    for iteration in iterations:
        track_iteration.fn(run, iteration, None)
    return record_of(run)


def record_of(run):
    """Everything that MLflow holds of a run and its iterations, ids and times apart; each metric is a list of (step, value)."""
    parent = client().get_run(run.mlflow_run_id)
    runs = client().search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.mlflow_run_id}'")
    nested = {}
    for item in runs:
        model = client().get_logged_model(item.data.tags["pul.model_id"])
        number = item.data.params["iteration"]
        assert number not in nested, "an iteration has one nested run"
        nested[number] = {
            "status": item.info.status,
            "metrics": metrics_of(item),
            "model": (str(model.status), model.source_run_id == item.info.run_id, model.params),
            "metrics of the model": {metric.key: metric.value for metric in model.metrics},
        }
    return metrics_of(parent), nested


def metrics_of(run):
    return {
        name: [(metric.step, metric.value) for metric in client().get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    }


def test_an_iteration_has_a_nested_run_with_its_model_and_the_parent_has_the_metrics_by_step(tracked_run, iterations):
    run = tracked_run("first")
    for iteration in iterations:
        metrics = track_iteration.fn(run, iteration, None)
    parent, nested = record_of(run)
    assert parent["reliable_set_size"] == [(1, 7), (2, 6)]
    assert parent["reliable_overlap"] == [(2, metrics["reliable_overlap"])]
    assert nested["2"]["metrics"]["training_loss"] == [(1, 2.0), (2, 3.0)]
    assert nested["2"]["metrics of the model"] == metrics
    assert nested["2"]["model"] == ("READY", True, {"iteration": "2"})
    assert {item["status"] for item in nested.values()} == {"FINISHED"}
    assert Path(run.folder, "iteration=2", "model.safetensors").exists()
    assert [file.path for file in client().list_artifacts(run.mlflow_run_id, "figures")] == ["figures/curves.png"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_an_iteration_is_completed_after_a_kill_at_any_write(tracked_run, iterations, undisturbed, monkeypatch, write, after):
    for drawing in ("iteration_figure", "curves_figure"):  # drawing takes longer than everything else
        monkeypatch.setattr(runs, drawing, lambda _: Figure(figsize=(1, 1)))
    run = tracked_run(f"killed {'after' if after else 'before'} {write}")
    track_iteration.fn(run, iterations[0], None)
    kills = 0
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, write, kill_at(getattr(MlflowClient, write), kills + 1, after=after))
            try:
                track_iteration.fn(run, iterations[1], None)
                break
            except KilledError:
                kills += 1
    assert kills, f"MlflowClient.{write} is not called"
    assert record_of(run) == undisturbed


def kill_at(function, number, *, after):
    """Wrap a function so that its call of this number does not come back, and is not made unless ``after``."""
    calls = []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == number and not after:
            raise KilledError
        result = function(*args, **kwargs)
        if len(calls) == number:
            raise KilledError
        return result

    return call


def test_a_nested_run_that_was_deleted_in_mlflow_is_logged_again_but_not_its_metrics_of_the_parent(tracked_run, iterations):
    run = tracked_run("deleted")
    for iteration in iterations:
        track_iteration.fn(run, iteration, None)
    before = record_of(run)
    for nested in client().search_runs([client().get_run(run.mlflow_run_id).info.experiment_id], "tags.`pul.iteration` = '2'"):
        client().delete_run(nested.info.run_id)
    slower = iterations[1].trained.model.model_copy(update={"seconds": 99.0})
    track_iteration.fn(run, iterations[1].model_copy(update={"trained": iterations[1].trained.model_copy(update={"model": slower})}), None)
    parent, nested = record_of(run)
    assert parent == before[0]
    assert nested["2"]["metrics"]["seconds_fine_tune"] == [(0, 99.0)]
