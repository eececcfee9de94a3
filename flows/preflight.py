"""Before a run: check its parameters and its data, and estimate what it will take. No Prefect run is made for that."""

from typing import Any

from flows.config import Data, FewLabels, Machine, Plan, Section
from flows.recipes import RECIPES, resolve
from pul_core.errors import UserError
from tasks.engine.compute import resolve_compute
from tasks.models import model_file
from tasks.preflight import Counts, Estimate, add_counts, check, count_images, estimate


def plan_of(parameters: dict[str, Any]) -> Plan:
    """Resolve the parameters of flow `pul`, given as plain values.

    Raises:
        UserError: a recipe, section, name or value that does not exist.
    """
    recipe = parameters.get("recipe", "paper")
    if recipe not in RECIPES:
        raise UserError(f"there is no recipe {recipe!r}; there are {' and '.join(RECIPES)}")
    known = {
        *RECIPES[recipe],
        "recipe",
        "source",
        "target",
        "original_model",
        "source_data",
        "target_data",
        "few_labels",
        "machine",
        "seed",
    }
    if unknown := sorted(set(parameters) - known):
        raise UserError(f"there is no parameter {unknown[0]!r}; there are {', '.join(sorted(known))}")
    sections = {name: type(default).model_validate(parameters.get(name, {})) for name, default in RECIPES[recipe].items()}
    rest: dict[str, Any] = {"target": parameters["target"], "original_model": parameters.get("original_model")}
    kinds: dict[str, type[Section]] = {"source_data": Data, "target_data": Data, "few_labels": FewLabels, "machine": Machine}
    rest |= {name: kind.model_validate(parameters.get(name, {})) for name, kind in kinds.items()}
    return resolve(recipe, sections, source=parameters.get("source"), **rest, seed=parameters.get("seed", 0))


def look_first(parameters: dict[str, Any]) -> tuple[Plan, Counts | None, Counts]:
    """Refuse what cannot work before anything is started.

    Raises:
        UserError: in one sentence, what to change.
    """
    plan = plan_of(parameters)
    data = plan.source_data.model_dump()
    source = add_counts([count_images(path, **data) for path in plan.source], plan.source) if plan.source else None
    target = count_images(plan.target, **plan.target_data.model_dump())
    if plan.original_model:
        with model_file(plan.original_model):
            pass
    check(source, target, original_model=plan.original_model, num_clusters=plan.clustering.num_clusters)
    return plan, source, target


def estimate_run(parameters: dict[str, Any]) -> tuple[Plan, Estimate]:
    """Estimate time, disk and memory of a run from a few batches."""
    plan, source, target = look_first(parameters)
    compute = resolve_compute(plan.machine.device, plan.machine.threads)
    return plan, estimate(plan.model_dump(), source, target, compute)
