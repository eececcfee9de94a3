"""Real flow runs: a real Prefect server, MLflow on SQLite, real training on a tiny pair of data sets."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect.settings import PREFECT_API_URL

from pul_core.errors import DataError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("module_home", "prefect_server")]


BY_CAMERA = {"statistics": {"by_camera": True, "min_images": 4}}


def run(parameters):
    """Run the flow; return its final state, and the state names of its task runs by name."""
    from flows.pul import pul

    state = pul(**parameters, return_state=True)
    return state, task_states(state.state_details.flow_run_id)


def task_states(flow_run_id):
    """Return the state names of a flow run's task runs by name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        only = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        return {task.name: task.state_name for task in client.read_task_runs(flow_run_filter=only)}


def models(home, name):
    """Return the artifact names, which are digests, of the weights of all iterations, as the steps exchange them."""
    return [path.resolve().name for path in sorted(Path(home, "runs", name).glob("iteration=*/weights.safetensors"))]


@pytest.fixture(scope="module")
def parameters(tiny, tiny_pair):
    source, target = tiny_pair
    return tiny | {"source": str(source), "target": str(target)}


@pytest.fixture(scope="module")
def first_run(module_home, prefect_server, parameters):
    """Final state and task states of a run that no test changes."""
    return run(parameters)


def test_a_run_writes_the_documented_files(module_home, first_run):
    state, tasks = first_run
    name = state.result()
    folder = module_home / "runs" / name
    assert {"index-source", "pretrain", "cluster-1", "select-1", "fine-tune-2", "evaluate-0", "evaluate-2"} <= set(tasks)
    assert json.loads((folder / "config.json").read_text())["selection"]["min_similarity"] == 0.5
    table = pd.read_parquet(folder / "iterations.parquet")
    assert table["iteration"].tolist() == [0, 1, 2]
    assert np.isnan(table["reliable_set_size"][0]) and table["reliable_set_size"][1] >= 4
    for kind in ("clusters", "centres", "reliable", "features", "scores", "training"):
        assert (folder / "iteration=1" / f"{kind}.parquet").exists()


def test_the_graph_has_the_edges_of_the_loop_and_few_enough_for_prefect_to_draw(module_home, parameters, graph):
    stopping = {"max_iterations": 4, "stop_when_stable": False}  # as in the demo
    state, _ = run(parameters | {"stopping": stopping})
    nodes = graph(PREFECT_API_URL.value(), state.state_details.flow_run_id)
    label = {key: node["label"] for key, node in nodes.items()}
    parents = {key: {parent["id"] for parent in node["parents"]} for key, node in nodes.items()}
    edges = {label[key]: sorted(label[parent] for parent in parents[key]) for key in nodes}
    assert edges["extract-features-1-train"] == ["decode-train-64x32", "fine-tune-1"]
    assert edges["cluster-2"] == ["extract-features-1-train", "index-target"]
    assert edges["select-2"] == ["cluster-2"]
    assert edges["fine-tune-2"] == ["decode-train-64x32", "pretrain", "select-2"]
    assert "evaluate-2" in edges["track-iteration-2"]
    assert edges["finish-run"] == [*(f"track-iteration-{t}" for t in range(5)), "track-run"]

    listed = Counter((key, child["id"]) for key, node in nodes.items() for child in node["children"])
    assert listed == {(parent, child): max(1, len(parents[parent])) for child in nodes for parent in parents[child]}
    assert listed.total() < 500, "Prefect's page draws no edges if there are 500 or more"


def test_mlflow_has_one_parent_run_and_one_nested_run_per_iteration_with_its_model(first_run):
    import mlflow
    from mlflow.tracking import MlflowClient

    from tasks.tracking.results import read_results

    state, _ = first_run
    results = read_results(state.result())
    assert [row["iteration"] for row in results["iterations"]] == [0, 1, 2]
    client = MlflowClient()
    experiment = client.get_experiment_by_name(results["experiment"])
    runs = client.search_runs([experiment.experiment_id], f"tags.`pul.flow_run_id` = '{state.state_details.flow_run_id}'")
    parents = [item for item in runs if item.data.tags["pul.kind"] == "run"]
    nested = [item for item in runs if item.data.tags["pul.kind"] == "iteration"]
    assert (len(parents), len(nested)) == (1, 3)
    assert {item.info.status for item in runs} == {"FINISHED"}
    assert parents[0].data.params["selection.min_similarity"] == "0.5"
    assert {item.dataset.name for item in parents[0].inputs.dataset_inputs} == {"source", "target"}
    assert [metric.step for metric in client.get_metric_history(parents[0].info.run_id, "mAP")] == [0, 1, 2]
    last = next(item for item in nested if item.data.tags["pul.iteration"] == "2")
    loaded = mlflow.pyfunc.load_model(f"models:/{last.data.tags['pul.model_id']}")
    assert loaded.predict(pd.DataFrame({"pixels": list(np.zeros((2, 64, 32, 3), np.uint8))})).shape == (2, 96)
    (registered,) = client.search_model_versions(f"run_id = '{last.info.run_id}'")
    versions = client.search_model_versions(f"name = '{registered.name}'")
    assert int(client.get_model_version_by_alias(registered.name, "candidate").version) == max(int(item.version) for item in versions)
    card = client.get_model_version(registered.name, registered.version).description
    assert f"run {state.result()}" in card and "## Responsible use" in card
    assert f"| mAP | {100 * results['iterations'][0]['mAP']:.1f} %" in card
    assert "`candidate`: version" in client.get_registered_model(registered.name).description


def test_an_equal_run_is_served_from_the_cache_and_has_full_curves(module_home, parameters, first_run):
    from tasks.tracking.results import read_results

    first, _ = first_run
    second, tasks = run(parameters)
    steps = ("pretrain", "decode", "extract", "cluster", "select", "fine-tune", "evaluate")
    assert {status for name, status in tasks.items() if name.startswith(steps)} == {"Cached"}
    assert models(module_home, first.result()) == models(module_home, second.result())
    rows = [read_results(state.result())["iterations"] for state in (first, second)]
    assert rows[0] == rows[1]


def test_a_damaged_artifact_is_computed_again_and_the_result_is_the_same(module_home, parameters, first_run):
    state, _ = first_run
    folder = module_home / "runs" / state.result()
    before = models(module_home, state.result())
    (folder / "iteration=2" / "clusters.parquet").resolve().write_bytes(b"damaged")
    (folder / "iteration=1" / "features.parquet").resolve().unlink()
    again, tasks = run(parameters)
    assert tasks["cluster-2"] == "Completed" and tasks["extract-features-0-train"] == "Completed"
    assert tasks["pretrain"] == "Cached"
    assert models(module_home, again.result()) == before


@pytest.mark.parametrize("switches", [{}, BY_CAMERA], ids=["plain", "by camera"])
def test_labels_of_the_target_do_not_influence_the_models(module_home, parameters, tiny_pair, monkeypatch, tmp_path, switches):
    """Scrambled identities of the target change the scores, but not a byte of the models."""
    parameters = parameters | {"seed": 11} | switches
    import tasks.index as module
    from tasks.tracking.results import read_results

    _, target = tiny_pair
    rng = np.random.default_rng(3)
    original_read = module.read_layout

    def scrambled(root, *options):
        layout, listed = original_read(root, *options)
        if Path(root) != target:
            return layout, listed
        listed = list(listed)
        for split in ("train", "query", "gallery"):
            positions = [position for position, image in enumerate(listed) if image.split == split]
            for position, pid in zip(positions, rng.permutation([listed[position].pid for position in positions]), strict=True):
                listed[position] = listed[position]._replace(pid=int(pid))
        return layout, listed

    monkeypatch.setattr(module, "read_layout", scrambled)
    with_scrambled, _ = run(parameters)
    monkeypatch.setattr(module, "read_layout", original_read)
    # The second run, with the true labels, must not use the cache. The artifacts of earlier runs are put back afterwards.
    artifacts = module_home / "artifacts"
    artifacts.rename(tmp_path / "artifacts")
    with_true, tasks = run(parameters)
    shutil.copytree(tmp_path / "artifacts", artifacts, dirs_exist_ok=True)
    assert tasks["cluster-1"] == "Completed"
    assert models(module_home, with_scrambled.result()) == models(module_home, with_true.result())
    assert len(set(models(module_home, with_true.result()))) == 3
    scores = [read_results(state.result())["iterations"][0] for state in (with_scrambled, with_true)]
    assert scores[0]["mAP"] != scores[1]["mAP"], "scrambling has an effect on the scores"


def test_statistics_by_camera_are_reported_beside_direct_transfer_and_joined_to_the_models(module_home, parameters, first_run):
    import mlflow
    from mlflow.tracking import MlflowClient

    from flows.evaluate import evaluate_model
    from tasks.export.embed import embed_folder
    from tasks.tracking.results import read_results

    state, tasks = run(parameters | BY_CAMERA)
    assert {"statistics-0", "statistics-2"} <= set(tasks) and tasks["pretrain"] == "Cached"
    results = read_results(state.result())
    plain = read_results(first_run[0].result())["iterations"][0]
    direct, first, second = results["iterations"]
    assert (direct["mAP"], direct["rank_1"]) == (plain["mAP"], plain["rank_1"]), "iteration 0 uses no target image"
    assert direct["mAP_statistics"] is not None and first["mAP_statistics"] is None
    folder = module_home / "runs" / state.result()
    assert {"scores", "scores_statistics", "statistics", "model", "weights"} == {path.stem for path in (folder / "iteration=0").iterdir()}
    assert set(pd.read_parquet(folder / "iteration=2" / "statistics.parquet")["camid"].dropna()) == {1, 2}
    assert inputs_of(folder / "iteration=1" / "features.parquet")["statistics"]["statistics"].startswith(
        (folder / "iteration=0" / "statistics.parquet").resolve().stem
    )
    runs = MlflowClient().search_runs(
        [MlflowClient().get_experiment_by_name(results["experiment"]).experiment_id],
        f"tags.`pul.flow_run_id` = '{state.state_details.flow_run_id}' and tags.`pul.kind` = 'iteration'",
    )
    table = pd.DataFrame({"pixels": list(np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), np.uint8))})
    for item in runs:
        loaded = mlflow.pyfunc.load_model(f"models:/{item.data.tags['pul.model_id']}")
        if item.data.tags["pul.iteration"] == "0":
            assert loaded.predict(table).shape == (3, 96) and "camid" not in loaded.metadata.get_input_schema().input_names()
        else:
            one, other, unknown = (loaded.predict(table.assign(camid=camid)) for camid in (1, 2, -1))
            assert not np.array_equal(one, other) and np.array_equal(unknown, loaded.predict(table))
    out = module_home / "features.parquet"
    embed_folder(state.result(), parameters["target"], str(out), device="cpu", threads=1)
    by_run = pq.read_table(out)
    rows = by_run.to_pandas()
    last = next(item for item in runs if item.data.tags["pul.iteration"] == "2")
    paths = [f"{parameters['target']}/{path}" for path in rows["path"]]
    served = mlflow.pyfunc.load_model(f"models:/{last.data.tags['pul.model_id']}").predict(
        pd.DataFrame({"path": paths, "camid": rows["camera"].astype(int)})
    )
    embedded = np.stack(rows["feature"])
    for uri in (f"models:/{last.data.tags['pul.model_id']}", f"models:/{MlflowClient().search_registered_models()[0].name}@candidate"):
        embed_folder(uri, parameters["target"], str(out), device="cpu", threads=1)
        assert pq.read_table(out).equals(by_run), uri
    np.testing.assert_allclose(embedded, served, atol=0.02 * np.abs(served).max())  # `pul embed` may compute in bfloat16
    statistics = {"by_camera": True, "min_images": 4}
    options = {"data": parameters["target"], "statistics": statistics, "machine": {"threads": 1}}
    for reference, name, row in ((f"{state.result()}/iteration=0", "mAP_statistics", direct), (state.result(), "mAP", second)):
        assert evaluate_model(reference, **options)["plain"]["mAP"] == row[name], "the same images are drawn"


def test_style_groups_stand_for_cameras_that_are_unknown(module_home, parameters, tmp_path):
    """They are found with the original model, once, and every model has statistics of its own for them."""
    (target := tmp_path / "target").mkdir()
    for number, file in enumerate(sorted(Path(parameters["target"], "bounding_box_train").iterdir())):
        (target / f"{number:03d}.jpg").write_bytes(file.read_bytes())
    changes = {"target": str(target), "statistics": {"by_camera": True, "style_groups": 2, "min_images": 4}}
    state, tasks = run(parameters | changes | {"stopping": {"max_iterations": 1}})
    assert state.is_completed() and [name for name in tasks if name.startswith("group")] == ["group-by-style"]
    folder = module_home / "runs" / state.result()
    for iteration in (0, 1):
        links = folder / f"iteration={iteration}"
        assert set(pd.read_parquet(links / "cameras.parquet")["camid"]) == {-2, -3}
        assert set(pd.read_parquet(links / "statistics.parquet")["camid"].dropna()) == {-2, -3}
    cameras = inputs_of(folder / "iteration=1" / "clusters.parquet")["cameras"]
    assert cameras.startswith((folder / "iteration=0" / "cameras.parquet").resolve().stem)
    report_on(state.result(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Groups of images of similar style stand for them." in page and "were in iteration 1" not in page
    check_that_new_images_have_the_same_features(state, tmp_path)


def check_that_new_images_have_the_same_features(state, folder):
    """The run, its model in MLflow and its export agree, and the camera of a new image does not matter."""
    from tasks.export.embed import embed_folder
    from tasks.export.export_run import export_run
    from tasks.export.options import Options
    from tasks.tracking.client import search_all_runs

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8))
    for camera in ("1", "2"):
        (folder / "crops" / camera).mkdir(parents=True)
        image.save(folder / "crops" / camera / "a.png")
    runs = search_all_runs(f"tags.`pul.flow_run_id` = '{state.state_details.flow_run_id}' and tags.`pul.iteration` = '1'")
    export_run(state.result(), Options("safetensors", threads=1), out=folder / "exported")

    def features_by(model):
        embed_folder(model, str(folder / "crops"), str(folder / "out"), pattern="(?P<camera>[^/]+)/", device="cpu", threads=1)
        table = pd.read_parquet(folder / "out")
        assert sorted(table["camera"]) == ["1", "2"]
        return np.stack(table["feature"])

    by_run = features_by(state.result())
    allowed = 0.02 * np.abs(by_run).max()  # some may compute in bfloat16
    np.testing.assert_allclose(by_run[0], by_run[1], atol=allowed)
    assert np.abs(by_run - features_by(f"{state.result()}/iteration=0")).max() > allowed
    for model in (f"models:/{runs[0].data.tags['pul.model_id']}", str(folder / "exported")):
        np.testing.assert_allclose(features_by(model), by_run, atol=allowed)


def test_a_failed_run_is_failed_in_mlflow(module_home, parameters):
    from tasks.tracking.client import search_all_runs

    state, _ = run(parameters | {"selection": {"min_similarity": 1.0}})
    assert state.is_failed()
    assert "lower min_similarity" in state.message
    runs = search_all_runs(f"tags.`pul.flow_run_id` = '{state.state_details.flow_run_id}'")
    statuses = [(run.data.tags["pul.kind"], run.data.tags.get("pul.iteration"), run.info.status) for run in runs]
    assert sorted(statuses) == [("iteration", "0", "FINISHED"), ("run", None, "FAILED")], "iteration 0 was finished before the failure"


def test_a_target_without_identities_is_adapted_to_and_not_scored(module_home, parameters, tiny_pair, tmp_path):
    crops = tmp_path / "crops"
    for position, path in enumerate(sorted((tiny_pair[1] / "bounding_box_train").iterdir())):
        copy = crops / f"day {position % 3}" / f"crop-{position}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    from tasks.tracking.results import read_results

    state, tasks = run(parameters | {"target": str(crops)})
    assert not any(name.startswith("evaluate") for name in tasks)
    assert [row["reliable_set_size"] is None for row in read_results(state.result())["iterations"]] == [True, False, False]


def test_the_model_of_an_earlier_run_can_be_the_original_model(module_home, parameters, first_run):
    name = first_run[0].result()
    state, tasks = run(parameters | {"source": None, "original_model": name, "stopping": {"max_iterations": 1}})
    assert "pretrain" not in tasks and "import-model" in tasks
    assert models(module_home, state.result())[0] == models(module_home, name)[-1]


@pytest.mark.parametrize("start_from, distinct", [("original", 1), ("last", 3)])
def test_fine_tuning_starts_from_the_original_or_the_last_model(module_home, parameters, monkeypatch, start_from, distinct):
    """With a fixed reliable set, the weights of model t-1 influence model t only if it starts from them."""
    import flows.pul as module
    from tasks.store.references import Reliable

    reliable_sets: list[Reliable] = []
    select = module.select

    def first_reliable_set(*args, **kwargs):
        reliable_sets.append(select(*args, **kwargs))
        return reliable_sets[0]

    monkeypatch.setattr(module, "select", first_reliable_set)
    monkeypatch.setattr(module, "derive_seed", lambda seed, *names: 7)
    model = parameters["model"] | {"start_from": start_from}
    state, _ = run(parameters | {"model": model, "stopping": {"max_iterations": 3, "stop_when_stable": False}, "seed": 5})
    _, one, two, three = models(module_home, state.result())
    assert len({one, two, three}) == distinct
    assert reliable_sets[0].reliable.sha256 != reliable_sets[1].reliable.sha256, "the models would select different sets"


def test_few_labels_and_two_sources(module_home, parameters, tmp_path, market):
    from tasks.tracking.results import read_results

    sources = [parameters["source"], str(market(tmp_path / "other", range(1, 4)))]
    state, _ = run(parameters | {"source": sources, "few_labels": {"identities": 2}, "stopping": {"max_iterations": 1}})
    results = read_results(state.result())
    assert "source + other to target" in results["experiment"]
    assert results["iterations"][1]["num_labelled_images"] == 12
    assert results["iterations"][1]["num_clusters"] == 4


def test_runs_are_compared_side_by_side(module_home, parameters):
    from tasks.report.build import comparison_page, report_page
    from tasks.report.compare import comparability, comparison_table, differences_table
    from tasks.report.run_data import read_run

    names = [run(parameters | {"stopping": {"max_iterations": limit, "stop_when_stable": False}})[0].result() for limit in (1, 2)]
    runs = [read_run(name) for name in names]
    table = comparison_table(runs)
    rows = [dict(zip(table.titles, row, strict=True)) for row in table.rows]
    assert [[row[title] for title in ("run", "recipe", "iterations", "ended")] for row in rows] == [
        [names[0], "paper", "1", "limit"],
        [names[1], "paper", "2", "limit"],
    ]
    assert differences_table(runs).rows == [["stopping.max_iterations", "1", "2"]]
    assert comparability(runs).startswith("The runs have the same target, so")
    pages = comparison_page(runs), report_page(runs)
    assert all(name in page for name in names for page in pages) and len(pages[1]) > len(pages[0])


def report_on(name, file, **options):
    """Write a report and log it; return its file and its copies in MLflow."""
    from tasks.report.build import report_page
    from tasks.report.publish import log_report, write_report
    from tasks.report.run_data import read_run
    from tasks.tracking.client import client

    runs = [read_run(name)]
    page = report_page(runs, **options)
    write_report(file, page)
    log_report(runs, file, page)
    artifacts = client().get_run(runs[0].mlflow_run_id).info.artifact_uri.removeprefix("file://")
    return file, [Path(artifacts, "report", "report.html")]


def test_purging_a_person_deletes_their_data_and_names_the_models_trained_on_it(module_home, parameters, tmp_path):
    from tasks.operations.purge import digests_of_identity, purge_images, purge_run

    parameters = parameters | {"few_labels": {"identities": 1}, "stopping": {"max_iterations": 1}}
    state, _ = run(parameters)
    name = state.result()
    digests = digests_of_identity(parameters["target"], "11")  # the labelled identity, so every iteration is trained on it
    assert len(digests) == 6
    file, copies = report_on(name, tmp_path / "report.html", with_images=True)
    done = purge_images(digests)
    assert {file, *copies} <= set(done.removed) and not any(path.exists() for path in (file, *copies))
    assert f"{name}/iteration=1" in done.models
    assert f"{name}/iteration=0" not in done.models
    assert done.remaining == []
    folders = {path.parent.name for path in done.removed}
    assert {"images", "decoded", "features", "centres", "pixels"} <= folders
    for table in module_home.glob("artifacts/**/*.parquet"):
        columns = pd.read_parquet(table)
        assert not ("sha256" in columns and columns["sha256"].isin(digests).any())
    folder = module_home / "runs" / name
    assert (folder / "iteration=1" / "reliable.parquet").exists() and not (folder / "iteration=1" / "centres.parquet").exists()

    models_of_run = set(models(module_home, name))
    figures = list(module_home.glob("mlartifacts/*/artifacts/figures/curves.png"))
    purged = purge_run(name)
    assert purged.remaining == [] and not folder.exists()
    assert sum(not path.exists() for path in figures) == 1
    assert models_of_run & {path.name for path in purged.removed}
    state, tasks = run(parameters)
    assert state.is_completed() and tasks["fine-tune-1"] == "Completed"


RECIPES_RUN = {
    # The recipe's own settings but for sizes: what its clustering, selection and trainings were given, from the provenance of the files.
    "modern": ({"dbscan": {"num_neighbours": 6, "num_averaged": 2}}, {"settings": "Dbscan"}, {"centre_cameras": True}, "adam"),
    "released-code": (
        {"kmeans": {"num_clusters": 6}},
        {"settings": "KMeans", "num_restarts": 10, "centre_from": "all", "normalise": False},
        {"centre_cameras": False},
        "sgd",
    ),
}


def inputs_of(file):
    """Return the inputs of the step that wrote a table."""
    return json.loads(pq.read_schema(file).metadata[b"pul.provenance"])["inputs"]


@pytest.mark.parametrize("recipe", RECIPES_RUN)
def test_a_recipe_runs_from_end_to_end_with_its_own_algorithm(module_home, parameters, recipe):
    from tasks.tracking.results import read_results

    sizes, algorithm, centring, optimiser = RECIPES_RUN[recipe]
    kept = {name: parameters[name] for name in ("source", "target", "model", "pretraining", "fine_tuning", "stopping", "machine")}
    state, _ = run(kept | {"recipe": recipe} | sizes)
    assert state.is_completed(), state.message
    results = read_results(state.result())
    assert (results["status"], results["stop_reason"]) == ("finished", "limit")
    assert [row["iteration"] for row in results["iterations"]] == [0, 1, 2]
    assert all(0 < row["mAP"] <= 1 and 0 <= row["rank_1"] <= 1 for row in results["iterations"])
    assert all(row["reliable_set_size"] >= 4 for row in results["iterations"][1:])
    for iteration in (1, 2):
        folder = module_home / "runs" / state.result() / f"iteration={iteration}"
        clustering, training = inputs_of(folder / "clusters.parquet"), inputs_of(folder / "training.parquet")
        assert algorithm.items() <= clustering["algorithm"].items() and centring.items() <= clustering.items()
        assert training["settings"]["optimisation"]["optimiser"] == optimiser


# --- runs with equal names


def test_two_runs_called_baseline_keep_their_own_files_and_results(module_home, parameters):
    """Prefect's *Custom run* lets people repeat a name; one of the two is also retried after the other has run."""
    from prefect.client.orchestration import get_client

    from flows.pul import pul
    from tasks.operations.purge import purge_run
    from tasks.store.runs import find_run_folder
    from tasks.tracking.results import find_run, read_results

    baseline = pul.with_options(flow_run_name="baseline")
    short = parameters | {"stopping": {"max_iterations": 1}}
    states = [baseline(**short | {"seed": seed}, return_state=True) for seed in (0, 1)]
    first, second = (state.result() for state in states)
    assert first != second and all(run_id.startswith("baseline-") for run_id in (first, second))
    for run_id, seed, state in ((first, 0, states[0]), (second, 1, states[1])):
        folder = module_home / "runs" / run_id
        assert json.loads((folder / "config.json").read_text())["seed"] == seed
        record = json.loads((folder / "run.json").read_text())
        assert (record["id"], record["name"]) == (run_id, "baseline")
        assert record["flow_run_id"] == str(state.state_details.flow_run_id)
        mlflow_run = find_run(run_id)
        assert (mlflow_run.info.run_name, mlflow_run.data.tags["pul.run_id"]) == ("baseline", run_id)
        assert (mlflow_run.data.params["seed"], read_results(run_id)["status"]) == (str(seed), "finished")
        with get_client(sync_client=True) as client:
            assert run_id in client.read_flow_run(state.state_details.flow_run_id).tags
    assert list((module_home / "processes").glob("*-*")), "flow runs are visible to housekeeping"
    for look_up in (read_results, find_run_folder, purge_run):
        with pytest.raises(DataError, match=f"fits 2 runs.*{first}"):
            look_up("baseline")
    kept = models(module_home, second)
    assert models(module_home, first) != kept

    # A run of the same name that starts from the first one records which of them it was.
    state = baseline(**short | {"source": None, "original_model": first[:-1]}, return_state=True)
    third = state.result()
    assert json.loads((module_home / "runs" / third / "config.json").read_text())["original_model"] == first
    assert models(module_home, third)[0] == models(module_home, first)[-1]

    assert purge_run(first).remaining == []
    assert {first, second, third} & {folder.name for folder in (module_home / "runs").iterdir()} == {second, third}
    assert models(module_home, second) == kept and all((module_home / "artifacts" / "models" / name).exists() for name in kept)
    assert all((module_home / "artifacts" / "models" / name).exists() for name in models(module_home, third)), "also that of the first run"


# --- resumed and repeated runs


def test_a_run_is_resumed_with_fewer_cores_and_repeated_with_the_recorded_threads(home, pul_here, parameters, monkeypatch, tmp_path):
    """The source model is not trained again although the number of threads differs; both numbers are recorded."""
    import flows.pul as module
    from tasks.engine import compute
    from tasks.tracking.client import search_all_runs
    from tasks.tracking.results import read_results

    def fail(*_, **__):
        raise RuntimeError("the power fails")

    def parent_run(name):
        (run,) = search_all_runs(f"tags.`pul.kind` = 'run' and tags.`pul.run_id` = '{name}'")
        return run

    file = tmp_path / "parameters.json"
    file.write_text(json.dumps(parameters | {"machine": {}, "stopping": {"max_iterations": 1}}))
    with monkeypatch.context() as patch:
        patch.setattr(compute, "available_cores", lambda: 2)
        patch.setattr(module, "cluster", fail)
        assert "the power fails" in pul_here("run", "--config", file)
    (folder,) = (home / "runs").iterdir()
    first = parent_run(folder.name)
    assert (first.info.status, first.data.tags["pul.threads"]) == ("FAILED", "2")
    assert task_states(first.data.tags["pul.flow_run_id"])["pretrain"] == "Completed"

    with monkeypatch.context() as patch:
        patch.setattr(compute, "available_cores", lambda: 1)
        assert pul_here("resume") == 0
    resumed = parent_run(folder.name)
    assert (resumed.info.status, resumed.data.tags["pul.threads"]) == ("FINISHED", "2, 1")
    states = task_states(resumed.data.tags["pul.flow_run_id"])
    assert (states["pretrain"], states["fine-tune-1"]) == ("Cached", "Completed")
    config = json.loads((folder / "config.json").read_text())
    assert [record["threads"] for record in config["resolved"]] == [2, 1] and config["machine"]["threads"] is None

    with monkeypatch.context() as patch:
        patch.setattr(compute, "available_cores", lambda: 2)
        patch.delenv("PUL_RESUME")  # set by pul resume, for its own process
        assert pul_here("run", "--config", folder / "config.json") == 0
    (repeated,) = {path.name for path in (home / "runs").iterdir()} - {folder.name}
    assert parent_run(repeated).data.tags["pul.threads"] == "1", "the last recorded number, although there are two cores"
    assert read_results(repeated)["iterations"] == read_results(folder.name)["iterations"]


def test_runs_that_create_an_experiment_at_the_same_time_share_it(module_home, monkeypatch):
    """Both runs look up the name before either has created it."""
    from tasks.tracking import client as module

    client = module.client()
    first = module.get_or_create_experiment("a to b")
    get_experiment_by_name = client.get_experiment_by_name
    answers = iter([None])
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: next(answers, get_experiment_by_name(name)))
    assert module.get_or_create_experiment("a to b").experiment_id == first.experiment_id
    assert [experiment.name for experiment in client.search_experiments()].count("a to b") == 1
