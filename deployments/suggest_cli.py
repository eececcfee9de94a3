"""`pul suggest`: suggests K and the DBSCAN distance for a data set, and prints the curve that they are read from."""

import json
from typing import Annotated, Any

import typer

from deployments.arguments import Backbone, Device, Layout, Model, Pattern, Size, Threads, Verbose, absolute_path, parse_size
from deployments.display import display
from deployments.servers import prepare_flow_run
from deployments.tables import format_metric, render_table
from tasks.engine.status import activity


def suggest_command(
    model: Model,
    path: Annotated[
        str, typer.Argument(parser=absolute_path, help="A target as in `pul run`; only its training images are used, without labels.")
    ],
    layout: Layout = None,
    pattern: Pattern = None,
    backbone: Backbone = None,
    size: Size = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the suggestion, and the points of the curve.")] = False,
    verbose: Verbose = False,
) -> None:
    """Suggest K for k-means and the distance for DBSCAN.

    No labels are read. docs/method.md reports the accuracy.

    \b
    pul suggest amber-fox/iteration=0 crops/
    pul suggest resnet50_market.pth.tar crops/ --json
    """  # noqa: D301 \b keeps the lines of the examples
    parameters: dict[str, Any] = {
        "model": model,
        "data": path,
        "layout": layout,
        "pattern": pattern,
        "backbone": backbone,
        **parse_size(size),
        "machine": {"device": device, "threads": threads},
    }
    with display("suggest", verbose=verbose) as screen:
        with activity("check the data"):
            from tasks.preflight import validate_suggestion

            validate_suggestion(parameters)
        with activity("start Prefect"):
            from flows.suggest import suggest_clusters

            prepare_flow_run(only_warnings=not (verbose or screen.log))
        suggestion = suggest_clusters(**parameters)
    typer.echo(json.dumps(suggestion, indent=2) if as_json else _suggestion_text(suggestion))


def _suggestion_text(suggestion: dict[str, Any]) -> str:
    max_distance, num_clusters = suggestion["max_distance"], suggestion["num_clusters"]
    rows = []
    for point in suggestion["curve"]:
        marks = [f"max_distance {max_distance:g}"] * (point["max_distance"] == max_distance)
        marks += [f"K = {num_clusters}"] * (point["max_distance"] == suggestion["num_clusters_at"])
        rows.append(
            [
                f"{point['max_distance']:.2f}",
                f"{point['num_clusters']:,}",
                format_metric("clustered", point["clustered"]),
                f"{point['largest']:,}",
                f"<- {', '.join(marks)}" if marks else "",
            ]
        )
    return "\n".join(
        [
            render_table(["distance", "clusters", "clustered", "largest", "suggested"], rows, left=["suggested"]),
            f"k-means (recipes paper and released-code): --num-clusters {num_clusters}",
            f"DBSCAN, if features are not whitened: --set dbscan.max_distance={max_distance:g} --set statistics.whitening=0",
            "The rule reads no labels: on the three data sets on which it was chosen, K was off by about a fifth (docs/method.md).",
        ]
    )
