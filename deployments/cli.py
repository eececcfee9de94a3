"""The `pul` command: parses arguments, starts flows and prints results. Slow imports are inside the functions that need them."""

import io
import json
import os
import sys
from collections.abc import Callable
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
    SourceLayout,
    SourcePattern,
    TargetLayout,
    TargetPattern,
    Threads,
    Verbose,
    Weights,
    absolute_path,
    parse_few_labels,
    parse_size,
    repeated_parameters,
    set_parameters,
)
from deployments.data_cli import data_app, print_help
from deployments.display import Screen, display
from deployments.embed_cli import embed_command
from deployments.environment import configure
from deployments.errors import debugging, log_unexpected, quieten, user_message
from deployments.export_cli import export_command
from deployments.maintenance_cli import doctor, gc, purge
from deployments.promote_cli import promote_command
from deployments.report_cli import compare_command, report_command
from deployments.servers import PREFECT_FILE, prepare_flow_run, run_servers
from deployments.suggest_cli import suggest_command
from deployments.sweep_cli import sweep_command
from deployments.tables import ITERATION_COLUMNS, format_metric, iteration_cells, render_table
from pul_core.errors import UserError
from pul_core.stopping import EXPLANATIONS
from tasks.engine.status import activity, status

if TYPE_CHECKING:
    from tasks.preflight import ValidatedRun

SCORE_TITLES = {
    "rank_1": "rank-1",
    "rank_5": "rank-5",
    "rank_10": "rank-10",
    "mAP": "mAP",
    "mAP_trapezoidal": "trapezoidal mAP",
    "mINP": "mINP",
}
app = typer.Typer(
    help="Adapt a person re-identification model from labelled cameras to an unlabelled camera network.",
    epilog="Start with `pul demo`: synthetic people, the whole loop, a few minutes.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command. After an error, print one line and exit with code 1; with ``--debug``, show the traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if it was closed
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode
    try:
        configure()
        sys.exit(app(prog_name="pul", standalone_mode=False))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader closed the pipe: pul results | head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debugging():
            raise
        sys.exit(f"pul: {user_message(error) or log_unexpected(error)}")


@app.callback(invoke_without_command=True)
def global_options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of every error: pul --debug COMMAND ...")] = False,
) -> None:
    """Declare ``--debug``, which `errors.debugging` reads, and print the help if no command is given."""
    print_help(context)


@app.command("demo")
def demo_command(verbose: Verbose = False) -> None:
    """Try the whole loop on synthetic people, in a few minutes.

    Draws people in two camera networks, and adapts a model from one network to the other.
    """
    from yaml import safe_load

    _run("demo", lambda: safe_load(PREFECT_FILE.read_text(encoding="utf-8"))["deployments"][0]["parameters"], verbose=verbose)


@app.command("run")
def run_command(
    target: Annotated[
        str | None,
        typer.Option(
            parser=absolute_path, metavar="PATH", help="Unlabelled images: a folder of crops, a manifest, or a published data set."
        ),
    ] = None,
    source: Source = None,
    target_layout: TargetLayout = None,
    source_layout: SourceLayout = None,
    target_pattern: TargetPattern = None,
    source_pattern: SourcePattern = None,
    original_model: OriginalModel = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Default values: modern, paper, released-code, or auto (default): modern where that can be used, otherwise "
            "paper (docs/method.md)."
        ),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="A timm model name; default resnet50. On a CPU: mobilenetv2_100.")] = None,
    weights: Weights = None,
    size: Size = None,
    num_clusters: Annotated[int | None, typer.Option(help="K of k-means; default one cluster per 16 images.")] = None,
    min_similarity: Annotated[
        float | None, typer.Option(help="Lambda, from -1 to 1: only images this similar to their centre are used.")
    ] = None,
    labelled: Annotated[
        str | None, typer.Option(help="Target labels to use: a number of identities, a share such as 10%, or a file that lists them.")
    ] = None,
    max_iterations: Annotated[int | None, typer.Option(help="The maximum number of iterations; default that of the recipe.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of all random numbers of the run; default 0.")] = None,
    device: Device = None,
    threads: Threads = None,
    config: Annotated[Path | None, typer.Option(help="Repeat a run from its config.json; other options override it.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set any parameter of docs/parameters.md, e.g. --set fine_tuning.epochs=4; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Estimate the time, disk space and memory of the run without starting it.")] = False,
    verbose: Verbose = False,
) -> None:
    """Adapt a model to your own cameras.

    The run is executed in this process; no server is required.

    \b
    pul run --source data/market --target crops/
    pul run --source data/market --target crops/ --backbone mobilenetv2_100 --size 128x64
    pul run --original-model resnet50_market.pth.tar --target crops/
    pul run --config .pul/runs/amber-fox-1f2e3d4c/config.json
    """  # noqa: D301 \b keeps the lines of the examples
    parameters = repeated_parameters(config) if config else {}
    set_parameters(
        parameters,
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
            "kmeans.num_clusters": num_clusters,
            "selection.min_similarity": min_similarity,
            "few_labels": parse_few_labels(labelled) if labelled is not None else None,
            "stopping.max_iterations": max_iterations,
            "seed": seed,
            "machine.device": device,
            "machine.threads": threads,
        },
        set_,
    )
    if "target" not in parameters:
        raise UserError("a run needs a target: --target DIR, the folder of the unlabelled images")
    if dry_run:
        _print_estimate(parameters, verbose=verbose)
    else:
        _run("run", lambda: parameters, verbose=verbose)


@app.command("resume")
def resume_command(
    run: Annotated[str | None, typer.Argument(help="The id or unique name of a run; default the newest one.")] = None,
    verbose: Verbose = False,
) -> None:
    """Resume a run that crashed, was killed or was stopped.

    Finished steps are read from the cache. A run that was started under `pul up` can also be resumed with Retry in Prefect's UI.
    """

    def read_parameters() -> dict[str, Any]:
        from tasks.operations.lost_runs import config_to_resume
        from tasks.tracking.runs import RESUME

        os.environ[RESUME], config = config_to_resume(run)
        return config

    _run("resume", read_parameters, verbose=verbose)


@app.command("results")
def results_command(
    run: Annotated[str | None, typer.Argument(help="The id or unique name of a run; default the newest one.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List all runs instead, with the results of their last iterations.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: one object per iteration, or with --list per run; scores as fractions.")
    ] = False,
) -> None:
    """Show the iterations of a run, or list all runs.

    \b
    pul results
    pul results amber-fox
    pul results --list
    """  # noqa: D301 \b keeps the lines of the examples
    from tasks.tracking.results import list_runs, read_results, run_id_of

    quieten()
    if list_:
        from tasks.operations.lost_runs import lost_runs

        if run is not None:
            raise UserError(f"--list shows all runs, but run {run!r} was given: leave one of them out")
        lost = {run_id_of(lost_run) for lost_run in lost_runs()}
        runs = [row | {"status": "lost"} if row["run"] in lost else row for row in list_runs()]
        typer.echo(json.dumps(runs, indent=2) if as_json else _runs_text(runs))
        return
    results = read_results(run)
    typer.echo(json.dumps(results, indent=2) if as_json else _results_text(results))


@app.command("evaluate")
def evaluate_command(
    model: Model,
    path: Annotated[str, typer.Argument(parser=absolute_path, help="A labelled data set with queries and a gallery.")],
    layout: Layout = None,
    pattern: Pattern = None,
    protocol: Annotated[
        str, typer.Option(help="market1501, cross_camera, cuhk03_new, cuhk03_old, viper or multi_query (docs/protocols.md).")
    ] = "market1501",
    rerank: Annotated[bool, typer.Option("--rerank", help="Also report the scores after k-reciprocal re-ranking.")] = False,
    statistics: Annotated[
        bool,
        typer.Option(
            "--statistics",
            help="Use statistics of the data set, estimated from its training images: BatchNorm statistics of each camera, and whitening.",
        ),
    ] = False,
    ties: Annotated[str, typer.Option(help="How equal distances are ranked: pessimistic, optimistic or expected.")] = "pessimistic",
    unscored: Annotated[str, typer.Option(help="Queries without a correct match: left_out, or zero (counted as zero).")] = "left_out",
    backbone: Backbone = None,
    size: Size = None,
    seed: Annotated[
        int, typer.Option(help="The seed of the random splits of cuhk03_old and viper, and of the choice of images for --statistics.")
    ] = 0,
    device: Device = None,
    threads: Threads = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the scores as fractions, and the paths of the per-query tables.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Score a model on a labelled data set. docs/protocols.md defines every score.

    \b
    pul evaluate amber-fox data/market1501
    pul evaluate amber-fox/iteration=0 data/market1501 --rerank
    pul evaluate 'models:/pul market1501 to my-crops/3' data/cuhk03-np --protocol cuhk03_new --json
    """  # noqa: D301 \b keeps the lines of the examples
    parameters: dict[str, Any] = {
        "model": model,
        "data": path,
        "layout": layout,
        "pattern": pattern,
        "protocol": protocol,
        "ties": ties,
        "unscored": unscored,
        "rerank": rerank,
        "statistics": {"by_camera": statistics},
        "backbone": backbone,
        **parse_size(size),
        "machine": {"device": device, "threads": threads},
        "seed": seed,
    }
    with display("evaluate", verbose=verbose) as screen:
        with activity("check the data"):
            from tasks.preflight import validate_evaluation

            validate_evaluation(parameters)
        with activity("start Prefect"):
            from flows.evaluate import evaluate_model

            prepare_flow_run(only_warnings=not (verbose or screen.log))
        scores = evaluate_model(**parameters)
    typer.echo(json.dumps(scores, indent=2) if as_json else _scores_text(scores))


@app.command("up")
def up_command(
    prefect_port: Annotated[int, typer.Option(help="The port of Prefect's UI and API.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="The port of MLflow's UI and API.")] = 5000,
    host: Annotated[
        str, typer.Option(help="The address to listen on; any address except loopback requires passwords (docs/operations.md).")
    ] = "127.0.0.1",
) -> None:
    """Start Prefect, MLflow and a worker on this machine.

    Then start a run in another terminal, in the same directory: prefect deployment run pul/iterate --watch. Ctrl-C stops everything.
    """
    run_servers(prefect_port, mlflow_port, host)


def _run(command: str, read_parameters: Callable[[], dict[str, Any]], *, verbose: bool) -> None:
    """Run flow `pul` in this process, and print its results."""
    try:
        with display(command, verbose=verbose) as screen:
            results = _run_flow(read_parameters(), screen)
    except KeyboardInterrupt:
        typer.echo(f"stopped{': pul resume continues the run' if status.run else ''}", err=True)
        raise
    typer.echo(f"\n{_results_text(results)}")
    report, export = f"pul report {results['run']}", f"pul export {results['run']} --format onnx"
    lines = [
        *([f"log {screen.log}"] if screen.log else []),
        "next:",
        f"  {report:<{len(export)}}  # curves, clusters and warning signs, in one HTML file",
        f"  {export}  # the model for other programs",
    ]
    typer.echo("\n".join(lines), err=True)


def _run_flow(parameters: dict[str, Any], screen: Screen) -> dict[str, Any]:
    """Validate the parameters, run flow `pul` and return its results."""
    with activity("check the data"):
        from tasks.preflight import validate_run

        screen.say(_run_summary(validate_run(parameters)))
        if screen.log is None:
            screen.say("starting (the first start takes longer) ...")
    with activity("start Prefect and MLflow"):
        prepare_flow_run()
        from flows.pul import pul
        from tasks.operations.lost_runs import close_lost_runs
        from tasks.tracking.results import read_results

        for name in close_lost_runs(prefect=True):
            screen.say(f"run {name} ended unexpectedly and is now marked as failed: pul resume {name} continues it")
    return read_results(pul(**parameters))


def _run_summary(run: "ValidatedRun") -> str:
    plan, source, target, warnings, reason = run
    recipe = f"{plan.recipe} (auto: {reason})" if reason else plan.recipe
    origin = f"{source.splits['train']:,} source images of {source.identities:,} people" if source else f"model {plan.original_model}"
    network = f"{plan.model.backbone}, {plan.model.height} x {plan.model.width}"
    summary = f"{recipe}: {origin} -> {target.splits['train']:,} target images; {network}"
    return "\n".join([summary, *(f"warning: {warning}" for warning in warnings)])


def _print_estimate(parameters: dict[str, Any], *, verbose: bool) -> None:
    """Estimate a run, and say what is being done, because timing a large network takes minutes."""
    with display("dry-run", verbose=verbose) as screen:
        with activity("check the data"):
            from tasks.hub import check_hub
            from tasks.preflight import estimate_run, validate_run

            run = validate_run(parameters)
        network = run.plan.model
        if run.plan.source and network.weights == "imagenet":
            with activity(f"look for the ImageNet weights of {network.backbone} on timm's hub"):
                check_hub(network.backbone)
        screen.say(f"timing {network.backbone} on a few batches of noise, which may take minutes without a GPU ...")
        with activity(f"time {network.backbone}"):
            estimate = estimate_run(run)
    typer.echo(_run_summary(run))
    iterations = run.plan.stopping.max_iterations
    seconds = estimate.pretrain_seconds + iterations * estimate.iteration_seconds
    disk_bytes = estimate.disk_bytes + iterations * estimate.disk_bytes_per_iteration
    typer.echo(
        f"source training  about {_duration(estimate.pretrain_seconds)}\n"
        f"an iteration     at most about {_duration(estimate.iteration_seconds)} (as if every image were reliable)\n"
        f"in total         at most about {_duration(seconds)} ({iterations} iterations)\n"
        f"disk             about {disk_bytes / 1e9:.2f} GB\n"
        f"memory           about {estimate.memory_bytes / 1e9:.1f} GB"
    )


def _results_text(results: dict[str, Any]) -> str:
    pairs = zip(results["iterations"], results["seconds"], strict=True)
    table = render_table(
        list(ITERATION_COLUMNS.values()), [iteration_cells(iteration | {"seconds": seconds}) for iteration, seconds in pairs]
    )
    reason = results["stop_reason"]
    stopped = f", stopped: {reason}\n{EXPLANATIONS[reason]}" if reason else ""
    resume = f": pul resume {results['run']} continues it" if results["status"] in ("failed", "killed") else ""
    return f"{table}\nrun {results['run']}, {results['status']}{stopped}{resume}"


def _runs_text(runs: list[dict[str, Any]]) -> str:
    rows = [
        [
            *(str(run[name] or "-") for name in ("run", "started", "recipe", "experiment", "status")),
            *(format_metric(name, run[name]) for name in ("iterations", "reliable_set_size", "rank_1", "mAP")),
        ]
        for run in runs
    ]
    text = ["run", "started", "recipe", "source to target", "state"]
    return render_table([*text, "iterations", "reliable", "rank-1", "mAP"], rows, left=text)


def _scores_text(scores: dict[str, Any]) -> str:
    rankings = [ranking for ranking in ("plain", "reranked") if ranking in scores]
    rows = [[title, *(format_metric(metric, scores[ranking][metric]) for ranking in rankings)] for metric, title in SCORE_TITLES.items()]
    plain, policy = scores["plain"], "left out" if scores["unscored"] == "left_out" else "counted as zero"
    return "\n".join(
        [
            render_table(["metric", *rankings], rows, left=["metric"]),
            f"{scores['protocol']}, {scores['ties']} ties; {plain['num_scored_queries']:,} queries scored, "
            f"{plain['num_unscored_queries']:,} without a correct match {policy}",
            *(f"per query: {scores[ranking]['scores']}" for ranking in rankings),
        ]
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# Registered here, because the help lists the commands in the order of registration.
app.command("report")(report_command)
app.command("compare")(compare_command)
app.command("sweep")(sweep_command)
app.command("suggest")(suggest_command)
app.command("export")(export_command)
app.command("embed")(embed_command)
app.command("promote")(promote_command)
app.command()(doctor)
app.command()(gc)
app.command()(purge)
app.add_typer(data_app, name="data")

if __name__ == "__main__":
    main()
