"""The queue of the lab: experiments, and the plan of each with all settings resolved."""

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from packed import Sets

from pul_core.errors import UserError
from pul_core.recipes import RECIPES, RecipeName
from pul_core.settings import Recipe

S = TypeVar("S")
IDENTITY = ("experiment", "source", "target", "seed")  # of a run in the records
BOUNDS = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An entry of a queue: a variant of a recipe on one pair of sets. ``{seed}`` in the name of a set stands for the seed."""

    name: str
    source: tuple[str, ...]  # several sources are joined
    target: str | None = None  # the set to adapt to
    direct: tuple[str, ...] = ()  # sets on which the source model is scored, nothing else
    recipe: RecipeName = "modern"
    set: Mapping[str, Any] | None = None  # changed settings by dotted path, as in the command's --set
    seeds: tuple[int, ...] = (0,)
    backbone: str = "mobilenetv2_100"
    weights: str = "imagenet"  # of timm's hub, random, or the name of a file in the folder of the sets


@dataclass(frozen=True)
class Plan:
    """An experiment, a seed and a target, with everything resolved that a result depends on."""

    experiment: str
    source: str  # as in the queue, joined by " + "
    target: str
    seed: int
    has_loop: bool
    recipe: Recipe
    sources: tuple[str, ...]  # with the seed
    target_set: str
    digests: tuple[str, ...]  # of the weights, the sources and the target
    device: str

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies the records of this plan."""
        return {name: getattr(self, name) for name in IDENTITY}

    @property
    def source_key(self) -> str:
        """A digest of everything that the source model depends on."""
        model = {
            name: value
            for name, value in asdict(self.recipe.model).items()
            if name not in ("centre_cameras", "start_from", "flip", "licence")
        }
        return digest(self.sources, self.digests[:-1], model, asdict(self.recipe.pretraining), self.seed, torch.device(self.device).type)

    @property
    def key(self) -> str:
        """A digest of everything that the records depend on, except the version of the code."""
        return digest(self.source_key, self.target_set, self.digests[-1], asdict(self.recipe))


def digest(*values: Any) -> str:
    """Return a digest of plain values."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()


def read_queue(file: Path) -> list[Experiment]:
    """Read a JSON list of experiments."""
    names = {field.name for field in fields(Experiment)}
    experiments = []
    for entry in json.loads(file.read_text(encoding="utf-8")):
        if unknown := sorted(set(entry) - names):
            raise UserError(f"an experiment has no {unknown[0]!r}: choose from {', '.join(sorted(names))}")
        if missing := sorted({"name", "source"} - set(entry)):
            raise UserError(f"an experiment has no {missing[0]}: {entry}")
        entry |= {"source": (entry["source"],) if isinstance(entry["source"], str) else tuple(entry["source"])}
        experiments.append(Experiment(**entry | {name: tuple(entry[name]) for name in ("direct", "seeds") if name in entry}))
    return experiments


def change(settings: S, path: str, value: Any) -> S:
    """Return settings with another value at a dotted path; the path, the type and the bounds are those of the settings' class."""
    name, _, rest = path.partition(".")
    hints = get_type_hints(type(settings), include_extras=True)
    if name not in hints:
        raise UserError(f"there is no setting {name!r}: choose from {', '.join(hints)}")
    if rest:
        value = change(getattr(settings, name), rest, value)
    else:
        check_value(name, hints[name], value)
    return replace(settings, **{name: value})  # type: ignore[type-var]


def check_value(name: str, hint: Any, value: Any) -> None:
    """Check a value against the annotation of a setting."""
    kind, *marks = get_args(hint) if get_args(hint) else (hint,)
    if get_origin(kind) is Literal:
        is_valid = value in get_args(kind)
    else:
        is_valid = isinstance(value, int | float if kind is float else kind) and (kind is bool) == isinstance(value, bool)
    bounds = [(BOUNDS[bound], limit) for mark in marks for bound in BOUNDS if (limit := getattr(mark, bound, None)) is not None]
    if not is_valid or not all(holds(value, limit) for holds, limit in bounds):
        raise UserError(f"{name} cannot be {value!r}: its type and bounds are {hint}")


def resolve_recipe(experiment: Experiment, size: tuple[int, int]) -> Recipe:
    """Return the recipe of an experiment with its changes."""
    recipe = RECIPES[experiment.recipe]
    for path, value in (experiment.set or {}).items():
        recipe = change(recipe, path, value)
    model = {"backbone": experiment.backbone, "weights": experiment.weights, "height": size[0], "width": size[1]}
    return replace(recipe, model=replace(recipe.model, **model))


def plans(experiment: Experiment, seed: int, sets: Sets, device: str) -> Iterator[Plan]:
    """Yield the plan of each target of an experiment."""
    recipe = resolve_recipe(experiment, sets.size)
    sources = tuple(source.format(seed=seed) for source in experiment.source)
    digests = sets.weights_digest(experiment.weights), *map(sets.digest, sources)
    targets = dict.fromkeys(experiment.direct, False) | ({experiment.target: True} if experiment.target else {})
    for target, has_loop in targets.items():
        name = target.format(seed=seed)
        yield Plan(
            experiment=experiment.name,
            source=" + ".join(experiment.source),
            target=target,
            seed=seed,
            has_loop=has_loop,
            recipe=recipe,
            sources=sources,
            target_set=name,
            digests=(*digests, sets.digest(name)),
            device=device,
        )
