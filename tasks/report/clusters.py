"""Section on clusters: their sizes, the cosines to their centres, and contact sheets of some."""

import numpy as np
import pandas as pd

from pul_core.arrays import Ints
from pul_core.identities import JUNK_PID
from pul_core.reporting.cluster_sizes import choose_clusters, size_classes
from tasks.report.charts import bar_chart
from tasks.report.formats import count, percent
from tasks.report.pictures import Thumbnails
from tasks.report.run_data import Clustering, RunData
from tasks.report.views import ChartView, GroupView, PictureView, SectionView, StripView, TableView

NUM_SHEETS = 12
MAX_PICTURES = 12  # of reliable and of rejected images each
BINS = np.linspace(0, 1, 21)
SERIES = ["reliable", "rejected"]


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
    section.lead = (
        f"The clusters of iteration {number}. {in_none:,} of the {len(clustering.rows):,} training images "
        f"({percent(in_none / max(1, len(clustering.rows)))}) are in no cluster."
    )
    section.charts = [_sizes(clustering), _cosines(clustering, run)]
    chosen = choose_clusters(clustering.clusters, NUM_SHEETS)
    section.groups = [
        (
            f"{len(chosen)} clusters, from the largest to the smallest",
            [_sheet(run, clustering, int(cluster), thumbnails) for cluster in chosen] if thumbnails else [],
        )
    ]
    section.tables = [_table(run, clustering, chosen)]
    if thumbnails is None:
        section.groups = []
        section.notes = ["Pictures are left out. `pul report --with-images` shows these clusters as contact sheets."]
    elif thumbnails.missing:
        section.notes = ["Pictures whose file is missing or has changed since the run are left blank."]
    return section


def _sizes(clustering: Clustering) -> ChartView:
    classes = size_classes(clustering.clusters, clustering.reliable)
    frame = pd.DataFrame([{"x": each.label, "series": name, "value": getattr(each, name)} for each in classes for name in SERIES])
    rows = [[each.label, count(each.clusters), count(each.reliable), count(each.rejected)] for each in classes]
    sizes = np.bincount(clustering.clusters[clustering.clusters >= 0])
    text = (
        f"{len(sizes):,} clusters; half of them have at most {int(np.median(sizes))} images, the largest has {int(sizes.max(initial=0)):,}."
    )
    spec = bar_chart(frame, x="images in the cluster", y_title="images", series=SERIES, colours=(0, 9))
    return ChartView("sizes", "Cluster sizes", spec, text, TableView(["size", "clusters", "reliable images", "rejected images"], rows))


def _cosines(clustering: Clustering, run: RunData) -> ChartView:
    member = clustering.clusters >= 0
    counts = {
        name: np.histogram(clustering.similarity[member & (clustering.reliable == is_reliable)].clip(0, 1), BINS)[0]
        for name, is_reliable in zip(SERIES, (True, False), strict=True)
    }
    first = int(np.flatnonzero(counts["reliable"] + counts["rejected"]).min(initial=len(BINS) - 2))
    labels = [f"{low:.2f}" for low in BINS[first:-1]]
    counts = {name: numbers[first:] for name, numbers in counts.items()}
    frame = pd.DataFrame(
        [{"x": label, "series": name, "value": int(n)} for name in SERIES for label, n in zip(labels, counts[name], strict=True)]
    )
    used = [at for at in range(len(labels)) if counts["reliable"][at] + counts["rejected"][at]]
    rows = [[f"{BINS[first + at]:.2f} to {BINS[first + at + 1]:.2f}", *(count(counts[name][at]) for name in SERIES)] for at in used]
    threshold = run.parameters.get("selection", {}).get("min_similarity")
    rule = (
        "lambda is -1, so every clustered image is reliable" if threshold == -1 else f"lambda (selection.min_similarity) is {threshold:g}"
    )
    spec = bar_chart(frame, x="cosine to the cluster's centre", y_title="images", series=SERIES, colours=(0, 9))
    return ChartView(
        "cosines",
        "Cosine to the centre",
        spec,
        f"Of the images in a cluster; {rule}.",
        TableView(["cosine", *SERIES], rows, left=["cosine"]),
    )


def _members(clustering: Clustering, cluster: int) -> tuple[Ints, Ints]:
    """Return the positions of the reliable and of the rejected images of a cluster, the nearest to the centre first."""
    members = np.flatnonzero(clustering.clusters == cluster)
    members = members[np.argsort(-clustering.similarity[members], kind="stable")]
    return members[clustering.reliable[members]], members[~clustering.reliable[members]]


def _people(run: RunData, rows: Ints) -> str:
    """Return how many people a cluster's images show, if that is known."""
    if run.pids is None or not (known := run.pids[rows][run.pids[rows] > JUNK_PID]).size:
        return "–"
    _, counts = np.unique(known, return_counts=True)
    return "1 person" if len(counts) == 1 else f"{len(counts)} people, {counts.max()} of {len(known)} images show one of them"


def _table(run: RunData, clustering: Clustering, chosen: Ints) -> TableView:
    rows = []
    for cluster in chosen:
        reliable, rejected = _members(clustering, int(cluster))
        members = np.concatenate((reliable, rejected))
        cameras = len(np.unique(run.camids[clustering.rows[members]]))
        centre = run.paths(clustering.rows[members[:1]])[0]
        rows.append(
            [
                str(cluster),
                *map(count, (len(members), len(reliable), len(rejected), cameras)),
                _people(run, clustering.rows[members]),
                centre,
            ]
        )
    titles = ["cluster", "images", "reliable", "rejected", "cameras", "people", "centre"]
    return TableView(
        titles,
        rows,
        left=["people", "centre"],
        note="People are counted where identities are known; the run does not read them.",
        title=f"{len(chosen)} clusters, from the largest to the smallest",
    )


def _sheet(run: RunData, clustering: Clustering, cluster: int, thumbnails: Thumbnails) -> GroupView:
    strips = []
    for title, members in zip(SERIES, _members(clustering, cluster), strict=True):
        shown = members[:MAX_PICTURES]
        pictures = [
            PictureView(
                thumbnails.uri(int(clustering.rows[at])),
                f"camera {run.camera_name(run.camids[clustering.rows[at]])}\n{clustering.similarity[at]:.2f}",
            )
            for at in shown
        ]
        if len(members):
            more = f", the {len(shown)} nearest to the centre" if len(members) > len(shown) else ""
            strips.append(StripView(f"{title}: {len(members):,} images{more}", pictures))
    rows = clustering.rows[clustering.clusters == cluster]
    people = _people(run, rows)
    return GroupView(f"Cluster {cluster}: {len(rows):,} images{'' if people == '–' else f', {people}'}", strips)
