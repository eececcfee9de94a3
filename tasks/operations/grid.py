"""The children of a sweep: named variants times a grid times seeds, each a complete plan, checked before anything is started."""

import copy
import itertools
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pul_core.errors import UserError
from pul_core.recipes import RECIPES
from tasks.operations.sweeps import Child
from tasks.preflight import validate_run
from tasks.store.config import AUTO, Plan, parameter_names, parameters_of, resolve_plan, set_parameter, unknown_parameter


def sweep_children(
    base: Mapping[str, Any],
    grid: Mapping[str, list[Any]] | None = None,
    variants: Mapping[str, dict[str, Any]] | None = None,
    seeds: Any = None,
) -> list[Child]:
    """Return the runs of a sweep: each variant with each point of the grid with each seed, in that order.

    Args:
        base: parameters of flow `pul` that all children share. In all paths, ``{seed}`` is replaced by the seed.
        grid: the values to try for each parameter, by its dotted name: ``{"selection.min_similarity": [0.35, 0.45]}``.
        variants: for each named variant, its parameters by dotted names; None for a single variant without changes.
        seeds: the seeds, with each of which every run is repeated; None for the seed of ``base``.

    Raises:
        UserError: a parameter or value does not exist or is set twice, or two children are the same run.

    Example:
        >>> base = {"source": "synthetic:0/source", "target": "synthetic:0/target"}
        >>> [(child.setting, child.seed) for child in sweep_children(base, {"selection.min_similarity": [0.35, 0.45]}, seeds=[0, 1])]
        [('selection.min_similarity=0.35', 0), ('selection.min_similarity=0.35', 1), ('selection.min_similarity=0.45', 0), \
('selection.min_similarity=0.45', 1)]
    """
    grid, variants = grid or {}, variants or {"": {}}
    seeds = [base.get("seed", 0)] if seeds is None else seeds
    for name, values in (*grid.items(), ("seeds", seeds)):
        if not isinstance(values, list) or not values:
            raise UserError(f"{name} must be a list of values, e.g. [0.8, 0.9], got {values!r}")
    if not base.get("target"):
        raise UserError("a sweep requires a target: give --target DIR, the folder of the unlabelled images")
    children: list[Child] = []
    numbers: dict[Plan, int] = {}
    for (variant, changes), point, seed in itertools.product(variants.items(), itertools.product(*grid.values()), seeds):
        swept = dict(zip(grid, point, strict=True))
        if set_twice := sorted(set(changes) & set(swept)):
            raise UserError(f"{set_twice[0]} is set by the grid and by variant {variant!r}: remove it from one of them")
        values = (f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in swept.items())
        setting = ", ".join(filter(None, [variant, *values]))
        plan = _resolve_child(base, changes | swept, seed, setting)
        number = len(children) + 1
        if (first := numbers.setdefault(plan, number)) != number:
            raise UserError(f"children {first} and {number} of the sweep are the same run ({setting or 'nothing is swept'}, seed {seed})")
        children.append(Child(number=number, variant=variant, swept=changes | swept, setting=setting, seed=seed, plan=plan))
    return children


def validate_children(children: list[Child]) -> None:
    """Validate the data sets, model, statistics, machine, weights and clustering algorithm of all children, each combination once.

    Raises:
        UserError: the inputs of a child are invalid.
    """
    names = ("source", "target", "source_data", "target_data", "original_model", "model", "statistics", "machine", "algorithm")
    for plan in {tuple(getattr(child.plan, name) for name in names): child.plan for child in children}.values():
        validate_run(parameters_of(plan))


def _resolve_child(base: Mapping[str, Any], changes: Mapping[str, Any], seed: int, setting: str) -> Plan:
    parameters = copy.deepcopy(dict(base)) | {"seed": seed}
    for name, value in changes.items():
        _check_name(name)
        set_parameter(parameters, name, value)
    for name in ("source", "target", "original_model"):
        parameters[name] = _fill_seed(parameters.get(name), seed)
    if parameters.get("recipe") == AUTO:
        raise UserError(f"a sweep compares recipes that do not depend on the data: set recipe to one of {', '.join(RECIPES)}, not {AUTO}")
    try:
        return resolve_plan(parameters)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{f'{setting}: ' if setting else ''}{place}: {problem['msg']}, got {problem['input']!r}") from error


def _fill_seed(path: Any, seed: int) -> Any:
    """Replace ``{seed}`` in a path or a list of paths, because the data and the original model may differ between seeds."""
    if isinstance(path, list):
        return [_fill_seed(part, seed) for part in path]
    return path.replace("{seed}", str(seed)) if isinstance(path, str) else path


def _check_name(name: str) -> None:
    if name == "seed":
        raise UserError("seed cannot be swept as a parameter: give the seeds separately (--seeds 0,1,2)")
    if name not in parameter_names():
        raise UserError(unknown_parameter(name))
