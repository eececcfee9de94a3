"""The table and the means of a sweep; and real sweeps, with a Prefect server, MLflow on SQLite and a subprocess per child."""

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.settings import PREFECT_API_URL

from flows.sweep import jobs_of
from pul_core.scoring.comparison import summarise_run
from tasks.operations.grid import sweep_children
from tasks.operations.sweeps import MEANS, OpenSweep, markdown, means_over_seeds, read_sweep, write_children
from tasks.store.config import parameters_of
from tasks.tracking.client import search_all_runs


def row(number, setting="x", seed=0, status="finished", **values):
    first = {"sweep": "sweep-1", "child": number, "setting": setting, "seed": seed, "status": status, "error": None}
    return first | (summarise_run([{"rank_1": 0.5, "mAP": 0.4}]) if status == "finished" else {}) | values


@pytest.mark.parametrize("name", ["ablation_drawn", "market1501", "msmt17"])
def test_the_sweeps_of_the_repository_are_valid(name):
    config = json.loads((Path(__file__).parents[1] / "benchmarks" / f"{name}.json").read_text())
    children = sweep_children({"source": "source", "target": "target"} | config["base"], None, config["variants"], config["seeds"])
    assert [child.number for child in children] == list(range(1, 3 * len(config["variants"]) + 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.one_of(st.none(), st.integers(0, 8).map(lambda n: n / 8))), min_size=1, max_size=9))
def test_means_are_over_the_finished_children_of_a_setting(values):
    children = [
        row(number, setting, number, "failed" if mean_ap is None else "finished", mAP=mean_ap)
        for number, (setting, mean_ap) in enumerate(values, 1)
    ]
    means = means_over_seeds([dict.fromkeys(MEANS) | child for child in children])
    assert [mean["setting"] for mean in means] == list(dict.fromkeys(setting for setting, _ in values))
    for mean in means:
        known = [mean_ap for setting, mean_ap in values if setting == mean["setting"] and mean_ap is not None]
        assert (mean["seeds"], mean["failed"]) == (len(known), sum(setting == mean["setting"] for setting, _ in values) - len(known))
        assert mean["mAP"] == (pytest.approx(statistics.mean(known)) if known else None)
        assert mean["mAP_std"] == (pytest.approx(statistics.stdev(known)) if len(known) > 1 else None)


def test_the_table_holds_values_of_every_type(tmp_path):
    rows = [
        row(2, **{"set.recipe": "paper", "set.source": ["a", "b"], "set.selection.min_similarity": 0.8}),
        row(1, status="failed", error="it broke", **{"set.recipe": "modern", "set.source": "c", "set.selection.min_similarity": 1}),
        row(3, status="waiting"),
    ]
    results = read_sweep(write_children(OpenSweep(name="sweep-1", folder=str(tmp_path), started={}), rows))
    assert [child["child"] for child in results["children"]] == [1, 2, 3]
    assert [child["set.source"] for child in results["children"]] == ["c", '["a", "b"]', None]
    assert [child["set.selection.min_similarity"] for child in results["children"]] == [1, 0.8, None]
    assert [child["error"] for child in results["children"]] == ["it broke", None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["children.parquet"]
    header, *lines = markdown(results["means"]).splitlines()
    assert len(lines) == 2 and all(line.count("|") == header.count("|") for line in lines)


@pytest.fixture
def base(tiny, tiny_pair):
    return tiny | {"source": str(tiny_pair[0]), "target": str(tiny_pair[1])}


def test_children_share_a_source_model_unless_a_parameter_changes_it(base, tmp_path):
    open_sweep = OpenSweep(name="sweep-1", folder=str(tmp_path), started={})

    def names(grid):
        return [job.name for job in jobs_of(sweep_children(base, grid), open_sweep)]

    source, *children = jobs_of(sweep_children(base, {"model.centre_cameras": [True, False]}), open_sweep)
    assert [(job.name, job.after) for job in children] == [("child-1", source.name), ("child-2", source.name)]
    assert source.parameters["model"]["height"] == 64
    assert names({"model.height": [64, 96]}) == ["child-1", "child-2"], "no source model is shared"
    assert names({"model.height": [64, 96], "model.centre_cameras": [True, False]}) == [
        "source-1",
        "source-2",
        *(f"child-{n}" for n in range(1, 5)),
    ]


def run_sweep(parameters):
    """Run the flow; return its final state, and the names and state names of its children's task runs."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    from flows.sweep import sweep

    state = sweep(**parameters, return_state=True)
    of_children = FlowRunFilter(parent_flow_run_id={"any_": [state.state_details.flow_run_id]})
    with get_client(sync_client=True) as client:
        return state, [(run.name, run.state_name) for run in client.read_task_runs(flow_run_filter=of_children, limit=200)]


def runs_of(name):
    return search_all_runs(f"tags.`pul.sweep` = '{name}'")


def without_times(results):
    """Leave out the times: parallel children may both compute a step they share, and the cache keeps the time of only one of them."""
    return {
        key: [{k: v for k, v in row.items() if "seconds" not in k} for row in rows] if isinstance(rows, list) else rows
        for key, rows in results.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("prefect_server")
def test_children_share_the_source_model_failures_are_reported_and_a_second_call_uses_the_cache(module_home, base, graph):
    parameters = {"base": base, "grid": {"selection.min_similarity": [0.4, 1.0]}, "parallel": 2}
    state, tasks = run_sweep(parameters)
    assert state.is_failed()
    assert "1 of 2 children failed: child 2 (selection.min_similarity=1.0, seed 0): only" in state.message
    (table,) = module_home.glob("sweeps/*/children.parquet")
    results = read_sweep(str(table))
    first, second = results["children"]
    assert [child["status"] for child in results["children"]] == ["finished", "failed"]
    assert "lower min_similarity" in second["error"] and "\n" not in second["error"]
    assert sorted(status for name, status in tasks if name == "pretrain") == ["Cached", "Cached", "Completed"]
    iterations = pd.read_parquet(module_home / "runs" / first["run"] / "iterations.parquet")
    assert (first["stop_iteration"], first["stop_reason"]) == (2, "limit")
    assert (first["direct_mAP"], first["mAP"]) == (iterations["mAP"][0], iterations["mAP"][2])
    assert first["gain_mAP"] == first["mAP"] - first["direct_mAP"]
    assert first["oracle_best_mAP"] == iterations["mAP"].max()
    sizes = [len(pd.read_parquet(file)) for file in sorted((module_home / "runs" / first["run"]).glob("iteration=*/reliable.parquet"))]
    assert first["num_images_seen"] == sum(sizes), "one epoch per iteration"
    assert first["seconds"] > 0
    rows = [set(pd.read_parquet(module_home / "runs" / first["run"] / f"iteration={t}" / "reliable.parquet")["row"]) for t in (1, 2)]
    assert first["reliable_overlap"] == len(rows[0] & rows[1]) / len(rows[0] | rows[1])
    assert -1 <= first["reliable_agreement_ari"] <= 1
    nodes = graph(PREFECT_API_URL.value(), state.state_details.flow_run_id, "finish-sweep")
    (last,) = (node for node in nodes.values() if node["label"] == "finish-sweep")
    parents = sorted(nodes[key]["label"] for key in {parent["id"] for parent in last["parents"]})
    assert parents == ["open-sweep", *(f"record-child-{child}" for child in (1, 2))], (
        "the final rows of the children, and not the waiting ones"
    )
    name = results["sweep"]
    assert {run.data.tags["pul.sweep_child"]: run.info.status for run in runs_of(name)} == {"1": "FINISHED", "2": "FAILED"}

    state, tasks = run_sweep(parameters)
    assert state.is_failed()
    assert without_times(read_sweep(str(table))) == without_times(results), "the same runs and metrics"
    assert len(runs_of(name)) == 2, "the runs are continued, not repeated"
    steps = ("pretrain", "decode", "extract", "cluster", "select", "fine-tune", "evaluate")
    again = [(name, status) for name, status in tasks if name.startswith(steps)]
    assert [name for name, status in again if status not in ("Cached", "Failed")] == []
    assert {status for _, status in again} == {"Cached", "Failed"}
    assert [name for name, status in tasks if status == "Failed"] == ["select-1"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("prefect_server")
def test_the_command_prints_means_and_its_table_and_its_config_repeats_it(pul_here, home, tiny_options, tiny_pair, capsys):
    options = [*tiny_options, "--set=stopping.max_iterations=1", "--seeds=0,1"]
    assert pul_here("sweep", "--source", tiny_pair[0], "--target", tiny_pair[1], *options) == 0
    printed = capsys.readouterr().out
    assert "±" in printed and "(oracle)" in printed
    (folder,) = (home / "sweeps").iterdir()
    assert str(folder / "children.parquet") in printed
    assert pul_here("sweep", "--config", folder / "sweep.json", "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert [(child["seed"], child["status"]) for child in table["children"]] == [(0, "finished"), (1, "finished")]
    assert table["means"][0]["seeds"] == 2
    assert sorted(path.name for path in (home / "runs").iterdir()) == sorted(child["run"] for child in table["children"])


def wait_for_log(path, text, seconds=240):
    deadline = time.monotonic() + seconds
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, path.read_text() if path.exists() else f"{path} does not exist"
        time.sleep(0.1)


def flow_subprocesses():
    return [child for child in psutil.Process().children(recursive=True) if "tasks.operations.flow_subprocess" in child.cmdline()]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prefect_server", "module_home")
def test_a_killed_child_does_not_affect_the_others(base, tmp_path):
    from flows.pul import pul
    from tasks.operations.processes import Job, run_jobs

    grid = {"pretraining.epochs": [1000, 2]}  # the first child is still training when it is killed
    plans = [parameters_of(child.plan) for child in sweep_children(base | {"seed": 7}, grid)]
    jobs = [
        Job("killed", pul, plans[0], tmp_path / "killed.log", environment={"PUL_TEST_JOB": "killed"}),
        Job("other", pul, plans[1], tmp_path / "other.log"),
        Job("dependent", pul, plans[1], tmp_path / "dependent.log", after="killed"),
    ]

    assert search_all_runs("attributes.status = 'RUNNING'") == []  # also creates MLflow's database, as `open_sweep` does

    def kill_while_both_run():
        for job in jobs[:2]:
            wait_for_log(job.log, "'track-run' - Finished")
        running = [run for run in search_all_runs("attributes.status = 'RUNNING'") if "mlflow.parentRunId" not in run.data.tags]
        (process,) = (process for process in flow_subprocesses() if process.environ().get("PUL_TEST_JOB") == "killed")
        process.kill()  # first of all: `run_jobs` waits for it
        assert len(running) == 2

    with ThreadPoolExecutor(1) as executor:
        kill = executor.submit(kill_while_both_run)
        results = {result.job: result for result in run_jobs(jobs, parallel=2)}
        kill.result()
    assert "killed by signal 9" in results["killed"].error
    assert results["other"].error is None
    assert results["dependent"].error.startswith("killed failed: its process was killed") and results["dependent"].flow_run_id is None
    assert search_all_runs("attributes.status = 'RUNNING'") == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("prefect_server", "module_home")
def test_stopping_a_sweep_stops_its_processes_and_closes_their_runs(base, tmp_path):
    from flows.pul import pul
    from tasks.operations.processes import Job, run_jobs

    plan = parameters_of(sweep_children(base | {"seed": 5}, {"pretraining.epochs": [1000]})[0].plan)
    long = Job("long", pul, plan, tmp_path / "long.log")
    short = Job("short", pul, plan | {"target": "nowhere"}, tmp_path / "short.log")
    assert search_all_runs("attributes.status = 'RUNNING'") == []  # creates MLflow's database, which two processes cannot do at once
    results = run_jobs([long, short], parallel=2)
    result = next(results)
    assert result.job == "short" and "nowhere" in result.error
    wait_for_log(long.log, "'track-run' - Finished")
    assert len(search_all_runs("attributes.status = 'RUNNING'")) == 1
    results.close()
    assert flow_subprocesses() == []
    assert search_all_runs("attributes.status = 'RUNNING'") == []
