"""`pul sweep`: runs a grid of parameters with several seeds and prints one table."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.arguments import (
    OriginalModel,
    Size,
    Source,
    SourceLayout,
    SourcePattern,
    TargetLayout,
    TargetPattern,
    Weights,
    absolute_path,
    parse_assignment,
    parse_size,
    set_parameters,
)
from deployments.servers import prepare_flow_run
from deployments.tables import render_table
from pul_core.errors import UserError
from tasks.store.config import read_config


def sweep_command(
    target: Annotated[str | None, typer.Option(parser=absolute_path, metavar="PATH", help="Unlabelled images, as in `pul run`.")] = None,
    source: Source = None,
    target_layout: TargetLayout = None,
    source_layout: SourceLayout = None,
    target_pattern: TargetPattern = None,
    source_pattern: SourcePattern = None,
    original_model: OriginalModel = None,
    recipe: Annotated[str | None, typer.Option(help="The recipe of all runs, unless --grid sets it.")] = None,
    backbone: Annotated[str | None, typer.Option(help="A timm model name.")] = None,
    weights: Weights = None,
    size: Size = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each run; default one per core.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set any parameter of all runs; repeatable.")] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="The values of a parameter, e.g. selection.min_similarity=0.35,0.45; repeatable.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="The seeds of every run, e.g. 0,1,2; default the single seed 0.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="The number of simultaneous runs; default cores / threads.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A JSON file with base, grid, variants, seeds and parallel (docs/sweep.md); other options override it."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="List the runs without starting them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: every run and the means over seeds; scores are fractions.")] = False,
) -> None:
    """Run a grid of parameters with several seeds and compare them.

    Prints means and standard deviations over seeds. docs/sweep.md has more examples.

    \b
    pul sweep --source data/market --target crops/ --grid selection.min_similarity=0.35,0.45,0.55 --seeds 0,1,2
    pul sweep --config sweep.json --dry-run
    """  # noqa: D301 \b keeps the lines of the examples
    parameters: dict[str, Any] = {"base": {}, "grid": None, "variants": None, "seeds": None, "parallel": None}
    from_config = read_config(config)[0] if config else {}
    if unknown := sorted(set(from_config) - set(parameters)):
        raise UserError(f"{config} contains {unknown[0]!r}, but a sweep has no parameter {unknown[0]!r}: there are {', '.join(parameters)}")
    parameters |= from_config
    set_parameters(
        parameters["base"],
        {
            "target": target,
            "source": source,
            "target_data.layout": target_layout,
            "source_data.layout": source_layout,
            "target_data.pattern": target_pattern,
            "source_data.pattern": source_pattern,
            "original_model": original_model,
            "recipe": recipe,
            "model.backbone": backbone,
            "model.weights": weights,
            **{f"model.{side}": pixels for side, pixels in parse_size(size).items()},
            "machine.threads": threads,
        },
        set_,
    )
    if grid:
        parameters["grid"] = (parameters["grid"] or {}) | dict(map(_parse_values, grid))
    set_parameters(parameters, {"seeds": _parse_values(f"seeds={seeds}")[1] if seeds else None, "parallel": parallel})
    _validate(parameters, list_runs=dry_run)
    if not dry_run:
        _run(parameters, as_json)


def _parse_values(text: str) -> tuple[str, list[Any]]:
    """Parse name=value,value."""
    name, equals, values = text.partition("=")
    if not equals or not all(values.split(",")):
        raise UserError(f"--grid must be name=value,value, e.g. selection.min_similarity=0.35,0.45, got {text!r}")
    return name, [parse_assignment(f"{name}={value}")[1] for value in values.split(",")]


def _validate(parameters: dict[str, Any], *, list_runs: bool) -> None:
    """Check the parameters and the data before anything is started, and print the number of runs."""
    from flows.sweep import default_parallel, jobs_of
    from tasks.operations.grid import sweep_children, validate_children
    from tasks.operations.sweeps import OpenSweep

    children = sweep_children(parameters["base"], parameters["grid"], parameters["variants"], parameters["seeds"])
    validate_children(children)
    num_shared = len(jobs_of(children, OpenSweep(name="", folder="", started={}))) - len(children)
    shared = f", after {num_shared} source training{'s' if num_shared > 1 else ''} that they share" if num_shared else ""
    if list_runs:
        rows = [[str(child.number), child.setting, str(child.seed)] for child in children]
        typer.echo(render_table(["run", "setting", "seed"], rows, left=["setting"]))
    typer.echo(f"{len(children)} runs, {parameters['parallel'] or default_parallel(children)} at once{shared}", err=not list_runs)


def _run(parameters: dict[str, Any], as_json: bool) -> None:
    prepare_flow_run()
    from flows.sweep import sweep
    from tasks.operations.lost_runs import close_lost_runs
    from tasks.operations.sweeps import SweepFailedError, read_sweep

    close_lost_runs(prefect=True)
    failure = None
    try:
        path = sweep(**parameters)
    except SweepFailedError as error:
        path, failure = error.table, error
    table = read_sweep(path)
    typer.echo(json.dumps(table, indent=2) if as_json else "\n" + _means_text(table))
    if failure:
        raise failure


def _means_text(table: dict[str, Any]) -> str:
    from tasks.operations.sweeps import MEANS_TITLES, format_mean

    rows = [[row["setting"] or "-", str(row["seeds"]), *(format_mean(row, name) for name in MEANS_TITLES)] for row in table["means"]]
    return (
        f"{render_table(['setting', 'seeds', *MEANS_TITLES.values()], rows, left=['setting'])}\n"
        "scores in percent, mean ± standard deviation over seeds; gain: the last iteration minus direct transfer\n"
        f"{table['sweep']}: {table['table']}"
    )
