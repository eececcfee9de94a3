"""The `pul` command: parses arguments, starts flows and prints results. Heavy libraries are imported only where they are needed."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.arguments import (
    Backbone,
    Device,
    Layout,
    Model,
    OriginalModel,
    Pattern,
    Size,
    Source,
    Threads,
    Weights,
    absolute_path,
    absolute_paths,
    parse_few_labels,
    parse_size,
    reading_options,
    repeated_parameters,
    set_parameters,
)
from deployments.data_cli import data_app
from deployments.environment import configure
from deployments.maintenance_cli import doctor, gc, purge
from deployments.servers import PREFECT_FILE, choose_server, run_servers
from deployments.suggest_cli import suggest_command
from deployments.sweep_cli import sweep_command
from deployments.tables import render_table
from pul_core.errors import UserError

if TYPE_CHECKING:
    from tasks.preflight import ValidatedRun

app = typer.Typer(
    help="Adapt a person re-identification model from labelled cameras to an unlabelled camera network.",
    epilog="Start with `pul demo`: synthetic people, the whole loop, a few minutes.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.command()(doctor)
app.command()(gc)
app.command()(purge)
app.command("suggest")(suggest_command)
app.command("sweep")(sweep_command)


def main() -> None:
    """Run the command. An error ends it with exit code 1 and one line; with ``--debug``, with its traceback."""
    try:
        configure()
        sys.exit(app(prog_name="pul", standalone_mode=False))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from deployments.errors import debugging, log_unexpected, user_message

        if debugging():
            raise
        sys.exit(f"pul: {user_message(error) or log_unexpected(error)}")


@app.callback(invoke_without_command=True)
def global_options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of every error: pul --debug COMMAND ...")] = False,
) -> None:
    """Declare the options before the command (`errors.debugging` reads ``--debug``), and print the help where there is no command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@app.command("demo")
def demo_command() -> None:
    """Draw people in two synthetic camera networks and adapt a model from one to the other, in a few minutes."""
    from yaml import safe_load

    _run(safe_load(PREFECT_FILE.read_text(encoding="utf-8"))["deployments"][0]["parameters"])
    typer.echo("\nTo see the run in Prefect and MLflow: pul up")


@app.command("run")
def run_command(
    target: Annotated[str | None, typer.Option(help="Unlabelled images: a folder of crops, a manifest, or a published set.")] = None,
    source: Source = None,
    target_layout: Annotated[str | None, typer.Option(help="The layout of the target; detected by default (docs/data.md).")] = None,
    source_layout: Annotated[str | None, typer.Option(help="The layout of the source, e.g. folder-per-identity.")] = None,
    target_pattern: Annotated[str | None, typer.Option(help="A regular expression for its file names, e.g. '(?P<camera>c\\d+)_'.")] = None,
    source_pattern: Annotated[
        str | None, typer.Option(help="The same for the source, e.g. '(?P<identity>[^/]+)/(?P<camera>c\\d+)_'.")
    ] = None,
    original_model: OriginalModel = None,
    recipe: Annotated[str | None, typer.Option(help="paper (default), modern (the strongest) or released-code.")] = None,
    backbone: Annotated[str | None, typer.Option(help="A timm model name; default resnet50. On a CPU: mobilenetv2_100.")] = None,
    weights: Weights = None,
    size: Size = None,
    num_clusters: Annotated[int | None, typer.Option(help="K of k-means; default one cluster per 16 images.")] = None,
    labelled: Annotated[
        str | None, typer.Option(help="Target labels to use: a number of identities, a share such as 10%, or a file that lists them.")
    ] = None,
    max_iterations: Annotated[int | None, typer.Option(help="The maximum number of iterations.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of all random numbers of the run; default 0.")] = None,
    device: Device = None,
    threads: Threads = None,
    config: Annotated[Path | None, typer.Option(help="Repeat a run from its config.json; other options override it.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any parameter, e.g. --set fine_tuning.epochs=4.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Estimate the time, disk space and memory of the run without starting it.")] = False,
) -> None:
    r"""Adapt a model to your own cameras, in this process; no server is required.

    \b
    pul run --source data/market --target crops/
    pul run --source data/market --target crops/ --backbone mobilenetv2_100 --size 128x64
    pul run --original-model resnet50_market.pth.tar --target crops/
    pul run --config .pul/runs/amber-fox/config.json
    """
    parameters = repeated_parameters(config) if config else {}
    options = {
        "target": absolute_path(target),
        "source": absolute_paths(source),
        "target_data.layout": target_layout,
        "source_data.layout": source_layout,
        "target_data.pattern": target_pattern,
        "source_data.pattern": source_pattern,
        "original_model": absolute_path(original_model),
        "recipe": recipe,
        "model.backbone": backbone,
        "model.weights": absolute_path(weights),
        **{f"model.{side}": pixels for side, pixels in parse_size(size).items()},
        "kmeans.num_clusters": num_clusters,
        "few_labels": parse_few_labels(labelled) if labelled is not None else None,
        "stopping.max_iterations": max_iterations,
        "seed": seed,
        "machine.device": device,
        "machine.threads": threads,
    }
    set_parameters(parameters, options, set_)
    if "target" not in parameters:
        raise UserError("a run needs a target: --target DIR, the folder of the unlabelled images")
    if dry_run:
        _print_estimate(parameters)
    else:
        _run(parameters)


@app.command("resume")
def resume_command(run: Annotated[str | None, typer.Argument(help="The name of a run; default the newest one.")] = None) -> None:
    """Resume a run that crashed, was killed or was stopped, in this process; finished steps come from the cache.

    A run that was started under `pul up` can also be resumed with Retry in Prefect's UI.
    """
    from tasks.operations.lost_runs import config_to_resume
    from tasks.tracking.runs import RESUME

    name, config = config_to_resume(run)
    os.environ[RESUME] = name
    _run(config)


@app.command("results")
def results_command(
    run: Annotated[str | None, typer.Argument(help="The name of a run; default the newest one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: fractions, one object per iteration.")] = False,
) -> None:
    """Show the iterations of a run."""
    from deployments.errors import quieten
    from tasks.tracking.results import read_results

    quieten()
    results = read_results(run)
    typer.echo(json.dumps(results, indent=2) if as_json else _results_text(results))


@app.command("evaluate")
def evaluate_command(
    model: Model,
    path: Annotated[str, typer.Argument(help="Labelled images with a query set and a gallery.")],
    layout: Layout = None,
    pattern: Pattern = None,
    protocol: Annotated[str, typer.Option(help="market1501, cross_camera, cuhk03_new, cuhk03_old, viper or multi_query.")] = "market1501",
    rerank: Annotated[bool, typer.Option("--rerank", help="Report k-reciprocal re-ranking beside the plain scores.")] = False,
    ties: Annotated[str, typer.Option(help="How equal distances are ranked: pessimistic, optimistic or expected.")] = "pessimistic",
    unscored: Annotated[str, typer.Option(help="How queries without a correct match count: left_out or zero.")] = "left_out",
    backbone: Backbone = None,
    size: Size = None,
    seed: Annotated[int, typer.Option(help="The seed of the random splits of cuhk03_old and viper.")] = 0,
    device: Device = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: fractions, and the paths of the per-query tables.")] = False,
) -> None:
    r"""Score a model on a data set. docs/protocols.md defines every score.

    \b
    pul evaluate amber-fox data/market1501
    pul evaluate amber-fox/iteration=0 data/market1501 --rerank
    pul evaluate models:/pul-model/3 data/cuhk03-np --protocol cuhk03_new --json
    """
    from flows.evaluate import evaluate_model
    from tasks.preflight import validate_evaluation

    policies = {"protocol": protocol, "ties": ties, "unscored": unscored}
    model, path = str(absolute_path(model)), str(absolute_path(path))
    validate_evaluation(model, path, layout, pattern, **policies)
    parameters: dict[str, Any] = {"machine": {"device": device, "threads": threads}, "seed": seed, "rerank": rerank, **policies}
    parameters |= reading_options(layout=layout, pattern=pattern, backbone=backbone, size=size)
    choose_server()
    scores = evaluate_model(model=model, data=path, **parameters)
    typer.echo(json.dumps(scores, indent=2) if as_json else _scores_text(scores))


@app.command("up")
def up_command(
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's UI and API.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's UI.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any address but loopback requires passwords (docs/operations.md).")
    ] = "127.0.0.1",
) -> None:
    """Start Prefect, MLflow, the deployments and a worker on this machine; Ctrl-C stops them all.

    Then, in another terminal in the same directory: prefect deployment run pul/iterate --watch
    """
    run_servers(prefect_port, mlflow_port, host)


def _run(parameters: dict[str, Any]) -> None:
    """Validate the parameters, then run the flow in this process, with the server of `pul up` if it answers, else a temporary one."""
    from tasks.preflight import validate_run

    summary = _run_summary(validate_run(parameters))
    choose_server()
    from flows.pul import pul
    from tasks.operations.lost_runs import close_lost_runs
    from tasks.tracking.results import read_results

    typer.echo(f"{summary}\nstarting (the first start takes longer) ...", err=True)
    for name in close_lost_runs(prefect=True):
        typer.echo(f"run {name} ended unexpectedly and is now marked as failed: pul resume {name} continues it", err=True)
    try:
        typer.echo("\n" + _results_text(read_results(pul(**parameters))))
    except KeyboardInterrupt:
        typer.echo("stopped: pul resume continues the run", err=True)
        raise


def _run_summary(run: "ValidatedRun") -> str:
    plan, source, target = run
    origin = f"{source.splits['train']:,} source images of {source.identities:,} people" if source else f"model {plan.original_model}"
    size = f"{plan.model.height} x {plan.model.width}"
    return f"{plan.recipe}: {origin} -> {target.splits['train']:,} target images; {plan.model.backbone}, {size}"


def _print_estimate(parameters: dict[str, Any]) -> None:
    from tasks.preflight import estimate_run, validate_run

    run = validate_run(parameters)
    typer.echo(_run_summary(run))
    estimate = estimate_run(run)
    iterations = run.plan.stopping.max_iterations
    seconds = estimate.pretrain_seconds + iterations * estimate.iteration_seconds
    disk_bytes = estimate.disk_bytes + iterations * estimate.disk_bytes_per_iteration
    typer.echo(f"source training  about {_duration(estimate.pretrain_seconds)}")
    typer.echo(f"an iteration     at most about {_duration(estimate.iteration_seconds)} (as if every image were reliable)")
    typer.echo(f"in total         at most about {_duration(seconds)} ({iterations} iterations)")
    typer.echo(f"disk             about {disk_bytes / 1e9:.2f} GB\nmemory           about {estimate.memory_bytes / 1e9:.1f} GB")


def _results_text(results: dict[str, Any]) -> str:
    columns = {
        "iteration": "iteration",
        "reliable": "reliable_set_size",
        "clusters": "num_clusters",
        "rank-1": "rank_1",
        "mAP": "mAP",
    }
    rows = [[_format_metric(metric, iteration.get(metric)) for metric in columns.values()] for iteration in results["iterations"]]
    stopped = f", stopped: {results['stop_reason']}" if results["stop_reason"] else ""
    return f"{render_table(list(columns), rows)}\nrun {results['run']}, {results['status']}{stopped}"


def _format_metric(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if metric in ("rank_1", "mAP") else f"{value:.0f}"


METRICS = {"rank_1": "rank-1", "rank_5": "rank-5", "rank_10": "rank-10", "mAP": "mAP", "mAP_trapezoidal": "trapezoidal mAP", "mINP": "mINP"}


def _scores_text(scores: dict[str, Any]) -> str:
    rankings = [ranking for ranking in ("plain", "reranked") if ranking in scores]
    rows = [[title, *(f"{100 * scores[ranking][metric]:.1f} %" for ranking in rankings)] for metric, title in METRICS.items()]
    num_scored, num_unscored = scores["plain"]["num_scored_queries"], scores["plain"]["num_unscored_queries"]
    policy = "left out" if scores["unscored"] == "left_out" else "counted as zero"
    lines = [
        render_table(["metric", *rankings], rows, left=["metric"]),
        f"{scores['protocol']}, {scores['ties']} ties; {num_scored:,} queries scored, {num_unscored:,} without a correct match {policy}",
        *(f"per query: {scores[ranking]['scores']}" for ranking in rankings),
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
