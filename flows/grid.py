"""The children of a sweep: named variants times a grid times seeds, each with all its parameters, checked before anything is started."""

import itertools
import json
from typing import Any

from pydantic import ValidationError

from flows.config import Plan
from flows.preflight import look_first, plan_of
from pul_core.errors import UserError
from tasks.operations.sweeps import Child

NOT_SWEPT = {"seed": "seeds are a list of their own (--seeds 0,1,2)"}


def children_of(
    base: dict[str, Any], grid: dict[str, list[Any]] | None = None, variants: dict[str, dict[str, Any]] | None = None, seeds: Any = None
) -> list[Child]:
    """Name every run of a sweep: each variant with each point of the grid with each seed, in that order.

    Args:
        base: parameters of flow `pul` that all children share. Here and below ``{seed}`` in source, target and original_model is the seed.
        grid: the values of each parameter, by its name: ``{"selection.min_similarity": [0.35, 0.45]}``.
        variants: what each named variant sets, by the names of the parameters; None is one variant that sets nothing.
        seeds: of the runs; None takes the one in ``base``.

    Raises:
        UserError: in one sentence, which parameter or value does not exist, is set twice, or makes two children the same run.

    Example:
        >>> base = {"source": "synthetic:0/source", "target": "synthetic:0/target"}
        >>> [(child.setting, child.seed) for child in children_of(base, {"selection.min_similarity": [0.35, 0.45]}, seeds=[0, 1])]
        [('selection.min_similarity=0.35', 0), ('selection.min_similarity=0.35', 1), ('selection.min_similarity=0.45', 0), \
('selection.min_similarity=0.45', 1)]
    """
    grid, variants = grid or {}, variants or {"": {}}
    seeds = [base.get("seed", 0)] if seeds is None else seeds
    for name, values in (*grid.items(), ("seeds", seeds)):
        if not isinstance(values, list) or not values:
            raise UserError(f"{name} wants a list of values, e.g. [0.8, 0.9], not {values!r}")
    if not base.get("target"):
        raise UserError("a sweep needs a target: --target DIR, the folder of the unlabelled images")
    children: list[Child] = []
    known: dict[str, int] = {}
    for (variant, changes), point, seed in itertools.product(variants.items(), itertools.product(*grid.values()), seeds):
        swept = dict(zip(grid, point, strict=True))
        if twice := sorted(set(changes) & set(swept)):
            raise UserError(f"{twice[0]} is set by the grid and by variant {variant!r}: leave it to one of them")
        setting = ", ".join([*([variant] if variant else []), *(f"{name}={_shown(value)}" for name, value in swept.items())])
        plan = _plan(base, changes | swept, seed, setting)
        number = len(children) + 1
        same = known.setdefault(json.dumps(plan.model_dump(), sort_keys=True), number)
        if same != number:
            raise UserError(f"children {same} and {number} of the sweep are the same run: {setting or 'nothing is swept'}, seed {seed}")
        children.append(Child(number=number, variant=variant, swept=changes | swept, setting=setting, seed=seed, plan=plan.model_dump()))
    return children


def look_at_data(children: list[Child]) -> None:
    """Refuse what cannot work with the images, each combination once.

    Raises:
        UserError: in one sentence, what to change.
    """
    matters = ("source", "target", "source_data", "target_data", "original_model", "clustering")
    for plan in {json.dumps([child.plan[name] for name in matters]): child.plan for child in children}.values():
        look_first(plan)


def _plan(base: dict[str, Any], changes: dict[str, Any], seed: int, setting: str) -> Plan:
    parameters = {name: dict(value) if isinstance(value, dict) else value for name, value in base.items()} | {"seed": seed}
    for name, value in changes.items():
        section, dot, key = name.partition(".")
        _check_name(section, key)
        if dot:
            parameters[section] = (parameters.get(section) or {}) | {key: value}
        else:
            parameters[section] = value
    for name in ("source", "target", "original_model"):
        parameters[name] = _of_seed(parameters.get(name), seed)
    try:
        return plan_of(parameters)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{f'{setting}: ' if setting else ''}{place}: {problem['msg']}, not {problem['input']!r}") from error


def _of_seed(path: Any, seed: int) -> Any:
    """Fill a seed into a path, or each of several: data and models, too, may differ from seed to seed."""
    if isinstance(path, list):
        return [_of_seed(part, seed) for part in path]
    return path.replace("{seed}", str(seed)) if isinstance(path, str) else path


def _check_name(section: str, key: str) -> None:
    if section in NOT_SWEPT:
        raise UserError(f"{section} cannot be swept: {NOT_SWEPT[section]}")
    field = Plan.model_fields.get(section)
    if field is None:
        raise UserError(f"there is no parameter {section!r}; there are {', '.join(sorted(Plan.model_fields))}")
    fields = getattr(field.annotation, "model_fields", {})
    if bool(key) != bool(fields) or (key and key not in fields):
        name = f"{section}.{key}" if key else section
        known = [f"{section}.{field}" for field in fields] or [section]
        raise UserError(f"there is no parameter {name!r} to sweep; there {'are' if fields else 'is'} {', '.join(known)}")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
