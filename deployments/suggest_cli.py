"""`pul suggest`: how many clusters a data set may have, and the curve that was read."""

import json
from typing import Annotated, Any

import typer

from deployments.arguments import Device, Size, Threads, absolute, how_to_read
from deployments.servers import choose_server


def suggest(
    model: Annotated[str, typer.Argument(help="A model file, a run's name (its last iteration), RUN/iteration=N, or an MLflow URI.")],
    path: Annotated[str, typer.Argument(help="Images as a run's target; only its training images are looked at, and no label.")],
    layout: Annotated[str | None, typer.Option(help="How the images lie, where their folder does not tell (docs/data.md).")] = None,
    pattern: Annotated[str | None, typer.Option(help="What their file names tell, for layout pattern.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Of a model file that does not say so itself; default resnet50.")] = None,
    size: Size = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: the suggestion, and the curve's points.")] = False,
) -> None:
    r"""Suggest a number of clusters for k-means and a distance for DBSCAN, without a label. docs/method.md says how good that is.

    \b
    pul suggest amber-fox/iteration=0 crops/
    pul suggest resnet50_market.pth.tar crops/ --json
    """
    from flows.suggest import look_first

    model, path = str(absolute(model)), str(absolute(path))
    look_first(model, path, layout, pattern)
    parameters: dict[str, Any] = {"machine": {"device": device, "threads": threads}}
    parameters |= how_to_read(layout=layout, pattern=pattern, backbone=backbone, size=size)
    choose_server()
    from flows.suggest import suggest as flow

    found = flow(model=model, data=path, **parameters)
    typer.echo(json.dumps(found, indent=2) if as_json else _text(found))


TITLES = ("distance", "clusters", "in a cluster", "largest")


def _text(found: dict[str, Any]) -> str:
    epsilon, k = found["max_distance"], found["num_clusters"]
    lines = ["  ".join(TITLES)]
    for point in found["curve"]:
        at = point["max_distance"]
        cells = (f"{at:.2f}", f"{point['num_clusters']:,}", f"{100 * point['clustered']:.1f} %", f"{point['largest']:,}")
        marks = [f"max_distance {epsilon:g}"] * (at == epsilon) + [f"K = {k}"] * (at == found["num_clusters_at"])
        row = "  ".join(cell.rjust(len(title)) for cell, title in zip(cells, TITLES, strict=True))
        lines.append(row + (f"  <- {', '.join(marks)}" if marks else ""))
    return "\n".join(
        [
            *lines,
            f"k-means (recipes paper and released-code): --num-clusters {k}",
            f"DBSCAN (recipe modern, which needs no K): --set clustering.max_distance={epsilon:g}",
            "a suggestion, read without a label: on the three sets its rule was chosen on, K was about a fifth off (docs/method.md)",
        ]
    )
