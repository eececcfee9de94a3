"""Figures of a run in progress: its curves on Prefect's page and in MLflow, and a figure of each iteration in MLflow."""

import base64
import io
from collections.abc import Mapping
from uuid import UUID

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot, whose state is that of the process
from matplotlib.ticker import MaxNLocator, PercentFormatter
from prefect.artifacts import create_image_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.runtime import flow_run

from tasks.store.artifacts import column, read_table
from tasks.store.references import Clusters, Iteration, Reliable

CURVES = {"reliable_set_size": "reliable images", "num_clusters": "clusters", "rank_1": "rank-1", "mAP": "mAP"}
SCORES = ("rank_1", "mAP")
COLOURS = ("#1f6fb4", "#d9720b")
ARTIFACT_KEY = "pul-curves"


def curves_figure(history: Mapping[str, list[tuple[int, float]]]) -> Figure:
    """Draw the size of the reliable set with the number of clusters, and the scores if there are any.

    Args:
        history: for each of `CURVES` that the run has, the iterations and their values.
    """
    panels = [[name for name in names if name in history] for names in (("reliable_set_size", "num_clusters"), SCORES)]
    figure, axes = _panels(max(1, sum(map(bool, panels))))
    for axis, names in zip(axes, filter(None, panels), strict=False):
        for name, colour in zip(names, COLOURS, strict=False):
            axis.plot(*zip(*history[name], strict=True), marker="o", markersize=4, color=colour, label=CURVES[name])
        axis.set(xlabel="iteration", ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if names[0] in SCORES:
            axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.legend(frameon=False)
    return figure


def iteration_figure(iteration: Iteration) -> Figure:
    """Draw the cluster sizes, the cosines to the centres and the training loss of an iteration; nothing of these for iteration 0."""
    drawn = bool(iteration.clusters and iteration.reliable), iteration.trained is not None
    figure, axes = _panels(max(1, 2 * drawn[0] + drawn[1]))
    if iteration.clusters and iteration.reliable:
        _clusters_panels(axes[0], axes[1], iteration.clusters, iteration.reliable)
    if iteration.trained:
        training = read_table(iteration.trained.training)
        axes[-1].plot(column(training, "epoch"), column(training, "loss"), marker="o", markersize=4, color=COLOURS[0])
        axes[-1].set(xlabel="epoch", ylabel="training loss")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    if not any(drawn):
        axes[0].text(0.5, 0.5, "original model: no clusters, no training", ha="center", va="center", transform=axes[0].transAxes)
        axes[0].set_axis_off()
    return figure


def _clusters_panels(sizes_axis: Axes, cosines_axis: Axes, clusters: Clusters, reliable: Reliable) -> None:
    table = read_table(clusters.clusters)
    number, similarity = column(table, "cluster"), column(table, "similarity")
    is_reliable = np.isin(column(table, "row"), column(read_table(reliable.reliable), "row"))
    sizes = np.bincount(number[number >= 0])
    sizes_axis.hist(sizes, bins=min(30, int(sizes.max(initial=1))), color=COLOURS[0])
    sizes_axis.set(xlabel="images in the cluster", ylabel="clusters")
    cosines = {name: similarity[(number >= 0) & chosen] for name, chosen in (("reliable", is_reliable), ("rejected", ~is_reliable))}
    cosines = {name: values for name, values in cosines.items() if len(values)}  # clusters by density usually reject no image
    cosines_axis.hist(list(cosines.values()), bins=30, stacked=True, color=COLOURS[: len(cosines)], label=list(cosines))
    cosines_axis.set(xlabel="cosine to the centre", ylabel="images")
    cosines_axis.legend(frameon=False)


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    width, height = 4.2 * number, 3
    figure = Figure(figsize=(width, height), dpi=110)
    # Fixed margins, in inches: one of Matplotlib's layout engines would take longer than all drawing.
    margins = {"left": 0.75 / width, "right": 1 - 0.15 / width, "bottom": 0.5 / height, "top": 1 - 0.15 / height}
    axes = list(np.atleast_1d(figure.subplots(1, number, gridspec_kw=margins | {"wspace": 0.9 / 3.3})))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def show_in_prefect(figure: Figure, run_id: str) -> None:
    """Show a figure on the page of the current flow run, in place of an earlier one; outside a flow run, do nothing."""
    if flow_run.id is None:
        return
    file = io.BytesIO()
    figure.savefig(file, format="png")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    of_this_run = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(str(flow_run.id))]), key=ArtifactFilterKey(any_=[ARTIFACT_KEY])
    )
    with get_client(sync_client=True) as prefect:
        known = prefect.read_artifacts(artifact_filter=of_this_run)
        if known:
            prefect.update_artifact(known[0].id, ArtifactUpdate(data=uri))
    if not known:
        create_image_artifact(uri, key=ARTIFACT_KEY, description=f"Run **{run_id}**: reliable set and scores by iteration")
