"""Real flow runs: a real Prefect server, MLflow on SQLite, real training on a tiny pair of data sets."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prefect.settings import PREFECT_API_URL

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("module_home", "prefect_server")]


def run(parameters):
    """Run the flow; return its name, its final state's data and the states of its tasks by task-run name."""
    from prefect.client.orchestration import get_client

    from flows.pul import pul

    state = pul(**parameters, return_state=True)
    with get_client(sync_client=True) as client:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        only = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        tasks = {task.name: task.state_name for task in client.read_task_runs(flow_run_filter=only)}
    return state, tasks


def models(home, name):
    return [path.resolve().name for path in sorted(Path(home, "runs", name).glob("iteration=*/model.safetensors"))]


@pytest.fixture
def parameters(tiny, tiny_pair):
    source, target = tiny_pair
    return tiny | {"source": str(source), "target": str(target)}


def test_the_loop_leaves_everything_where_the_documents_say(module_home, parameters):
    state, tasks = run(parameters)
    name = state.result()
    folder = module_home / "runs" / name
    assert {"index-source", "pretrain", "cluster-1", "select-1", "fine-tune-2", "evaluate-0", "evaluate-2"} <= set(tasks)
    assert json.loads((folder / "config.json").read_text())["selection"]["min_similarity"] == 0.5
    table = pd.read_parquet(folder / "iterations.parquet")
    assert table["iteration"].tolist() == [0, 1, 2]
    assert np.isnan(table["reliable_set_size"][0]) and table["reliable_set_size"][1] >= 4
    for kind in ("clusters", "centres", "reliable", "features", "scores", "training"):
        assert (folder / "iteration=1" / f"{kind}.parquet").exists()


def test_the_graph_has_the_edges_of_the_loop_and_few_enough_that_prefect_draws_them(module_home, parameters, graph):
    four = {"max_iterations": 4, "stop_when_stable": False}  # as many as the demo's
    state, _ = run(parameters | {"stopping": four})
    nodes = graph(PREFECT_API_URL.value(), state.state_details.flow_run_id)
    label = {key: node["label"] for key, node in nodes.items()}
    parents = {key: {parent["id"] for parent in node["parents"]} for key, node in nodes.items()}
    found = {label[key]: sorted(label[parent] for parent in parents[key]) for key in nodes}
    assert found["extract-features-1-train"] == ["decode-train-64x32", "fine-tune-1"]
    assert found["cluster-2"] == ["extract-features-1-train", "index-target"]
    assert found["select-2"] == ["cluster-2"]
    assert found["fine-tune-2"] == ["decode-train-64x32", "pretrain", "select-2"]
    assert "evaluate-2" in found["track-iteration-2"]
    assert found["finish-run"] == [*(f"track-iteration-{t}" for t in range(5)), "track-run"]

    listed = Counter((key, child["id"]) for key, node in nodes.items() for child in node["children"])
    assert listed == {(parent, child): max(1, len(parents[parent])) for child in nodes for parent in parents[child]}
    assert listed.total() < 500, "with more of them the page draws none"


def test_mlflow_has_one_parent_and_a_nested_run_an_iteration_with_its_model(module_home, parameters):
    import mlflow
    from mlflow.tracking import MlflowClient

    from tasks.tracking.results import read_results

    state, _ = run(parameters)
    found = read_results(state.result())
    assert [row["iteration"] for row in found["iterations"]] == [0, 1, 2]
    client = MlflowClient()
    experiment = client.get_experiment_by_name(found["experiment"])
    runs = client.search_runs([experiment.experiment_id], f"tags.`pul.flow_run_id` = '{state.state_details.flow_run_id}'")
    parents = [item for item in runs if item.data.tags["pul.kind"] == "run"]
    children = [item for item in runs if item.data.tags["pul.kind"] == "iteration"]
    assert (len(parents), len(children)) == (1, 3)
    assert {item.info.status for item in runs} == {"FINISHED"}
    assert parents[0].data.params["selection.min_similarity"] == "0.5"
    assert {item.dataset.name for item in parents[0].inputs.dataset_inputs} == {"source", "target"}
    assert [metric.step for metric in client.get_metric_history(parents[0].info.run_id, "mAP")] == [0, 1, 2]
    last = next(item for item in children if item.data.tags["pul.iteration"] == "2")
    loaded = mlflow.pyfunc.load_model(f"models:/{last.data.tags['pul.model_id']}")
    assert loaded.predict(np.zeros((2, 64, 32, 3), np.uint8)).shape == (2, 512)
    registered = client.search_model_versions(f"run_id = '{last.info.run_id}'")
    assert len(registered) == 1


def test_an_equal_run_is_served_from_the_cache_and_has_full_curves(module_home, parameters):
    from tasks.tracking.results import read_results

    first, _ = run(parameters)
    second, tasks = run(parameters)
    steps = ("pretrain", "decode", "extract", "cluster", "select", "fine-tune", "evaluate")
    assert {status for name, status in tasks.items() if name.startswith(steps)} == {"Cached"}
    assert models(module_home, first.result()) == models(module_home, second.result())
    rows = [read_results(state.result())["iterations"] for state in (first, second)]
    assert rows[0] == rows[1]


def test_a_damaged_artifact_is_made_again_and_the_result_is_the_same(module_home, parameters):
    state, _ = run(parameters)
    folder = module_home / "runs" / state.result()
    before = models(module_home, state.result())
    (folder / "iteration=2" / "clusters.parquet").resolve().write_bytes(b"gone bad")
    (folder / "iteration=1" / "features.parquet").resolve().unlink()
    again, tasks = run(parameters)
    assert tasks["cluster-2"] == "Completed" and tasks["extract-features-0-train"] == "Completed"
    assert tasks["pretrain"] == "Cached"
    assert models(module_home, again.result()) == before


def test_labels_of_the_target_steer_nothing(module_home, parameters, tiny_pair, monkeypatch):
    """With the target's identities scrambled: other scores, the same models, byte for byte."""
    import tasks.index as module
    from tasks.tracking.results import read_results

    _, target = tiny_pair
    rng = np.random.default_rng(3)
    original_read = module.read_layout

    def scrambled(root, *stated):
        layout, listed = original_read(root, *stated)
        if Path(root) != target:
            return layout, listed
        listed = list(listed)
        for split in ("train", "query", "gallery"):
            chosen = [position for position, image in enumerate(listed) if image.split == split]
            for position, pid in zip(chosen, rng.permutation([listed[position].pid for position in chosen]), strict=True):
                listed[position] = listed[position]._replace(pid=int(pid))
        return layout, listed

    monkeypatch.setattr(module, "read_layout", scrambled)
    other, _ = run(parameters | {"seed": 11})
    monkeypatch.setattr(module, "read_layout", original_read)
    # Nothing may come from the cache: the honest run is the second one, with everything made anew.
    shutil.rmtree(module_home / "artifacts")
    honest, again = run(parameters | {"seed": 11})
    assert again["cluster-1"] == "Completed"
    assert models(module_home, other.result()) == models(module_home, honest.result())
    assert len(set(models(module_home, honest.result()))) == 3
    scores = [read_results(state.result())["iterations"][0] for state in (other, honest)]
    assert scores[0]["mAP"] != scores[1]["mAP"], "the labels were scrambled indeed"


def test_a_failed_run_is_closed_in_mlflow(module_home, parameters):
    from mlflow.tracking import MlflowClient

    state, _ = run(parameters | {"selection": {"min_similarity": 1.0}})
    assert state.is_failed()
    assert "lower min_similarity" in state.message
    client = MlflowClient()
    experiments = [item.experiment_id for item in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`pul.flow_run_id` = '{state.state_details.flow_run_id}'")
    assert runs and {item.info.status for item in runs} <= {"FAILED", "FINISHED"}


def test_crops_without_identities_need_no_labels(module_home, parameters, tiny_pair, tmp_path):
    crops = tmp_path / "crops"
    for position, path in enumerate(sorted((tiny_pair[1] / "bounding_box_train").iterdir())):
        copy = crops / f"day {position % 3}" / f"crop-{position}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    from tasks.tracking.results import read_results

    state, tasks = run(parameters | {"target": str(crops)})
    assert not any(name.startswith("evaluate") for name in tasks)
    assert [row["reliable_set_size"] is None for row in read_results(state.result())["iterations"]] == [True, False, False]


def test_a_model_of_an_earlier_run_can_be_the_original_model(module_home, parameters):
    earlier, _ = run(parameters)
    name = earlier.result()
    state, tasks = run(parameters | {"source": None, "original_model": name})
    assert "pretrain" not in tasks and "import-model" in tasks
    assert models(module_home, state.result())[0] == models(module_home, name)[-1]


def test_fine_tuning_starts_from_the_original_and_never_from_the_last_model(module_home, parameters, monkeypatch):
    """Under a fixed reliable set, other weights of model t-1 change nothing in model t."""
    import flows.pul as module
    from tasks.store.references import Reliable

    fixed: list[Reliable] = []
    select = module.select

    def same_set(*arguments, **named):
        fixed.append(select(*arguments, **named))
        return fixed[0]

    monkeypatch.setattr(module, "select", same_set)
    monkeypatch.setattr(module, "derive_seed", lambda seed, *names: 7)
    state, _ = run(parameters | {"stopping": {"max_iterations": 3, "stop_when_stable": False}, "seed": 5})
    _, one, two, three = models(module_home, state.result())
    assert one == two == three
    assert fixed[0].reliable.sha256 != fixed[1].reliable.sha256, "other models gave other sets, had they been asked"


def test_few_labels_and_two_sources(module_home, parameters, tmp_path, market):
    from tasks.tracking.results import read_results

    sources = [parameters["source"], str(market(tmp_path / "other", range(1, 4)))]
    state, _ = run(parameters | {"source": sources, "few_labels": {"identities": 2}})
    found = read_results(state.result())
    assert "source + other to target" in found["experiment"]
    assert found["iterations"][1]["num_labelled_images"] == 12
    assert found["iterations"][1]["num_clusters"] == 4


def test_a_deletion_request_removes_a_person_and_names_the_models_that_learnt_from_them(module_home, parameters):
    from tasks.operations.purge import digests_of_identity, purge_images, purge_run

    state, _ = run(parameters | {"few_labels": {"identities": 1}})
    name = state.result()
    digests = digests_of_identity(parameters["target"], "11")  # the one who is labelled, so every iteration learns from them
    assert len(digests) == 6
    done = purge_images(digests)
    assert {f"{name}/iteration=1", f"{name}/iteration=2"} <= set(done.models)
    assert f"{name}/iteration=0" not in done.models
    assert done.left == []
    folders = {path.parent.name for path in done.removed}
    assert {"images", "decoded", "features", "centres", "pixels"} <= folders
    for table in module_home.glob("artifacts/**/*.parquet"):
        columns = pd.read_parquet(table)
        assert not ("sha256" in columns and columns["sha256"].isin(digests).any())
    folder = module_home / "runs" / name
    assert (folder / "iteration=1" / "reliable.parquet").exists() and not (folder / "iteration=1" / "centres.parquet").exists()

    models_of_run = set(models(module_home, name))
    gone = purge_run(name)
    assert gone.left == [] and not folder.exists()
    assert models_of_run & {path.name for path in gone.removed}
    state, tasks = run(parameters | {"few_labels": {"identities": 1}})
    assert state.is_completed() and tasks["fine-tune-1"] == "Completed"


def test_runs_that_create_an_experiment_or_a_model_at_the_same_moment_share_it(module_home, monkeypatch):
    """Both look and find nothing; one is first."""
    from mlflow.exceptions import MlflowException

    from tasks.tracking import runs as tracking

    client = tracking.client()
    first = tracking._experiment("a to b")
    look = client.get_experiment_by_name
    found = iter([None])
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: next(found, look(name)))
    assert tracking._experiment("a to b").experiment_id == first.experiment_id
    assert [experiment.name for experiment in client.search_experiments()].count("a to b") == 1
    client.create_registered_model("pul a to b")
    monkeypatch.setattr(client, "search_registered_models", lambda _: [])
    tracking._make_registered_model("pul a to b")
    with pytest.raises(MlflowException, match="name"):
        tracking._make_registered_model("")
