"""`pul suggest`: suggests a number of clusters and a DBSCAN distance for a data set, and prints the curve they are read from."""

import json
from typing import Annotated, Any

import typer

from deployments.arguments import Backbone, Device, Layout, Model, Pattern, Size, Threads, absolute_path, reading_options
from deployments.servers import choose_server
from deployments.tables import render_table


def suggest_command(
    model: Model,
    path: Annotated[str, typer.Argument(help="A target as in `pul run`; only its training images are used, without labels.")],
    layout: Layout = None,
    pattern: Pattern = None,
    backbone: Backbone = None,
    size: Size = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the suggestion, and the points of the curve.")] = False,
) -> None:
    r"""Suggest a number of clusters for k-means and a distance for DBSCAN, without labels. docs/method.md reports the accuracy.

    \b
    pul suggest amber-fox/iteration=0 crops/
    pul suggest resnet50_market.pth.tar crops/ --json
    """
    from flows.suggest import suggest_clusters
    from tasks.preflight import validate_suggestion

    model, path = str(absolute_path(model)), str(absolute_path(path))
    validate_suggestion(model, path, layout, pattern)
    parameters: dict[str, Any] = {"machine": {"device": device, "threads": threads}}
    parameters |= reading_options(layout=layout, pattern=pattern, backbone=backbone, size=size)
    choose_server()
    suggestion = suggest_clusters(model=model, data=path, **parameters)
    typer.echo(json.dumps(suggestion, indent=2) if as_json else _suggestion_text(suggestion))


def _suggestion_text(suggestion: dict[str, Any]) -> str:
    max_distance, num_clusters = suggestion["max_distance"], suggestion["num_clusters"]
    rows = []
    for point in suggestion["curve"]:
        marks = [f"max_distance {max_distance:g}"] * (point["max_distance"] == max_distance)
        marks += [f"K = {num_clusters}"] * (point["max_distance"] == suggestion["num_clusters_at"])
        numbers = (
            f"{point['max_distance']:.2f}",
            f"{point['num_clusters']:,}",
            f"{100 * point['clustered']:.1f} %",
            f"{point['largest']:,}",
        )
        rows.append([*numbers, f"<- {', '.join(marks)}" if marks else ""])
    return "\n".join(
        [
            render_table(["distance", "clusters", "clustered", "largest", "suggested"], rows, left=["suggested"]),
            f"k-means (recipes paper and released-code): --num-clusters {num_clusters}",
            f"DBSCAN (recipe modern, which needs no K): --set dbscan.max_distance={max_distance:g}",
            "suggested without labels: on the three data sets its rule was chosen on, K was off by about a fifth (docs/method.md)",
        ]
    )
