"""A sweep as a flow: runs of `pul` that differ in some parameters and in their seeds, in one table and one MLflow comparison."""

import contextlib
from typing import Any

from prefect import flow
from pydantic import Field

from flows.pretrain import pretrain_original
from flows.pul import pul
from pul_core.settings import Data
from tasks.index import index
from tasks.operations.grid import sweep_children, validate_children
from tasks.operations.processes import Job, run_jobs, runs_at_once
from tasks.operations.sweeps import Child, OpenSweep, finish_sweep, open_sweep, record_child, write_children
from tasks.store.config import parameters_of


@flow(name="sweep", validate_parameters=True)
def sweep(
    base: dict[str, Any] = Field(
        description="Parameters of flow pul that all runs share, by section, or the config.json of a run. {seed} in a path is the seed."
    ),
    grid: dict[str, list[Any]] | None = Field(
        None, description='Values of each parameter; every combination is a run: {"selection.min_similarity": [0.35, 0.45]}.'
    ),
    variants: dict[str, dict[str, Any]] | None = Field(
        None,
        description='Named runs and what each sets: {"paper": {}, "no erasing": {"fine_tuning.augmentation.erase_probability": 0}}.',
    ),
    seeds: list[int] | None = Field(None, description="Every run is done with each of these. Empty: the seed in base, or 0."),
    parallel: int | None = Field(None, ge=1, le=256, description="Runs at once. Empty: cores / machine.threads; on a GPU, one."),
) -> str:
    """Run every variant with every point of the grid and every seed, and return the location of the table.

    What the children share is done once: images are indexed, and a source model that several of them start from is trained, before they
    begin. Each child runs in a process of its own. A sweep that is started again resumes the same runs; finished steps come from the cache.
    """
    children = sweep_children(base, grid, variants, seeds)
    validate_children(children)
    sets = [index(path, role, data.layout, data.pattern) for path, role, data in data_sets(children)]
    request = {"base": base, "grid": grid, "variants": variants, "seeds": seeds, "parallel": parallel}
    opened = open_sweep(children, sets, request)
    jobs = jobs_of(children, opened)
    rows = {child.name: record_child(opened, child, None) for child in children}
    by_name = {child.name: child for child in children}
    with contextlib.closing(run_jobs(jobs, parallel=parallel or default_parallel(children))) as finished_jobs:
        for finished in finished_jobs:
            if finished.job in by_name:
                rows[finished.job] = record_child(opened, by_name[finished.job], finished)
                table = write_children(opened, list(rows.values()))
    finish_sweep(opened, list(rows.values()))
    return table


def default_parallel(children: list[Child]) -> int:
    """Return how many children run at once by default: as many as the machine has cores for their threads."""
    return min(runs_at_once(child.plan.machine) for child in children)


def data_sets(children: list[Child]) -> list[tuple[str, str, Data]]:
    """Return path, role and reading of every data set, each once."""
    plans = [child.plan for child in children]
    sources = [(path, "source", plan.source_data) for plan in plans for path in plan.source]
    return list(dict.fromkeys([*sources, *((plan.target, "target", plan.target_data) for plan in plans)]))


def jobs_of(children: list[Child], opened: OpenSweep) -> list[Job]:
    """Return the flow runs of a sweep: source models that several children start from, then the children, which wait for theirs."""
    sharing: dict[tuple[Any, ...], list[Child]] = {}
    for child in children:
        if child.plan.source:
            sharing.setdefault(_source_model(child), []).append(child)
    jobs: list[Job] = []
    waits_for: dict[str, str] = {}
    for group in (group for group in sharing.values() if len(group) > 1):
        name = f"source-{len(jobs) + 1}"
        parameters = parameters_of(group[0].plan)
        wanted = ("source", "source_data", "recipe", "model", "pretraining", "machine", "seed")
        jobs.append(Job(name, pretrain_original, {key: parameters[key] for key in wanted}, opened.log(name)))
        waits_for |= {child.name: name for child in group}
    for child in children:
        after = waits_for.get(child.name)
        jobs.append(Job(child.name, pul, parameters_of(child.plan), opened.log(child.name), after, opened.environment(child)))
    return jobs


def _source_model(child: Child) -> tuple[Any, ...]:
    """Return everything that a child's original model depends on."""
    plan = child.plan
    network = (plan.model.backbone, plan.model.weights, plan.model.height, plan.model.width)
    return (plan.source, plan.source_data, network, plan.pretraining, plan.machine.device, plan.machine.threads, plan.seed)
