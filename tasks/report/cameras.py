"""Section on cameras: which ones the clusters join, and rank-1 between each pair of them."""

import numpy as np

from pul_core.identities import NO_CAMERA
from pul_core.reporting.cameras import CameraLinks, camera_links, rank_1_by_camera
from tasks.report.formats import count
from tasks.report.run_data import RunData
from tasks.report.views import HeatView, SectionView

MAX_CAMERAS = 40  # in a table


def links_of(run: RunData) -> tuple[CameraLinks | None, CameraLinks | None]:
    """Return the links between cameras by the last clusters, and by the true identities if they are known."""
    if (number := run.last_clustered) is None:
        return None, None
    clustering = run.clustering(number)
    cameras = run.camids[clustering.rows]
    people = None
    if run.pids is not None and (run.pids[clustering.rows] > 0).any():
        people = camera_links(run.pids[clustering.rows], cameras)
    return camera_links(clustering.clusters, cameras), people


def cameras(run: RunData, clusters: CameraLinks | None, people: CameraLinks | None) -> SectionView:
    """Show camera-by-camera tables.

    Args:
        run: the run.
        clusters: links by clusters.
        people: links by true identities, if they are known.
    """
    section = SectionView(
        name="cameras",
        title="Cameras",
        lead="A model learns what a change of camera does only from people that are grouped across cameras, so clusters have to join them.",
    )
    if (run.camids == NO_CAMERA).all():
        stand_in = " Groups of images of similar style stand for them." if run.has_style_groups else ""
        pattern = "A regular expression can read them from file names: --target-pattern '(?P<camera>...)'."
        section.notes = [f"The cameras are unknown.{stand_in} {pattern}"]
        return section
    heats = []
    if clusters is not None and len(clusters.camids):
        heats.append(_links(run, clusters, people))
    sets = run.query_and_gallery(run.last)
    if sets is not None:
        scores = rank_1_by_camera(sets[0], sets[1])
        fewest, most = _smallest(scores.num_queries), scores.num_queries.max()
        columns = [f"to {run.camera_name(camid)}" for camid in scores.gallery_camids[:MAX_CAMERAS]]
        rows = []
        for camid, shares, numbers in zip(scores.query_camids, scores.rank_1, scores.num_queries, strict=True):
            cells = [
                ("", None) if n == 0 else (f"{100 * share:.0f}", float(share))
                for share, n in zip(shares[:MAX_CAMERAS], numbers[:MAX_CAMERAS], strict=True)
            ]
            rows.append((f"from {run.camera_name(camid)}", cells))
        heats.append(
            HeatView(
                f"Rank-1 by camera, iteration {run.last}, in percent",
                "query camera",
                columns,
                rows[:MAX_CAMERAS],
                "A query of one camera searches the gallery images of one other camera only, which is easier than the whole gallery. "
                f"Empty: no query has a correct match there. Each other cell counts {fewest} to {most} queries.",
            )
        )
    elif run.scores(run.last) is not None:
        section.notes = [
            "Rank-1 by camera is left out, because the features of query and gallery were removed (pul gc). "
            f"`pul evaluate {run.id}/iteration={run.last} DATA` computes them again."
        ]
    section.heats = heats
    return section


def _smallest(numbers: np.ndarray) -> int:
    return int(numbers[numbers > 0].min(initial=numbers.max()))


def _links(run: RunData, clusters: CameraLinks, people: CameraLinks | None) -> HeatView:
    """Return the share of each camera's clusters that have an image of each other camera, beside the same share of its people."""
    expected = {}
    if people is not None:
        for i, a in enumerate(people.camids):
            for j, b in enumerate(people.camids):
                expected[int(a), int(b)] = people.groups[i, j] / max(1, people.groups[i, i])
    rows = []
    for i, a in enumerate(clusters.camids[:MAX_CAMERAS]):
        cells: list[tuple[str, float | None]] = []
        for j, b in enumerate(clusters.camids[:MAX_CAMERAS]):
            if i == j:
                cells.append((count(clusters.groups[i, i]), None))
                continue
            share = clusters.groups[i, j] / max(1, clusters.groups[i, i])
            people_share = expected.get((int(a), int(b)))
            cells.append((f"{100 * share:.0f}" + ("" if people_share is None else f" ({100 * people_share:.0f})"), float(share)))
        rows.append((run.camera_name(a), cells))
    note = "Each row: of the clusters that have an image of this camera, the percentage that also has one of the other camera."
    if people is not None:
        note += " In brackets: the same percentage of the people whose images were clustered, from the true identities."
    note += " On the diagonal: the number of clusters with two or more images that have an image of the camera."
    names = [run.camera_name(camid) for camid in clusters.camids[:MAX_CAMERAS]]
    return HeatView(f"Clusters that join cameras, iteration {run.last_clustered}", "camera", names, rows, note)
