"""Print docs/parameters.md: what the recipes set differently, and every parameter with its bounds, unit, values and description.

Usage: python tests/parameter_tables.py > docs/parameters.md
"""

from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Interval

from pul_core.recipes import RECIPES
from pul_core.settings import Data, FewLabels, Machine, Recipe
from tasks.store.config import describe

INTRODUCTION = """\
# Recipes and parameters

A recipe is a value for every parameter; what you set yourself overrides it. Choose one with `--recipe NAME`. Set a parameter with
`--set SECTION.NAME=VALUE`, e.g. `--set fine_tuning.epochs=4`, in the grid of a sweep, or in Prefect's form.

| recipe | meaning |
|---|---|
| `paper` | the published loop with k-means, for comparisons with PUL |
| `modern` | DBSCAN on a camera-aware distance, with features normalised and centred by camera |
| `released-code` | the constants of the authors' code |

`auto`, the default of `pul run`, is `modern` where that can be used, and [otherwise](method.md#recipes) `paper`.

This page is generated from `pul_core/settings.py` and `pul_core/recipes.py` by `tests/parameter_tables.py`.

## What the recipes set differently

Every parameter that has more than one value among the recipes. [The method](method.md) explains what each recipe is for.
"""

DESCRIPTIONS = {  # of sections that share a class
    "pretraining": "Training of the source model by classification of the source's identities.",
    "fine_tuning": "Fine-tuning by classification of the pseudo-classes, in each iteration.",
}


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    recipe = get_type_hints(Recipe)
    parts += [_heading(["parameter", *RECIPES]), *_differences("", Recipe, list(RECIPES.values())), ""]
    for name, settings in recipe.items():
        parts += _section(name, settings, [getattr(values, name) for values in RECIPES.values()], list(RECIPES))
    for name, settings in {"source_data, target_data": Data, "few_labels": FewLabels, "machine": Machine}.items():
        parts += _section(name, settings, [settings()], ["default"])
    return "\n".join(parts)


def _section(name: str, settings: Any, values: list[Any], titles: list[str]) -> list[str]:
    lines = [f"## {name}", "", DESCRIPTIONS.get(name, settings.__doc__), ""]
    return [*lines, _heading(["parameter", "values", *titles, "description"]), *_rows("", settings, values), ""]


def _heading(titles: list[str]) -> str:
    return f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|"


def _differences(prefix: str, settings: Any, values: list[Any]) -> list[str]:
    """Return a row for each setting that has several values."""
    rows: list[str] = []
    for setting, hint in get_type_hints(settings).items():
        cells = [getattr(value, setting) for value in values]
        if is_dataclass(hint):
            rows += _differences(f"{prefix}{setting}.", hint, cells)
        elif len(set(cells)) > 1:
            rows.append(f"| {' | '.join([f'`{prefix}{setting}`', *map(_shown, cells)])} |")
    return rows


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:g}" if type(value) is float else str(value)


def _rows(prefix: str, settings: Any, values: list[Any]) -> list[str]:
    rows: list[str] = []
    plain, hints = get_type_hints(settings), get_type_hints(settings, include_extras=True)
    for setting in fields(settings):
        cells = [getattr(value, setting.name) for value in values]
        if is_dataclass(plain[setting.name]):
            rows += _rows(f"{setting.name}.", plain[setting.name], cells)
        else:
            hint = hints[setting.name]
            row = [f"`{prefix}{setting.name}`", _domain(hint), *map(_shown, cells), describe(hint)]
            rows.append(f"| {' | '.join(row)} |")
    return rows


def _domain(hint: Any) -> str:
    """Return the values a setting may have: its choices, or its type with bounds."""
    value, *marks = get_args(hint)
    options = [option for option in get_args(value) if option is not type(None)] if get_origin(value) is not Literal else []
    value = options[0] if options else value
    if get_origin(value) is Literal:
        return ", ".join(map(str, get_args(value)))
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(mark, name):g}"
        for mark in marks
        if isinstance(mark, Interval | Ge)
        for name, sign in bounds.items()
        if getattr(mark, name, None) is not None
    ]
    return " ".join([value.__name__, ", ".join(limits)]).strip()


if __name__ == "__main__":
    print(page(), end="")
