"""A sweep's table and means; and real sweeps: a real Prefect server, MLflow on SQLite, children in processes of their own."""

import os
import signal
import statistics
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.settings import PREFECT_API_URL

from flows.grid import children_of
from flows.sweep import jobs_of
from pul_core.scoring.comparison import judge
from tasks.operations.sweeps import MEANS, OpenSweep, means_over_seeds, means_table, read_sweep, write_children
from tasks.tracking import runs as tracking


def row(number, setting="x", seed=0, status="finished", **figures):
    start = {"sweep": "sweep-1", "child": number, "setting": setting, "seed": seed, "status": status, "error": None}
    return start | (judge([{"rank_1": 0.5, "mAP": 0.4}]) if status == "finished" else {}) | figures


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.one_of(st.none(), st.integers(0, 8).map(lambda n: n / 8))), min_size=1, max_size=9))
def test_means_are_those_of_the_finished_children_of_a_setting(values):
    children = [
        row(number, setting, number, "failed" if mean_ap is None else "finished", mAP=mean_ap)
        for number, (setting, mean_ap) in enumerate(values, 1)
    ]
    found = means_over_seeds([dict.fromkeys(MEANS) | child for child in children])
    assert [mean["setting"] for mean in found] == list(dict.fromkeys(setting for setting, _ in values))
    for mean in found:
        known = [mean_ap for setting, mean_ap in values if setting == mean["setting"] and mean_ap is not None]
        assert (mean["seeds"], mean["failed"]) == (len(known), sum(setting == mean["setting"] for setting, _ in values) - len(known))
        assert mean["mAP"] == (pytest.approx(statistics.mean(known)) if known else None)
        assert mean["mAP_std"] == (pytest.approx(statistics.stdev(known)) if len(known) > 1 else None)


def test_the_table_takes_values_of_every_kind(tmp_path):
    rows = [
        row(2, **{"set.recipe": "paper", "set.source": ["a", "b"], "set.selection.min_similarity": 0.8}),
        row(1, status="failed", error="it broke", **{"set.recipe": "modern", "set.source": "c", "set.selection.min_similarity": 1}),
        row(3, status="waiting"),
    ]
    found = read_sweep(write_children(OpenSweep(name="sweep-1", folder=str(tmp_path), started={}), rows))
    assert [child["child"] for child in found["children"]] == [1, 2, 3]
    assert [child["set.source"] for child in found["children"]] == ["c", '["a", "b"]', None]
    assert [child["set.selection.min_similarity"] for child in found["children"]] == [1, 0.8, None]
    assert [child["error"] for child in found["children"]] == ["it broke", None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["children.parquet"]
    assert all(len(line) == len(means_table(found["means"])[0]) for line in means_table(found["means"]))


@pytest.fixture
def base(tiny, tiny_pair):
    return tiny | {"source": str(tiny_pair[0]), "target": str(tiny_pair[1])}


def test_what_a_source_model_cannot_see_does_not_train_another(base, tmp_path):
    opened = OpenSweep(name="sweep-1", folder=str(tmp_path), started={})

    def names(grid):
        return [job.name for job in jobs_of(children_of(base, grid), opened)]

    source, *both = jobs_of(children_of(base, {"model.centre_cameras": [True, False]}), opened)
    assert [(job.name, job.after) for job in both] == [("child-1", source.name), ("child-2", source.name)]
    assert source.parameters["model"]["height"] == 64 and "centre_cameras" not in source.parameters["model"]
    assert names({"model.height": [64, 96]}) == ["child-1", "child-2"], "nothing is shared"
    assert names({"model.height": [64, 96], "model.centre_cameras": [True, False]}) == [
        "source-1",
        "source-2",
        *(f"child-{n}" for n in range(1, 5)),
    ]


def run_sweep(asked):
    """Run the flow; return its final state and name and state of every task run of its children."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    from flows.sweep import sweep

    state = sweep(**asked, return_state=True)
    of_children = FlowRunFilter(parent_flow_run_id={"any_": [state.state_details.flow_run_id]})
    with get_client(sync_client=True) as client:
        return state, [(run.name, run.state_name) for run in client.read_task_runs(flow_run_filter=of_children, limit=200)]


def runs_of(name):
    client = tracking.client()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(experiments, f"tags.`pul.sweep` = '{name}'")


def timeless(found):
    """Children that run at once may both compute what they share, and only one of their times stays in the cache."""
    return {
        key: [{k: v for k, v in row.items() if "seconds" not in k} for row in rows] if isinstance(rows, list) else rows
        for key, rows in found.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("prefect_server")
def test_children_share_the_source_a_failure_is_told_and_a_second_call_is_served_from_the_cache(module_home, base, graph):
    asked = {"base": base, "grid": {"selection.min_similarity": [0.4, 1.0, 0.6]}, "parallel": 2}
    state, tasks = run_sweep(asked)
    assert state.is_failed()
    assert "1 of 3 children failed: child 2 (selection.min_similarity=1.0, seed 0): only" in state.message
    (table,) = module_home.glob("sweeps/*/children.parquet")
    found = read_sweep(str(table))
    first, second, third = found["children"]
    assert [child["status"] for child in found["children"]] == ["finished", "failed", "finished"]
    assert "lower min_similarity" in second["error"] and "\n" not in second["error"]
    assert sorted(done for name, done in tasks if name == "pretrain") == ["Cached", "Cached", "Cached", "Completed"]
    for child in (first, third):
        iterations = pd.read_parquet(module_home / "runs" / child["run"] / "iterations.parquet")
        assert (child["stop_iteration"], child["stop_reason"]) == (2, "limit")
        assert (child["direct_mAP"], child["mAP"]) == (iterations["mAP"][0], iterations["mAP"][2])
        assert child["gain_mAP"] == child["mAP"] - child["direct_mAP"]
        assert child["oracle_best_mAP"] == iterations["mAP"].max()
        sizes = [len(pd.read_parquet(file)) for file in sorted((module_home / "runs" / child["run"]).glob("iteration=*/reliable.parquet"))]
        assert child["num_images_seen"] == sum(sizes), "one epoch an iteration"
        assert child["seconds"] > 0
        rows = [set(pd.read_parquet(module_home / "runs" / child["run"] / f"iteration={t}" / "reliable.parquet")["row"]) for t in (1, 2)]
        assert child["reliable_overlap"] == len(rows[0] & rows[1]) / len(rows[0] | rows[1])
        assert -1 <= child["reliable_agreement_ari"] <= 1
    nodes = graph(PREFECT_API_URL.value(), state.state_details.flow_run_id, "finish-sweep")
    (last,) = (node for node in nodes.values() if node["label"] == "finish-sweep")
    parents = sorted(nodes[key]["label"] for key in {parent["id"] for parent in last["parents"]})
    assert parents == ["open-sweep", *(f"record-child-{child}" for child in (1, 2, 3))], "the rows of children that ended, and no others"
    name = found["sweep"]
    assert {run.data.tags["pul.sweep_child"]: run.info.status for run in runs_of(name)} == {"1": "FINISHED", "2": "FAILED", "3": "FINISHED"}

    state, tasks = run_sweep(asked)
    assert state.is_failed()
    assert timeless(read_sweep(str(table))) == timeless(found), "the same runs, the same figures"
    assert len(runs_of(name)) == 3, "nothing stands twice"
    steps = ("pretrain", "decode", "extract", "cluster", "select", "fine-tune", "evaluate")
    assert {done for name, done in tasks if name.startswith(steps)} == {"Cached", "Failed"}
    assert [name for name, done in tasks if done == "Failed"] == ["select-1"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prefect_server", "module_home")
def test_a_child_that_is_killed_costs_no_other(base, tmp_path):
    from flows.pul import pul
    from tasks.operations.processes import Job, run_jobs

    plans = [child.plan for child in children_of(base, {"selection.min_similarity": [0.4, 0.6]})]
    jobs = [Job(name, pul, plan, tmp_path / f"{name}.log") for name, plan in zip(("one", "two"), plans, strict=True)]
    jobs.append(Job("three", pul, plans[0], tmp_path / "three.log", after="one"))
    ended = {}
    work = run_jobs(jobs, parallel=2)
    pid = None
    import psutil

    def kill_the_first():
        nonlocal pid
        mine = [process for process in psutil.Process().children(recursive=True) if "tasks.operations.flow_subprocess" in process.cmdline()]
        pid = min(mine, key=lambda process: process.create_time()).pid
        os.kill(pid, signal.SIGKILL)

    import threading

    timer = threading.Timer(4, kill_the_first)
    timer.start()
    for one in work:
        ended[one.job] = one
    assert "killed by signal 9" in ended["one"].reason
    assert ended["two"].reason is None
    assert ended["three"].reason.startswith("one failed: its process was killed") and ended["three"].flow_run_id is None


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("prefect_server", "module_home")
def test_stopping_a_sweep_stops_its_processes_and_closes_their_runs(base, tmp_path):
    import psutil

    from flows.pul import pul
    from tasks.operations.processes import Job, run_jobs

    plan = children_of(base | {"seed": 5}, {"pretraining.epochs": [1000]})[0].plan
    work = run_jobs(
        [Job("long", pul, plan, tmp_path / "long.log"), Job("short", pul, plan | {"target": "nowhere"}, tmp_path / "s")], parallel=2
    )
    ended = next(work)
    assert (ended.job, "nowhere" in ended.reason) == ("short", True)
    deadline = time.monotonic() + 120
    while "'pretrain'" not in Path(tmp_path, "long.log").read_text():
        assert time.monotonic() < deadline, Path(tmp_path, "long.log").read_text()
        time.sleep(0.2)
    work.close()
    assert not [process for process in psutil.Process().children(recursive=True) if "tasks.operations.flow_subprocess" in process.cmdline()]
    assert "RUNNING" not in {run.info.status for run in tracking.client().search_runs(["0", "1", "2", "3"])}
