"""Print docs/parameters.md: every parameter with its type, bounds, unit, the values of the recipes and its description.

Usage: python tests/parameter_tables.py > docs/parameters.md
"""

from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Interval

from pul_core.recipes import RECIPES
from pul_core.settings import Data, FewLabels, Machine, Recipe
from tasks.store.config import describe

INTRODUCTION = """\
# Parameters

Every parameter of a run, with the values of the recipes. Set one with `--set NAME=VALUE`, in a sweep's grid, or in Prefect's form.
This page is generated from `pul_core/settings.py` and `pul_core/recipes.py` by `tests/parameter_tables.py`.
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    recipe = get_type_hints(Recipe)
    for name, settings in recipe.items():
        parts += _section(name, settings, [getattr(values, name) for values in RECIPES.values()], list(RECIPES))
    for name, settings in {"source_data, target_data": Data, "few_labels": FewLabels, "machine": Machine}.items():
        parts += _section(name, settings, [settings()], ["default"])
    return "\n".join(parts)


def _section(name: str, settings: Any, values: list[Any], titles: list[str]) -> list[str]:
    lines = [f"## {name}", "", settings.__doc__, ""]
    lines += ["| " + " | ".join(["parameter", "values", *titles, "description"]) + " |", "|" + "---|" * (3 + len(titles))]
    return [*lines, *_rows("", settings, values), ""]


def _rows(prefix: str, settings: Any, values: list[Any]) -> list[str]:
    rows: list[str] = []
    plain, hints = get_type_hints(settings), get_type_hints(settings, include_extras=True)
    for setting in fields(settings):
        cells = [getattr(value, setting.name) for value in values]
        if is_dataclass(plain[setting.name]):
            rows += _rows(f"{setting.name}.", plain[setting.name], cells)
        else:
            shown = ["" if cell is None else f"{cell:g}" if type(cell) is float else str(cell) for cell in cells]
            rows.append(
                "| " + " | ".join([f"`{prefix}{setting.name}`", _domain(hints[setting.name]), *shown, describe(hints[setting.name])]) + " |"
            )
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
