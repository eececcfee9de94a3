"""Flow `sweep`: runs flow `pul` with several values of parameters and several seeds, and collects the results in one table."""

import contextlib
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.pretrain import pretrain_original
from flows.pul import pul
from pul_core.settings import Data
from tasks.index import index
from tasks.operations.grid import sweep_children, validate_children
from tasks.operations.processes import Job, run_jobs, runs_at_once
from tasks.operations.sweeps import Child, OpenSweep, finish_sweep, open_sweep, record_child, write_children
from tasks.store.config import Plan, parameters_of


@flow(name="sweep", validate_parameters=True)
def sweep(
    base: dict[str, Any],
    grid: dict[str, list[Any]] | None = None,
    variants: dict[str, dict[str, Any]] | None = None,
    seeds: list[int] | None = None,
    parallel: Annotated[int | None, Field(ge=1, le=256)] = None,
) -> str:
    """Run every variant with every point of the grid and every seed, and return the path of the table.

    Work that the runs share is done once, before the first of them starts: each data set is indexed, and each source model that several
    runs start from is trained. Each run is a process of its own. Starting the same sweep again resumes its runs from the cache.

    Args:
        base: The parameters of flow pul that all runs share, as in a config.json. {seed} in a path is replaced by the seed.
        grid: The values of each parameter; every combination is a run: {"selection.min_similarity": [0.35, 0.45]}.
        variants: Named variants and what each sets: {"paper": {}, "no erasing": {"fine_tuning.augmentation.erase_probability": 0}}.
        seeds: Each combination runs once with each of these seeds. Empty: the seed in base, or 0.
        parallel: The number of simultaneous runs. Empty: cores / machine.threads; on a GPU, one.
    """
    children = sweep_children(base, grid, variants, seeds)
    validate_children(children)
    sets = [index(path, role, data.layout, data.pattern) for path, role, data in data_sets(children)]
    opened = open_sweep(children, sets, {"base": base, "grid": grid, "variants": variants, "seeds": seeds, "parallel": parallel})
    by_name = {child.name: child for child in children}
    rows = {name: record_child(opened, child, None) for name, child in by_name.items()}
    with contextlib.closing(run_jobs(jobs_of(children, opened), parallel=parallel or default_parallel(children))) as results:
        for result in results:
            if result.job in by_name:  # else it trained a shared source model
                rows[result.job] = record_child(opened, by_name[result.job], result)
                table = write_children(opened, list(rows.values()))
    finish_sweep(opened, list(rows.values()))
    return table


def default_parallel(children: list[Child]) -> int:
    """Return how many runs are started at once by default: as many as the machine has cores for."""
    return min(runs_at_once(child.plan.machine) for child in children)


def data_sets(children: list[Child]) -> list[tuple[str, str, Data]]:
    """Return the path, the role (source or target) and the data settings of each data set, without duplicates."""
    plans = [child.plan for child in children]
    sources = [(path, "source", plan.source_data) for plan in plans for path in plan.source]
    return list(dict.fromkeys([*sources, *((plan.target, "target", plan.target_data) for plan in plans)]))


def jobs_of(children: list[Child], opened: OpenSweep) -> list[Job]:
    """Return the flow runs of a sweep: first the source models that several children start from, then the children, which wait for them."""
    groups: dict[tuple[Any, ...], list[Child]] = {}
    for child in children:
        if child.plan.source:
            groups.setdefault(_source_model_key(child.plan), []).append(child)
    jobs: list[Job] = []
    waits_for: dict[str, str] = {}
    for group in groups.values():
        if len(group) > 1:
            name = f"source-{len(jobs) + 1}"
            parameters = parameters_of(group[0].plan)
            shared = {parameter: parameters[parameter] for parameter in pretrain_original.parameters.properties}
            jobs.append(Job(name, pretrain_original, shared, opened.log(name)))
            waits_for |= {child.name: name for child in group}
    return jobs + [
        Job(child.name, pul, parameters_of(child.plan), opened.log(child.name), waits_for.get(child.name), opened.environment(child))
        for child in children
    ]


def _source_model_key(plan: Plan) -> tuple[Any, ...]:
    """Return everything that the source model of a run depends on."""
    model, machine = plan.model, plan.machine
    network = (model.backbone, model.weights, model.height, model.width)
    return (plan.source, plan.source_data, network, plan.pretraining, machine.device, machine.threads, plan.seed)
