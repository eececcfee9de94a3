"""Section with the 2-D map of the training images' features over the iterations."""

from typing import Any

import numpy as np

from pul_core.arrays import Ints
from pul_core.identities import JUNK_PID
from pul_core.reporting.feature_map import MAX_POINTS, fit_axes, project, sample_positions
from tasks.report.charts import map_chart
from tasks.report.formats import percent
from tasks.report.run_data import RunData
from tasks.report.views import ChartView, SectionView

NUM_COLOURS = 10
SEED = 0
COLOURS = {
    "camera": "camera",
    "cluster": "the ten largest clusters",
    "identity": "the ten people with most images",
    "selected": "reliable or not",
}


def feature_map(run: RunData) -> SectionView:
    """Show where the features of at most 3,000 images are in each iteration. Memory holds the features of one iteration."""
    section = SectionView(name="map", title="Map of features")
    samples, numbers = [], []
    rows: Ints | None = None
    for number in range(1, run.last + 1):
        if (read := run.train_features(number)) is None:
            continue
        if rows is None:
            rows = read[0][sample_positions(len(read[0]), SEED)]
        samples.append(read[1][np.isin(read[0], rows)])
        numbers.append(number)
        del read
    if rows is None:
        section.notes = ["There are no features of training images: no iteration has begun, or they were removed (pul gc --thin)."]
        return section
    axes = fit_axes(samples)
    positions = [project(sample, axes) for sample in samples]
    points = _points(run, rows, numbers, positions)
    # A colour for each iteration has a column for each, one for all iterations has a single column.
    colours = {key: title for key, title in COLOURS.items() if key in points or f"{key}0" in points}
    if not run.rejects:
        colours["selected"] = "in a cluster or not"
    drawn = "" if len(rows) < MAX_POINTS else ", drawn at random,"
    section.lead = (
        f"{len(rows):,} training images{drawn} on the two principal axes of all iterations together, which hold "
        f"{percent(float(axes.explained.sum()), 0)} of the variance: images that are far apart here differ, but images that are close here "
        "can still differ in other directions."
    )
    if run.shows_style_groups:
        colours["camera"] = "style group"
    by = "style group" if run.has_style_groups else "camera"
    centred = f"Features are centred by {by}, as they are for clustering. " if run.centred else ""
    section.charts = [
        ChartView(
            "map",
            "Features before each iteration",
            map_chart(points, numbers, colours),
            f"{centred}The features of an iteration are those that it clusters, so they come from the model of the iteration before.",
            None,
            {"iterations": numbers, "columns": list(colours)},
        )
    ]
    if len(numbers) < run.last:
        section.notes = [f"Only iterations {', '.join(map(str, numbers))} still have features; pul gc --thin removes the others."]
    return section


def _points(run: RunData, rows: Ints, numbers: list[int], positions: list[np.ndarray]) -> dict[str, Any]:
    points: dict[str, Any] = {"image": run.paths(rows)}
    for at, position in enumerate(positions):
        points[f"x{at}"], points[f"y{at}"] = (position[:, axis].round(3).tolist() for axis in (0, 1))
    points["camera"] = [run.place_name(row) for row in rows]
    if run.pids is not None and (run.pids[rows] > JUNK_PID).any():
        points["identity"] = _largest(run.pids[rows], "person")
    for at, number in enumerate(numbers):
        clustering = run.clustering(number)
        place = np.searchsorted(clustering.rows, rows)
        known = (place < len(clustering.rows)) & np.isin(rows, clustering.rows)
        place = np.minimum(place, len(clustering.rows) - 1)
        points[f"cluster{at}"] = _largest(np.where(known, clustering.clusters[place], -1), "cluster")
        reliable = "reliable" if run.rejects else "in a cluster"
        selected = np.where(clustering.clusters[place] < 0, "in no cluster", np.where(clustering.reliable[place], reliable, "rejected"))
        points[f"selected{at}"] = np.where(known, selected, "").tolist()
    return points


def _largest(groups: Ints, name: str) -> list[str]:
    """Return the name of each image's group if that is among the ten with most images, else an empty text."""
    values, counts = np.unique(groups[groups >= 0], return_counts=True)
    largest = set(values[np.argsort(-counts, kind="stable")][:NUM_COLOURS].tolist())
    return [f"{name} {group}" if group in largest else "" for group in groups.tolist()]
