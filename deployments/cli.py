"""The `pul` command: arguments in, flows started, results printed. Nothing heavy is imported before it is needed."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.arguments import (
    Device,
    OriginalModel,
    Size,
    Source,
    Threads,
    Weights,
    absolute,
    assignment,
    few_labels,
    height_and_width,
    how_to_read,
    put,
    read_config,
)
from deployments.data_cli import data
from deployments.environment import configure
from deployments.on_call_cli import doctor, gc, purge
from deployments.servers import choose_server
from deployments.suggest_cli import suggest
from deployments.sweep_cli import sweep
from pul_core.errors import UserError

app = typer.Typer(
    help="Carry a person re-identification model from labelled cameras to a camera network nobody has labelled.",
    epilog="Start with `pul demo`: drawn people, the whole loop, a few minutes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data")


def main() -> None:
    """Run the command; what cannot work is said in one line, with exit code 1."""
    configure()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from deployments.complaints import in_one_line

        line = in_one_line(error)
        if line is None:
            raise
        sys.exit(f"pul: {line}")


app.command()(doctor)
app.command()(gc)
app.command()(purge)
app.command()(suggest)
app.command()(sweep)


@app.callback()
def _pul() -> None:
    pass


@app.command()
def demo() -> None:
    """Draw people in two camera networks and carry a model from one to the other, in a few minutes."""
    from yaml import safe_load

    from deployments.servers import PREFECT_FILE

    stored = safe_load(PREFECT_FILE.read_text(encoding="utf-8"))["deployments"][0]["parameters"]
    _run_here(stored)
    typer.echo("\nTo look at the run in Prefect and MLflow: pul up")


@app.command()
def run(
    target: Annotated[str | None, typer.Option(help="Unlabelled images: a folder of crops, a manifest, or a published set.")] = None,
    source: Source = None,
    target_layout: Annotated[str | None, typer.Option(help="How the target lies, where its folder does not tell (docs/data.md).")] = None,
    source_layout: Annotated[str | None, typer.Option(help="The same of the source, e.g. folder-per-identity.")] = None,
    target_pattern: Annotated[str | None, typer.Option(help="What the target's file names tell, e.g. '(?P<camera>c\\d+)_'.")] = None,
    source_pattern: Annotated[
        str | None, typer.Option(help="The same of the source, e.g. '(?P<identity>[^/]+)/(?P<camera>c\\d+)_'.")
    ] = None,
    original_model: OriginalModel = None,
    recipe: Annotated[str | None, typer.Option(help="paper (default), modern (the strongest) or released-code.")] = None,
    backbone: Annotated[str | None, typer.Option(help="A timm model name; default resnet50. On a CPU: mobilenetv2_100.")] = None,
    weights: Weights = None,
    size: Size = None,
    num_clusters: Annotated[int | None, typer.Option(help="K of k-means; default one cluster for 16 images.")] = None,
    min_similarity: Annotated[float | None, typer.Option(help="Lambda: least cosine to the centre of a reliable image.")] = None,
    labelled: Annotated[str | None, typer.Option(help="Target labels to use: so many identities, a share like 10%, or a list.")] = None,
    max_iterations: Annotated[int | None, typer.Option(help="The last iteration at the latest.")] = None,
    seed: Annotated[int | None, typer.Option(help="Every random number of the run follows from it; default 0.")] = None,
    device: Device = None,
    threads: Threads = None,
    config: Annotated[Path | None, typer.Option(help="Repeat a run from its config.json; other options override it.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any parameter, e.g. --set fine_tuning.epochs=4.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done, how long and how large, and do nothing.")] = False,
) -> None:
    r"""Adapt a model to your own cameras, in this process, with no server to set up.

    \b
    pul run --source data/market --target crops/
    pul run --source data/market --target crops/ --backbone mobilenetv2_100 --size 128x64
    pul run --original-model resnet50_market.pth.tar --target crops/
    pul run --config .pul/runs/amber-fox/config.json
    """
    parameters = read_config(config) if config else {}
    named = {
        "target": absolute(target),
        "source": [absolute(path) for path in source] if source else None,
        "target_data.layout": target_layout,
        "source_data.layout": source_layout,
        "target_data.pattern": target_pattern,
        "source_data.pattern": source_pattern,
        "original_model": absolute(original_model),
        "recipe": recipe,
        "model.backbone": backbone,
        "model.weights": absolute(weights),
        "clustering.num_clusters": num_clusters,
        "selection.min_similarity": min_similarity,
        "stopping.max_iterations": max_iterations,
        "seed": seed,
        "machine.device": device,
        "machine.threads": threads,
    }
    if size is not None:
        named |= dict(zip(("model.height", "model.width"), height_and_width(size), strict=True))
    if labelled is not None:
        parameters["few_labels"] = few_labels(labelled)
    given = [(key, value) for key, value in named.items() if value is not None]
    for key, value in (*given, *map(assignment, set_ or [])):
        put(parameters, key, value)
    if "target" not in parameters:
        raise UserError("a run needs a target: --target DIR, the folder of the unlabelled images")
    if dry_run:
        _say_what_would_be_done(parameters)
    else:
        _run_here(parameters)


@app.command()
def resume(run: Annotated[str | None, typer.Argument(help="A run's name; the newest one if left out.")] = None) -> None:
    """Go on with a run that crashed, was killed or was stopped, in this process; finished steps come from the cache.

    A run that `pul up` still knows can go on with Retry in Prefect's UI as well.
    """
    from tasks.operations.lost_runs import config_to_resume
    from tasks.tracking.runs import RESUME

    name, config = config_to_resume(run)
    os.environ[RESUME] = name
    _run_here(config)


@app.command()
def results(
    run: Annotated[str | None, typer.Argument(help="A run's name; the newest one if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: fractions, one object an iteration.")] = False,
) -> None:
    """Show the iterations of a run."""
    from deployments.complaints import quieten
    from tasks.tracking.results import read_results

    quieten()
    found = read_results(run)
    typer.echo(json.dumps(found, indent=2) if as_json else _table(found))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model file, a run's name (its last iteration), RUN/iteration=N, or an MLflow URI.")],
    path: Annotated[str, typer.Argument(help="Labelled images with queries and a gallery.")],
    layout: Annotated[str | None, typer.Option(help="How the images lie, where their folder does not tell (docs/data.md).")] = None,
    pattern: Annotated[str | None, typer.Option(help="What their file names tell, for layout pattern.")] = None,
    protocol: Annotated[str, typer.Option(help="market1501, cross_camera, cuhk03_new, cuhk03_old, viper or multi_query.")] = "market1501",
    rerank: Annotated[bool, typer.Option("--rerank", help="Report k-reciprocal re-ranking beside the plain figures.")] = False,
    ties: Annotated[str, typer.Option(help="Answers of equal distance: pessimistic, optimistic or expected.")] = "pessimistic",
    unscored: Annotated[str, typer.Option(help="Queries without a right answer: left_out or zero.")] = "left_out",
    backbone: Annotated[str | None, typer.Option(help="Of a model file that does not say so itself; default resnet50.")] = None,
    size: Size = None,
    seed: Annotated[int, typer.Option(help="Of the splits of cuhk03_old and viper.")] = 0,
    device: Device = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: fractions, and where the per-query tables lie.")] = False,
) -> None:
    r"""Score a model on a data set. docs/protocols.md says what each figure means.

    \b
    pul evaluate amber-fox data/market1501
    pul evaluate amber-fox/iteration=0 data/market1501 --rerank
    pul evaluate models:/pul-model/3 data/cuhk03-np --protocol cuhk03_new --json
    """
    from flows.evaluate import look_first

    policies = {"protocol": protocol, "ties": ties, "unscored": unscored}
    model, path = str(absolute(model)), str(absolute(path))
    look_first(model, path, layout, pattern, **policies)
    parameters: dict[str, Any] = {"machine": {"device": device, "threads": threads}, "seed": seed, "rerank": rerank, **policies}
    parameters |= how_to_read(layout=layout, pattern=pattern, backbone=backbone, size=size)
    choose_server()
    from flows.evaluate import evaluate as flow

    found = flow(model=model, data=path, **parameters)
    typer.echo(json.dumps(found, indent=2) if as_json else _figures(found))


@app.command()
def up(
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's UI and API.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's UI.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than loopback with passwords only (docs/operations.md).")
    ] = "127.0.0.1",
) -> None:
    """Start Prefect, MLflow, the deployments and a worker on this machine; Ctrl-C stops them all.

    Then, in another terminal in the same directory: prefect deployment run pul/iterate --watch
    """
    from deployments.servers import up as start

    start(prefect_port, mlflow_port, host)


def _run_here(parameters: dict[str, Any]) -> None:
    """Check, then run the flow in this process: with the server of `pul up` if it answers, else with one of its own."""
    counts = _check(parameters)
    choose_server()
    from flows.pul import pul
    from tasks.operations.lost_runs import close_lost_runs
    from tasks.tracking.results import read_results

    typer.echo(f"{counts}\nstarting (the first time takes a while longer) ...", err=True)
    for name in close_lost_runs(prefect=True):
        typer.echo(f"run {name} ended without a word; it is closed now: pul resume {name} goes on with it", err=True)
    try:
        typer.echo("\n" + _table(read_results(pul(**parameters))))
    except KeyboardInterrupt:
        typer.echo("stopped: pul resume goes on with it", err=True)
        raise


def _check(parameters: dict[str, Any]) -> str:
    """Refuse in one line what cannot work, and say in one what is going to be done."""
    from flows.preflight import look_first

    plan, source, target = look_first(parameters)
    origin = f"{source.splits['train']:,} source images of {source.identities:,} people" if source else f"model {plan.original_model}"
    size = f"{plan.model.height} x {plan.model.width}"
    return f"{plan.recipe}: {origin} -> {target.splits['train']:,} target images; {plan.model.backbone}, {size}"


def _say_what_would_be_done(parameters: dict[str, Any]) -> None:
    from flows.preflight import estimate_run

    typer.echo(_check(parameters))
    plan, found = estimate_run(parameters)
    most = plan.stopping.max_iterations or 1
    gigabytes = (found.disk_bytes + most * found.disk_bytes_an_iteration) / 1e9
    typer.echo(f"source training  about {_duration(found.pretrain_seconds)}")
    typer.echo(f"an iteration     at most about {_duration(found.iteration_seconds)} (as if every image were reliable)")
    typer.echo(f"in all           at most about {_duration(found.pretrain_seconds + most * found.iteration_seconds)} ({most} iterations)")
    typer.echo(f"disk             about {gigabytes:.2f} GB\nmemory           about {found.memory_bytes / 1e9:.1f} GB")


def _table(found: dict[str, Any]) -> str:
    columns = (
        ("iteration", "iteration"),
        ("reliable", "reliable_set_size"),
        ("clusters", "num_clusters"),
        ("rank-1", "rank_1"),
        ("mAP", "mAP"),
    )
    rows = [[title for title, _ in columns]]
    rows += [[_cell(key, row.get(key)) for _, key in columns] for row in found["iterations"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(
        [*lines, f"run {found['run']}, {found['status']}" + (f", stopped: {found['stop_reason']}" if found["stop_reason"] else "")]
    )


FIGURES = {"rank_1": "rank-1", "rank_5": "rank-5", "rank_10": "rank-10", "mAP": "mAP", "mAP_trapezoidal": "trapezoidal mAP", "mINP": "mINP"}


def _figures(found: dict[str, Any]) -> str:
    names = [name for name in ("plain", "reranked") if name in found]
    lines = [f"{'':16}" + "".join(f"{name:>12}" for name in names)]
    lines += [f"{title:16}" + "".join(f"{100 * found[name][key]:10.1f} %" for name in names) for key, title in FIGURES.items()]
    scored, unscored = found["plain"]["num_scored_queries"], found["plain"]["num_unscored_queries"]
    policy = "left out" if found["unscored"] == "left_out" else "counted as zero"
    lines.append(f"{found['protocol']}, {found['ties']} ties; {scored:,} queries scored, {unscored:,} without a right answer {policy}")
    return "\n".join([*lines, *(f"per query: {found[name]['scores']}" for name in names)])


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if key in ("rank_1", "mAP") else f"{value:.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
