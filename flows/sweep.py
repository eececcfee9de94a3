"""A sweep as a flow: runs of `pul` that differ in some parameters and in their seeds, in one table and one MLflow comparison."""

import contextlib
import json
from typing import Any

from prefect import flow
from pydantic import Field

from flows.config import Plan
from flows.grid import children_of, look_at_data
from flows.pretrain import pretrain
from flows.pul import pul
from tasks.index import index
from tasks.operations.processes import Job, run_jobs, runs_at_once
from tasks.operations.sweeps import Child, OpenSweep, finish_sweep, open_sweep, record_child, write_children


@flow(name="sweep", validate_parameters=True)
def sweep(
    base: dict[str, Any] = Field(
        description="What all runs share: parameters of flow pul, by section, or a run's config.json. {seed} in a path is the seed."
    ),
    grid: dict[str, list[Any]] | None = Field(
        None, description='Values of each parameter, every combination a run: {"selection.min_similarity": [0.35, 0.45]}.'
    ),
    variants: dict[str, dict[str, Any]] | None = Field(
        None, description='Named runs and what each of them sets: {"paper": {}, "no erasing": {"fine_tuning.erase_probability": 0}}.'
    ),
    seeds: list[int] | None = Field(None, description="Every run is done with each of these. Empty: the seed in base, or 0."),
    parallel: int | None = Field(None, ge=1, le=256, description="Runs at once. Empty: cores / machine.threads; on a GPU, one."),
) -> str:
    """Run every variant with every point of the grid and every seed, and return where the table lies.

    What children share is done once: images are indexed, and a source model that several of them start from is trained, before they begin.
    Each child runs in a process of its own. Started again, the sweep goes on with the same runs, and finished steps come from the cache.
    """
    children = children_of(base, grid, variants, seeds)
    look_at_data(children)
    sets = [index(path, role, **data) for path, role, data in data_sets(children)]
    asked = {"base": base, "grid": grid, "variants": variants, "seeds": seeds, "parallel": parallel}
    opened = open_sweep(children, sets, asked)
    jobs = jobs_of(children, opened)
    rows = {child.name: record_child(opened, child, None) for child in children}
    by_name = {child.name: child for child in children}
    with contextlib.closing(run_jobs(jobs, parallel=parallel or at_once(children))) as all_ended:
        for ended in all_ended:
            if ended.job in by_name:
                rows[ended.job] = record_child(opened, by_name[ended.job], ended)
                table = write_children(opened, list(rows.values()))
    finish_sweep(opened, list(rows.values()))
    return table


def at_once(children: list[Child]) -> int:
    """Return how many children run at once where nobody says: as many as the machine has cores for their threads."""
    return min(runs_at_once(child.plan["machine"]["device"], child.plan["machine"]["threads"]) for child in children)


def data_sets(children: list[Child]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return path, role and reading of every data set, each once."""
    plans = [Plan.model_validate(child.plan) for child in children]
    sets = [(path, "source", plan.source_data) for plan in plans for path in plan.source]
    sets += [(plan.target, "target", plan.target_data) for plan in plans]
    once = {json.dumps((path, role, data.model_dump())): (path, role, data.model_dump()) for path, role, data in sets}
    return list(once.values())


def jobs_of(children: list[Child], opened: OpenSweep) -> list[Job]:
    """Return the flow runs of a sweep: source models that several children start from, then the children, which wait for theirs."""
    sharing: dict[str, list[Child]] = {}
    for child in children:
        sharing.setdefault(source_model_of(child), []).append(child)
    shared = [asked for asked, group in sharing.items() if asked and len(group) > 1]
    jobs = [Job(f"source-{number}", pretrain, json.loads(asked), opened.log(f"source-{number}")) for number, asked in enumerate(shared, 1)]
    waits_for = {asked: job.name for asked, job in zip(shared, jobs, strict=True)}
    for child in children:
        after = waits_for.get(source_model_of(child))
        jobs.append(Job(child.name, pul, child.plan, opened.log(child.name), after, opened.environment(child)))
    return jobs


def source_model_of(child: Child) -> str:
    """Return the parameters of flow `pretrain` that make a child's original model, as text; nothing if it brings its model."""
    asked = {name: child.plan[name] for name in ("source", "source_data", "pretraining", "seed")}  # the recipe has filled them
    asked["model"] = {name: value for name, value in child.plan["model"].items() if name != "centre_cameras"}  # which comes after training
    asked |= {"machine": {name: child.plan["machine"][name] for name in ("device", "threads")}}
    return json.dumps(asked, sort_keys=True) if child.plan["source"] else ""
