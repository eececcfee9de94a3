"""Section on clusters: their sizes, the cosines to their centres, and contact sheets of some."""

import numpy as np
import pandas as pd

from pul_core.arrays import Ints
from pul_core.identities import JUNK_PID, NO_CAMERA
from pul_core.reporting.cluster_sizes import choose_clusters, choose_evenly, size_classes
from tasks.report.charts import bar_chart
from tasks.report.formats import count, percent
from tasks.report.pictures import Thumbnails
from tasks.report.run_data import Clustering, RunData
from tasks.report.views import ChartView, GroupView, PictureView, SectionView, StripView, TableView

NUM_SHEETS = 12
MAX_PICTURES = 12  # of the reliable images of a cluster, of its rejected ones, and of the images in no cluster
BINS = np.linspace(0, 1, 21)
SERIES = ["reliable", "rejected"]
SPACE = "\N{NO-BREAK SPACE}"


def clusters(run: RunData, thumbnails: Thumbnails | None) -> SectionView:
    """Show the clusters of the last iteration.

    Args:
        run: the run.
        thumbnails: of the target's images; None: without pictures.
    """
    section = SectionView(name="clusters", title="Clusters")
    if (number := run.last_clustered) is None:
        section.notes = ["No iteration has clusters yet."]
        return section
    clustering = run.clustering(number)
    in_none = int((clustering.clusters < 0).sum())
    section.lead = _lead(run, number, len(clustering.rows), in_none)
    series = SERIES if run.rejects else SERIES[:1]
    section.charts = [_sizes(clustering, series), _cosines(clustering, series, run)]
    chosen = choose_clusters(clustering.clusters, NUM_SHEETS)
    section.tables = [_table(run, clustering, chosen)]
    if thumbnails is None:
        section.notes = ["Pictures are left out. `pul report --with-images` shows these clusters as contact sheets."]
        return section
    sheets = [_sheet(run, clustering, int(cluster), thumbnails) for cluster in chosen]
    section.groups = [(f"{len(chosen)} clusters, from the largest to the smallest", sheets)]
    if in_none:
        section.groups = [*section.groups, ("Images in no cluster", [_sheet_of_none(run, clustering, thumbnails)])]
    if thumbnails.missing:
        section.notes = ["Pictures whose file is missing or has changed since the run are left blank."]
    return section


def _lead(run: RunData, number: int, num_images: int, in_none: int) -> str:
    """Return which images are reliable, and how many are in no cluster."""
    sentences = [f"The clusters of iteration {number}."]
    if not run.rejects:
        sentences.append("Every image in a cluster is reliable.")
    if in_none:
        fate = "each of them is a class of its own" if run.parameters["selection"].get("keep_unclustered") else "they are not reliable"
        sentences.append(
            f"{in_none:,} of the {num_images:,} training images ({percent(in_none / num_images)}) are in no cluster, and {fate}."
        )
    return " ".join(sentences)


def _sizes(clustering: Clustering, series: list[str]) -> ChartView:
    classes = size_classes(clustering.clusters, clustering.reliable)
    frame = pd.DataFrame([{"x": each.label, "series": name, "value": getattr(each, name)} for each in classes for name in series])
    rows = [[each.label, count(each.clusters), *(count(getattr(each, name)) for name in series)] for each in classes]
    sizes = np.bincount(clustering.clusters[clustering.clusters >= 0])
    text = (
        f"{len(sizes):,} clusters; half of them have at most {int(np.median(sizes))} images, the largest has {int(sizes.max(initial=0)):,}."
    )
    spec = bar_chart(frame, x="images in the cluster", y_title="images", series=series, colours=(0, 9))
    return ChartView("sizes", "Cluster sizes", spec, text, TableView(["size", "clusters", *(f"{name} images" for name in series)], rows))


def _cosines(clustering: Clustering, series: list[str], run: RunData) -> ChartView:
    member = clustering.clusters >= 0
    counts = {
        name: np.histogram(clustering.similarity[member & (clustering.reliable == is_reliable)].clip(0, 1), BINS)[0]
        for name, is_reliable in zip(SERIES, (True, False), strict=True)
    }
    first = int(np.flatnonzero(counts["reliable"] + counts["rejected"]).min(initial=len(BINS) - 2))
    labels = [f"{low:.2f}" for low in BINS[first:-1]]
    counts = {name: numbers[first:] for name, numbers in counts.items()}
    frame = pd.DataFrame(
        [{"x": label, "series": name, "value": int(n)} for name in series for label, n in zip(labels, counts[name], strict=True)]
    )
    used = [at for at in range(len(labels)) if counts["reliable"][at] + counts["rejected"][at]]
    rows = [[f"{BINS[first + at]:.2f} to {BINS[first + at + 1]:.2f}", *(count(counts[name][at]) for name in series)] for at in used]
    threshold = run.parameters["selection"]["min_similarity"]
    rule = f"lambda (selection.min_similarity) is {threshold:g}" if run.rejects else "lambda is -1, so every one of them is reliable"
    spec = bar_chart(frame, x="cosine to the cluster's centre", y_title="images", series=series, colours=(0, 9))
    return ChartView(
        "cosines",
        "Cosine to the centre",
        spec,
        f"Of the images in a cluster; {rule}.",
        TableView(["cosine", *series], rows, left=["cosine"]),
    )


def _members(clustering: Clustering, cluster: int) -> tuple[Ints, Ints]:
    """Return the positions of the reliable and of the rejected images of a cluster, the nearest to the centre first."""
    members = np.flatnonzero(clustering.clusters == cluster)
    members = members[np.argsort(-clustering.similarity[members], kind="stable")]
    return members[clustering.reliable[members]], members[~clustering.reliable[members]]


def _people(run: RunData, rows: Ints) -> str:
    """Return how many people a cluster's images show and, in brackets, how many of the images show the most frequent one, if known."""
    if run.pids is None or not (known := run.pids[rows][run.pids[rows] > JUNK_PID]).size:
        return "–"
    _, counts = np.unique(known, return_counts=True)
    return "1 person" if len(counts) == 1 else f"{len(counts)} people ({counts.max()}{SPACE}of{SPACE}{len(known)})"


def _table(run: RunData, clustering: Clustering, chosen: Ints) -> TableView:
    rows = []
    for cluster in chosen:
        reliable, rejected = _members(clustering, int(cluster))
        members = np.concatenate((reliable, rejected))
        cameras = run.shown_camids[clustering.rows[members]]
        known = np.unique(cameras[cameras != NO_CAMERA])
        centre = run.paths(clustering.rows[members[:1]])[0]
        rows.append(
            [
                str(cluster),
                *map(count, (len(members), *((len(reliable), len(rejected)) if run.rejects else ()))),
                count(len(known)) if known.size else "–",
                _people(run, clustering.rows[members]),
                centre,
            ]
        )
    cameras_title = "style groups" if run.shows_style_groups else "cameras"
    titles = ["cluster", "images", *(SERIES if run.rejects else ()), cameras_title, "people", "centre"]
    return TableView(
        titles,
        rows,
        left=["people", "centre"],
        note="People are counted where identities are known; the run does not read them. In brackets: images of the most frequent one.",
        title=f"{len(chosen)} clusters, from the largest to the smallest",
    )


def _sheet(run: RunData, clustering: Clustering, cluster: int, thumbnails: Thumbnails) -> GroupView:
    strips = []
    for name, members in zip(SERIES, _members(clustering, cluster), strict=True):
        shown = members[:MAX_PICTURES]
        title = [f"{name}: {len(members):,} images"] if run.rejects else []
        if len(members) > len(shown):
            title.append(f"the {len(shown)} nearest to the centre")
        if len(members):
            strips.append(StripView(", ".join(title), _pictures(run, clustering, shown, thumbnails)))
    rows = clustering.rows[clustering.clusters == cluster]
    people = _people(run, rows)
    return GroupView(f"Cluster {cluster}: {len(rows):,} images{'' if people == '–' else f', {people}'}", strips)


def _sheet_of_none(run: RunData, clustering: Clustering, thumbnails: Thumbnails) -> GroupView:
    """Show some of the images in no cluster, spread evenly over the data set, so over its cameras and people where its order has them."""
    members = np.flatnonzero(clustering.clusters < 0)
    shown = choose_evenly(members, MAX_PICTURES)
    strip = StripView("", _pictures(run, clustering, shown, thumbnails))
    some = len(members) > len(shown)
    return GroupView(
        f"{len(shown)} of {len(members):,} images, spread evenly over the data set" if some else f"{len(shown)} images", [strip]
    )


def _pictures(run: RunData, clustering: Clustering, positions: Ints, thumbnails: Thumbnails) -> list[PictureView]:
    """Return pictures with their cameras or style groups and, in a cluster, their cosines to its centre."""
    pictures = []
    for at in positions:
        row = int(clustering.rows[at])
        cosine = f"\n{clustering.similarity[at]:.2f}" if clustering.clusters[at] >= 0 else ""
        pictures.append(PictureView(thumbnails.uri(row), f"{run.place_name(row)}{cosine}"))
    return pictures
