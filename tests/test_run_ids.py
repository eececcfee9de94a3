"""Each run has a unique id, and each pair of data sets its own experiment and registered model, whatever their names. MLflow on SQLite."""

import itertools
import json
import re
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Dataset, DatasetInput, InputTag
from typer.testing import CliRunner

from deployments.cli import app
from pul_core.errors import DataError
from tasks.models import model_file
from tasks.operations.lost_runs import close_lost_runs, config_to_resume, running_runs
from tasks.operations.purge import purge_run
from tasks.store.config import resolve_plan
from tasks.store.runs import create_run_folder, find_run_folder, matching_ids, new_run_id, safe_run_name
from tasks.tracking.client import client, get_or_create_experiment, search_all_runs
from tasks.tracking.domain_pairs import canonical_location, domain_pair, experiment_of, registered_model_of
from tasks.tracking.results import RUN_ID_TAG, find_run, read_results, run_id_of
from tasks.tracking.runs import PROCESS_TAG, _log_inputs

NAMES = st.sampled_from(["baseline", "baseline-2", "amber-fox", "b", "run", "a.b_c"])
IDS = st.lists(st.tuples(NAMES, st.uuids().map(str)), max_size=8).map(lambda pairs: {new_run_id(*pair): pair[0] for pair in pairs})


@given(IDS)
def test_an_id_is_found_and_a_name_only_if_it_is_unique(names):
    for run_id, name in names.items():
        assert matching_ids(run_id, names) == [run_id]
        if name not in names:
            assert matching_ids(name, names) == [other for other in names if names[other] == name]
    for nonsense in ("", ".", "..", "/", "../baseline", "baseline/", "%", "_", "'", "baseline'", "*", "\0"):
        assert matching_ids(nonsense, names) in ([], [run_id for run_id in names if safe_run_name(nonsense) == names[run_id]])
    for traversal in ("..", "../baseline", "/baseline", "./b"):
        assert matching_ids(traversal, names) == []


def test_ids_of_runs_that_start_in_the_same_second_differ():
    from prefect._internal.uuid7 import uuid7  # of flow runs; it begins with the time

    assert len({new_run_id("baseline", str(uuid7())) for _ in range(1000)}) == 1000


# --- in MLflow and on disk


@pytest.fixture
def runs_home(module_home):
    """A home without runs."""
    for folder in (module_home / "runs").glob("*"):
        purge_run(folder.name)
    yield module_home
    for run in search_all_runs(""):
        client().delete_run(run.info.run_id)


def start(home, name, *, status="FINISHED", folder=True, flow_run_id=None, **tags):
    """Create a run as `track_run` does, with one iteration that has a model; return its id."""
    flow_run_id = flow_run_id or str(uuid.uuid4())
    run_id = new_run_id(name, flow_run_id)
    experiment = get_or_create_experiment("a to b").experiment_id
    run = client().create_run(
        experiment, run_name=name, tags={"pul.kind": "run", RUN_ID_TAG: run_id, "pul.flow_run_id": flow_run_id} | tags
    )
    nested_tags = {"mlflow.parentRunId": run.info.run_id, "pul.iteration": "0", "pul.kind": "iteration"}
    nested = client().create_run(experiment, run_name=f"{name} iteration 0", tags=nested_tags)
    client().log_metric(nested.info.run_id, "mAP", int(run_id[-8:], 16))
    for item, end in ((nested, "FINISHED"), (run, status)):
        if end != "RUNNING":
            client().set_terminated(item.info.run_id, end)
    if folder:
        path = create_run_folder(run_id, name, flow_run_id)
        (path / "config.json").write_text('{"target": "x"}')
        (path / "iteration=0").mkdir()
        (path / "iteration=0" / "model.safetensors").write_text(run_id)
    return run_id


def commands(reference):
    """Call what each command calls with the run that the user gives."""
    yield lambda: read_results(reference)["run"]
    yield lambda: config_to_resume(reference)[0]
    yield lambda: model_of(reference)
    yield lambda: model_of(f"{reference}/iteration=0")


def model_of(reference):
    with model_file(reference) as path:
        return path.read_text()


def test_every_command_refuses_a_name_of_two_runs_and_lists_their_ids(runs_home):
    first, second = (start(runs_home, "baseline", status="FAILED") for _ in range(2))
    other = start(runs_home, "baseline-2", status="KILLED")
    for command in commands("baseline"):
        with pytest.raises(DataError, match="'baseline' fits 2 runs: give the id of one: ") as refused:
            command()
        assert first in str(refused.value) and second in str(refused.value) and other not in str(refused.value)
        assert re.search(r"\(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d, (failed|not finished)\)", str(refused.value))
    with pytest.raises(DataError, match="fits 2 runs"):
        purge_run("baseline")
    for run_id in (first, second, other):
        for reference in (run_id, run_id[:-1], "baseline-2" if run_id == other else run_id[:-3]):
            assert [command() for command in commands(reference)] == [run_id] * 4
    assert read_results(first)["iterations"][0]["mAP"] == int(first[-8:], 16)
    assert purge_run(first[:-1]).remaining == []
    assert {folder.name for folder in (runs_home / "runs").iterdir()} == {second, other}
    assert {run_id_of(run) for run in search_all_runs("tags.`pul.kind` = 'run'")} == {second, other}
    assert len(search_all_runs("tags.`pul.kind` = 'iteration'")) == 2
    assert [command() for command in commands("baseline")] == [second] * 4, "the name is unique again"


def test_the_list_of_runs_has_the_newest_first_with_their_last_iterations(runs_home, table_of):
    """A run whose process is gone is lost, although MLflow has it as running."""
    pul = CliRunner()
    assert "there are no runs yet" in str(pul.invoke(app, ["results", "--list"]).exception)
    gone = f"{socket.gethostname()} {2**22 + 1} 0"
    states = {"baseline": "FINISHED", "amber-fox": "FAILED", "calm-owl": "KILLED", "red-kite": "RUNNING"}
    ids = {}
    for name, status in states.items():
        ids[name] = start(runs_home, name, status=status, **{PROCESS_TAG: gone, "pul.recipe": "paper"})
        time.sleep(0.002)  # MLflow counts milliseconds
    last = find_run(ids["baseline"])
    tags = {"mlflow.parentRunId": last.info.run_id, "pul.iteration": "10", "pul.kind": "iteration"}
    nested = client().create_run(last.info.experiment_id, tags=tags)
    for name, value in (("mAP", 0.25), ("rank_1", 0.5), ("reliable_set_size", 1200)):
        client().log_metric(nested.info.run_id, name, value)
    printed = pul.invoke(app, ["results", "--list"], catch_exceptions=False).stdout
    titles, rows = table_of(printed)
    assert titles == ["run", "started", "recipe", "source to target", "state", "iterations", "reliable", "rank-1", "mAP"]
    assert [row[0] for row in rows] == [ids[name] for name in reversed(states)]
    assert [row[4] for row in rows] == ["lost", "killed", "failed", "finished"]
    assert rows[-1][2:4] == ["paper", "a to b"] and rows[-1][5:] == ["10", "1,200", "50.0 %", "25.0 %"]
    assert [row["run"] for row in json.loads(pul.invoke(app, ["results", "--list", "--json"]).stdout)] == [row[0] for row in rows]
    assert "leave one of them out" in str(pul.invoke(app, ["results", "baseline", "--list"]).exception)


def test_the_doctor_lists_interrupted_runs_with_the_command_that_resumes_them(runs_home):
    """They can wait, so the exit code is 0; a finished run is not listed."""
    runs = {start(runs_home, name, status=status): status for name, status in (("amber-fox", "FAILED"), ("calm-owl", "KILLED"))}
    finished = start(runs_home, "baseline")
    done = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    for run_id, status in runs.items():
        assert f"{status.lower():8} {run_id}: pul resume {run_id} continues it" in done.stdout
        assert config_to_resume(run_id)[0] == run_id
    assert done.exit_code == 0 and finished not in done.stdout
    assert done.stdout.splitlines()[-1] == "nothing else requires attention"


@pytest.mark.parametrize(
    "reference", ["", "..", "../baseline", "/", "b", "ba", "red-fox", "x' OR '1'='1", "base%", "%", "\0", "baseline/", "_aseline"]
)
def test_a_reference_that_fits_no_run_is_refused(runs_home, reference):
    run_id = start(runs_home, "baseline", status="FAILED")
    for command in (read_results, config_to_resume, purge_run):
        with pytest.raises(DataError, match="there is no run"):
            command(reference)
    assert find_run_folder(reference) is None
    assert (runs_home / "runs" / run_id).exists()


def test_a_short_prefix_of_an_id_of_mlflow_fits_no_run(runs_home):
    mlflow_id = find_run(start(runs_home, "baseline")).info.run_id
    for length in (1, 2, 3):
        with pytest.raises(DataError, match="there is no run"):
            read_results(mlflow_id[:length])
    assert read_results(mlflow_id[:4])["name"] == "baseline"


def test_a_name_is_accepted_as_prefect_shows_it_and_a_prefix_of_the_id_of_mlflow(runs_home):
    run_id = start(runs_home, safe_run_name("Köln, 2nd try (baseline)"))
    assert read_results("Köln, 2nd try (baseline)")["run"] == run_id
    assert find_run_folder("Köln, 2nd try (baseline)").name == run_id
    assert read_results(find_run(run_id).info.run_id[:8])["run"] == run_id


def test_a_run_of_an_older_version_is_found_by_its_name(runs_home):
    experiment = get_or_create_experiment("a to b").experiment_id
    run = client().create_run(experiment, run_name="old-fox", tags={"pul.kind": "run", "pul.flow_run_id": "x"})
    client().set_terminated(run.info.run_id, "FINISHED")
    (runs_home / "runs" / "old-fox").mkdir(parents=True)
    assert read_results("old-fox")["run"] == "old-fox"
    assert find_run_folder("old-fox").name == "old-fox"
    other = start(runs_home, "red-fox")
    purge_run("old-fox")
    assert [run_id_of(run) for run in search_all_runs("tags.`pul.kind` = 'run'")] == [other]


def test_a_lost_run_is_reported_by_its_id_beside_a_running_one_of_the_same_name(runs_home):
    import os
    import socket

    from tasks.tracking.runs import process_key

    alive = start(runs_home, "baseline", status="RUNNING", **{PROCESS_TAG: process_key(os.getpid())})
    lost = start(runs_home, "baseline", status="RUNNING", **{PROCESS_TAG: f"{socket.gethostname()} {os.getpid()} 1"})
    assert running_runs() == [alive]
    with pytest.raises(DataError, match=f"run {alive} is still running"):
        config_to_resume(alive)
    assert config_to_resume(lost)[0] == lost
    assert close_lost_runs(prefect=False) == [lost]
    assert running_runs() == [alive]


def test_a_retry_and_a_resume_continue_the_run_that_they_belong_to(runs_home, monkeypatch):
    from tasks.tracking import runs as module

    def continued(name, flow_run_id, resumed=""):
        monkeypatch.setenv(module.RESUME, resumed)
        monkeypatch.setattr(module, "flow_run", SimpleNamespace(name=name, id=flow_run_id))
        run = module._existing_run(flow_run_id)
        return run and run_id_of(run)

    created, resuming, other, new = (str(uuid.uuid4()) for _ in range(4))
    run_id, other_id = start(runs_home, "baseline", flow_run_id=created), start(runs_home, "baseline", flow_run_id=other)
    assert continued("baseline", new) is None
    assert continued("amber-fox", resuming, resumed=run_id) == run_id
    client().set_tag(find_run(run_id).info.run_id, "pul.flow_run_id", resuming)
    assert [continued(*flow_run) for flow_run in (("baseline", created), ("amber-fox", resuming), ("baseline", other))] == [
        run_id,
        run_id,
        other_id,
    ]
    with pytest.raises(DataError, match="fits 2 runs"):
        continued("amber-fox", new, resumed="baseline")


def test_more_runs_than_a_page_of_mlflow_are_seen(runs_home, monkeypatch):
    """With pages of 2 runs and of 2 experiments instead of 1,000."""
    names = [f"run-{number}" for number in range(5)]
    run_ids = [start(runs_home, name, folder=False) for name in names]
    for number in range(3):
        get_or_create_experiment(f"c{number} to d")
    for search in ("search_runs", "search_experiments"):
        original = getattr(client(), search)
        monkeypatch.setattr(
            client(), search, lambda *args, _search=original, max_results=2, **options: _search(*args, max_results=max_results, **options)
        )
    assert len(client().search_runs([get_or_create_experiment("a to b").experiment_id])) == 2
    assert [read_results(name)["run"] for name in names] == run_ids
    assert {run_id_of(run) for run in search_all_runs("tags.`pul.kind` = 'run'")} == set(run_ids)
    assert read_results(None)["run"] == run_ids[-1]


def test_the_oldest_of_1100_runs_is_found(runs_home):
    from mlflow.store.tracking.dbmodels.models import SqlRun, SqlTag
    from sqlalchemy import create_engine, insert

    oldest = start(runs_home, "oldest")
    experiment = int(get_or_create_experiment("a to b").experiment_id)
    ids = [uuid.uuid4().hex for _ in range(1100)]
    common = {
        "experiment_id": experiment,
        "status": "FINISHED",
        "lifecycle_stage": "active",
        "source_type": "LOCAL",
        "user_id": "",
        "start_time": 2**42,
    }
    with create_engine(f"sqlite:///{runs_home}/mlflow.db").begin() as database:
        database.execute(insert(SqlRun), [common | {"run_uuid": run, "name": f"fox-{number}"} for number, run in enumerate(ids)])
        tags = [
            {"run_uuid": run, "key": key, "value": value}
            for number, run in enumerate(ids)
            for key, value in (("pul.kind", "run"), ("mlflow.runName", f"fox-{number}"))
        ]
        database.execute(insert(SqlTag), tags)
    assert read_results("oldest")["run"] == read_results(oldest)["run"] == oldest
    assert len(search_all_runs("tags.`pul.kind` = 'run'")) == 1101


# --- experiments and registered models


def pair_of(source, target, **parameters):
    plan = resolve_plan({"source": source, "target": str(target)} | parameters)
    return domain_pair(plan, [Path(path).name for path in plan.source], Path(str(target)).name)


def test_a_location_has_one_experiment_however_it_is_written(module_home, tmp_path, monkeypatch):
    (tmp_path / "crops").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "crops")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spellings in (
        ["crops", "./crops/", "crops/../crops", "~/crops", "link", f"{tmp_path}//crops/", str(tmp_path / "crops")],
        ["synthetic:7/target", "synthetic:007/target"],
        ["s3://bucket/crops", "s3://bucket/crops/", "S3://BUCKET/crops"],
    ):
        assert len({canonical_location(path) for path in spellings}) == 1, spellings
        experiments = {experiment_of(pair_of("market", path)).experiment_id for path in spellings}
        assert len(experiments) == 1


def test_data_sets_with_equal_names_have_experiments_and_models_of_their_own(module_home):
    sources = ["/siteA/shop", "/siteB/shop"]
    targets = ["/siteA/crops", "/siteB/crops", "/x/siteB/crops", "s3://b/siteA/crops", "/siteA/crops/week-1.csv"]
    pairs = [pair_of(source, target) for source, target in itertools.product(sources, targets)]
    experiments = [experiment_of(pair) for pair in pairs]
    models = [registered_model_of(experiment) for experiment in experiments]
    assert len({experiment.name for experiment in experiments}) == len(set(models)) == len(pairs)
    assert experiments[0].name == "shop to crops" and experiments[1].name == "shop in siteA to crops in siteB"
    assert models[0] == "pul shop to crops"
    for _ in range(2):  # found again, in any order
        assert [experiment_of(pair).experiment_id for pair in reversed(pairs)] == [item.experiment_id for item in reversed(experiments)]
        assert [registered_model_of(experiment_of(pair)) for pair in pairs] == models


def test_a_renamed_experiment_and_one_of_an_older_version_are_continued(module_home):
    old = get_or_create_experiment("old to crops")
    assert experiment_of(pair_of("/a/old", "/a/crops")).experiment_id == old.experiment_id
    assert experiment_of(pair_of("/b/old", "/a/crops")).experiment_id != old.experiment_id
    client().rename_experiment(old.experiment_id, "nicer")
    nicer = experiment_of(pair_of("/a/old", "/a/crops"))
    assert (nicer.experiment_id, nicer.name) == (old.experiment_id, "nicer")
    client().delete_experiment(old.experiment_id)
    assert experiment_of(pair_of("/a/old", "/a/crops")).experiment_id == old.experiment_id, "it is not mistaken for a new one"


def test_long_and_odd_names_stay_apart(module_home):
    targets = [f"/data/{'x' * 250}{number}/crops{'y' * 200}" for number in range(3)] + ["/d/a:b", "/d/a?b", "/e/a*b", "/d/<a>'b", "/d/Köln"]
    experiments = [experiment_of(pair_of("market", target)) for target in targets]
    assert len({experiment.name for experiment in experiments}) == len(targets)
    models = {registered_model_of(experiment) for experiment in experiments}
    assert len(models) == len(targets)


def test_an_original_model_is_known_by_its_file(module_home, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.pth").touch()
    a, b = (str(tmp_path / folder / "model.pth") for folder in ("a", "b"))
    pairs = [pair_of((), "/crops", original_model=model) for model in (a, f"{tmp_path}/b/../a/model.pth", b, "models:/m/1", "models:/m/2")]
    assert len({pair.digest for pair in pairs}) == 4 and pairs[0].digest == pairs[1].digest
    assert [pair.names[:2] for pair in pairs[:3:2]] == [["model.pth to crops", f"model.pth in {name} to crops"] for name in "ab"]
    order = [
        domain_pair(replace(resolve_plan({"target": "/t"}), source=source), list(source), "t").digest for source in (("a", "b"), ("b", "a"))
    ]
    assert order[0] == order[1]


def test_runs_that_start_together_can_record_the_same_data_set(runs_home):
    experiment = get_or_create_experiment("together").experiment_id
    runs = [client().create_run(experiment).info.run_id for _ in range(20)]
    barrier = threading.Barrier(4)

    def record(pair):
        number, run_id = pair
        barrier.wait()
        data = Dataset(f"set {number // 4}", "digest", "local", "{}", profile="{}")
        _log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "target")])])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(record, enumerate(runs)))
    assert all(len(client().get_run(run_id).inputs.dataset_inputs) == 1 for run_id in runs)
