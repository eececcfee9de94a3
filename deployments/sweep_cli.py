"""`pul sweep`: many runs that differ in some parameters and in their seeds, one table."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.arguments import OriginalModel, Size, Source, Weights, absolute, assignment, height_and_width, put, read_config
from deployments.servers import choose_server
from pul_core.errors import UserError


def sweep(
    target: Annotated[str | None, typer.Option(help="Unlabelled images, as pul run takes them.")] = None,
    source: Source = None,
    original_model: OriginalModel = None,
    recipe: Annotated[str | None, typer.Option(help="Of all runs, unless it is swept.")] = None,
    backbone: Annotated[str | None, typer.Option(help="A timm model name.")] = None,
    weights: Weights = None,
    size: Size = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each run; default one a core.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any parameter of all runs, e.g. --set fine_tuning.epochs=4.")] = None,
    grid: Annotated[list[str] | None, typer.Option(help="Values of a parameter: selection.min_similarity=0.35,0.45; repeatable.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Of every run, e.g. 0,1,2; default the one seed 0.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Runs at once; default cores / threads.")] = None,
    config: Annotated[Path | None, typer.Option(help="base, grid, variants, seeds, parallel as JSON; other options override it.")] = None,
    dry_run: Annotated[bool, typer.Option(help="List the runs and start none.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: fractions, every child and the means over seeds.")] = False,
) -> None:
    r"""Run a grid of parameters with several seeds, and print means and spread. docs/sweep.md shows more.

    \b
    pul sweep --source data/market --target crops/ --grid selection.min_similarity=0.35,0.45,0.55 --seeds 0,1,2
    pul sweep --config sweep.json --dry-run
    """
    asked = {"base": {}, "grid": None, "variants": None, "seeds": None, "parallel": None} | (read_config(config) if config else {})
    if unknown := sorted(set(asked) - {"base", "grid", "variants", "seeds", "parallel"}):
        raise UserError(f"{config} has {unknown[0]!r}; a sweep's config has base, grid, variants, seeds and parallel")
    named = {
        "target": absolute(target),
        "source": [absolute(path) for path in source] if source else None,
        "original_model": absolute(original_model),
        "recipe": recipe,
        "model.backbone": backbone,
        "model.weights": absolute(weights),
        "machine.threads": threads,
    }
    if size is not None:
        named |= dict(zip(("model.height", "model.width"), height_and_width(size), strict=True))
    given = [(key, value) for key, value in named.items() if value is not None]
    for key, value in (*given, *map(assignment, set_ or [])):
        put(asked["base"], key, value)
    if grid:
        asked["grid"] = (asked["grid"] or {}) | dict(map(_values, grid))
    if seeds:
        asked["seeds"] = _values(f"seeds={seeds}")[1]
    if parallel:
        asked["parallel"] = parallel
    _check(asked, list_them=dry_run)
    if not dry_run:
        _run_here(asked, as_json)


def _check(asked: dict[str, Any], *, list_them: bool) -> None:
    """Refuse in one line what cannot work; list the children."""
    from flows.grid import children_of, look_at_data
    from flows.sweep import at_once, jobs_of
    from tasks.operations.sweeps import OpenSweep

    children = children_of(asked["base"], asked["grid"], asked["variants"], asked["seeds"])
    look_at_data(children)
    jobs = jobs_of(children, OpenSweep(name="", folder="", started={}))
    counts = f"{len(children)} runs, {asked['parallel'] or at_once(children)} at once"
    if shared := len(jobs) - len(children):
        counts += f", after {shared} source training{'s' if shared > 1 else ''} that they share"
    width = max(len(child.setting) for child in children)
    lines = [f"{child.number:4}  {child.setting:{width}}  seed {child.seed}" for child in children] if list_them else []
    typer.echo("\n".join([*lines, counts]), err=not list_them)


def _run_here(asked: dict[str, Any], as_json: bool) -> None:
    choose_server()
    from flows.sweep import sweep as flow
    from tasks.operations.lost_runs import close_lost_runs
    from tasks.operations.sweeps import SweepFailedError, read_sweep

    close_lost_runs(prefect=True)
    failure = None
    try:
        table = flow(**asked)
    except SweepFailedError as error:
        table, failure = error.table, error
    found = read_sweep(table)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n" + _summary(found))
    if failure:
        raise failure


def _summary(found: dict[str, Any]) -> str:
    from tasks.operations.sweeps import means_table

    rows = means_table(found["means"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        " | ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.append("scores in percent, mean ± standard deviation over seeds; gain: the iteration it stopped at over direct transfer")
    return "\n".join([*lines, f"{found['sweep']}: {found['table']}"])


def _values(text: str) -> tuple[str, list[Any]]:
    name, equals, values = text.partition("=")
    if not equals or not all(values.split(",")):
        raise UserError(f"--grid wants name=value,value, e.g. selection.min_similarity=0.35,0.45, not {text!r}")
    return name, [assignment(f"{name}={value}")[1] for value in values.split(",")]
