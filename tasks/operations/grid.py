"""The children of a sweep: named variants times a grid times seeds, each a complete plan, checked before anything is started."""

import itertools
import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from pul_core.errors import UserError
from tasks.operations.sweeps import Child
from tasks.preflight import validate_run
from tasks.store.config import Plan, parameter_names, parameters_of, resolve_plan, set_parameter


def sweep_children(
    base: Mapping[str, Any],
    grid: Mapping[str, list[Any]] | None = None,
    variants: Mapping[str, dict[str, Any]] | None = None,
    seeds: Any = None,
) -> list[Child]:
    """Return the runs of a sweep: each variant with each point of the grid with each seed, in that order.

    Args:
        base: parameters of flow `pul` that all children share. ``{seed}`` in its paths, and in those below, is the seed.
        grid: values of each parameter by its dotted name: ``{"selection.min_similarity": [0.35, 0.45]}``.
        variants: what each named variant sets, by dotted names; None is one variant that sets nothing.
        seeds: of the runs; None is the seed of ``base``.

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
        if both := sorted(set(changes) & set(swept)):
            raise UserError(f"{both[0]} is set by the grid and by variant {variant!r}: remove it from one of them")
        setting = ", ".join([*([variant] if variant else []), *(f"{name}={_text(value)}" for name, value in swept.items())])
        plan = _resolve_child(base, changes | swept, seed, setting)
        number = len(children) + 1
        first = numbers.setdefault(plan, number)
        if first != number:
            raise UserError(f"children {first} and {number} of the sweep are the same run ({setting or 'nothing is swept'}, seed {seed})")
        children.append(Child(number=number, variant=variant, swept=changes | swept, setting=setting, seed=seed, plan=plan))
    return children


def validate_children(children: list[Child]) -> None:
    """Check the data and models of all children, each combination once.

    Raises:
        UserError: a child cannot work.
    """
    checked = {(p.source, p.target, p.source_data, p.target_data, p.original_model, p.algorithm): p for p in (c.plan for c in children)}
    for plan in checked.values():
        validate_run(parameters_of(plan))


def _resolve_child(base: Mapping[str, Any], changes: Mapping[str, Any], seed: int, setting: str) -> Plan:
    parameters: dict[str, Any] = json.loads(json.dumps(base)) | {"seed": seed}  # a deep copy
    for name, value in changes.items():
        _check_name(name)
        set_parameter(parameters, name, value)
    for name in ("source", "target", "original_model"):
        parameters[name] = _fill_seed(parameters.get(name), seed)
    try:
        return resolve_plan(parameters)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{f'{setting}: ' if setting else ''}{place}: {problem['msg']}, got {problem['input']!r}") from error


def _fill_seed(path: Any, seed: int) -> Any:
    """Replace ``{seed}`` in a path or in each of several: data and models may differ between seeds, too."""
    if isinstance(path, list):
        return [_fill_seed(part, seed) for part in path]
    return path.replace("{seed}", str(seed)) if isinstance(path, str) else path


def _check_name(name: str) -> None:
    if name == "seed":
        raise UserError("seed cannot be swept as a parameter: give the seeds separately (--seeds 0,1,2)")
    names = parameter_names()
    if name not in names:
        close = get_close_matches(name, names, 5, 0.4) or [known for known in names if known.startswith(name)][:5] or names
        raise UserError(f"there is no parameter {name!r}: similar ones are {', '.join(close)}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
