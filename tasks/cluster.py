"""Steps *cluster* and *select*: from the target's features to the images worth learning from."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pul_core.arrays import Ints
from pul_core.clustering.cameras import centre_cameras as core_centre_cameras
from pul_core.clustering.density import cluster_by_density
from pul_core.clustering.kmeans import Clustering, default_num_clusters
from pul_core.clustering.kmeans import cluster as cluster_by_kmeans
from pul_core.clustering.whitening import whiten
from pul_core.few_labels import join_labelled, num_unlabelled_clusters
from pul_core.selection import select_reliable
from tasks.engine.compute import prepare
from tasks.engine.progress import step_logger
from tasks.engine.steps import step
from tasks.store.artifacts import Artifact, column, read_table, vectors, write_table
from tasks.store.readers import camids
from tasks.store.references import Clusters, Compute, Labelled, Reliable

Features = npt.NDArray[np.float32]
KMEANS = ("normalise", "num_restarts", "max_passes", "centre_from")
DBSCAN = ("num_neighbours", "num_averaged", "max_distance", "min_samples", "margin", "independent_share")


@step("cluster-{iteration}")
def cluster(
    features: Artifact,
    images: Artifact,
    labelled: Labelled | None = None,
    *,
    settings: dict[str, Any],
    centre_cameras: bool,
    seed: int,
    compute: Compute,
    iteration: int,
) -> Clusters:
    """Cluster the features of the unlabelled images and find each cluster's centre.

    Args:
        features: of the target's training images.
        images: the target's images.parquet, for its cameras.
        labelled: images that stay out, because their identities are known.
        settings: ``algorithm``; ``whitening`` and ``shrinkage``, see ``pul_core.clustering.whitening.whiten``; keyword arguments of
            ``pul_core.clustering.kmeans.cluster`` (``num_clusters`` None stands for the stated default) and
            ``pul_core.clustering.density.cluster_by_density``, which sees cameras only if ``camera_aware``.
        centre_cameras: see ``pul_core.clustering.cameras.centre_cameras``.
        seed: of k-means.
        compute: threads.
        iteration: names the task run.
    """
    prepare(compute)
    table = read_table(features)
    rows, values = column(table, "row"), column(table, "feature")
    if labelled:
        unknown = ~np.isin(rows, column(read_table(labelled.labelled), "row"))
        rows, values = rows[unknown], values[unknown]
    cameras = camids(read_table(images, ["camid"]))[rows]
    values = _where_it_is_clustered(values, cameras, centre_cameras, settings)
    if settings["algorithm"] == "dbscan":
        seen = cameras if settings["camera_aware"] else np.zeros_like(cameras)
        found = cluster_by_density(values, seen, **{name: settings[name] for name in DBSCAN})
        note = f" ({np.count_nonzero(found.cluster < 0)} images belong to none)"
    else:
        k = settings["num_clusters"]
        k = num_unlabelled_clusters(k, labelled.num_identities if labelled else 0) if k else default_num_clusters(len(rows))
        found = cluster_by_kmeans(values, num_clusters=k, **{name: settings[name] for name in KMEANS}, seed=seed)
        note = f" in {found.passes} passes" + ("" if settings["num_clusters"] else " (default: one for 16 images)")
    sizes = np.bincount(found.cluster[found.cluster >= 0])
    step_logger().info("cluster %d: %d images into %d clusters%s", iteration, len(rows), len(sizes), note)
    clusters = pa.table({"row": rows, "cluster": found.cluster, "similarity": found.similarity, "similarity_any": found.similarity_any})
    order = np.lexsort((np.arange(len(sizes)), found.centre))
    centres = pa.table(
        {
            "row": rows[found.centre[order]],
            "cluster": order,
            "size": sizes[order],
            "feature": vectors(values[found.centre[order]]),
        }
    )
    return Clusters(
        clusters=write_table("clusters", clusters),
        centres=write_table("centres", centres),
        num_clusters=len(sizes),
        num_single_image_clusters=int((sizes == 1).sum()),
    )


def _where_it_is_clustered(values: Features, cameras: Ints, centre: bool, settings: dict[str, Any]) -> Features:
    """Move features to the space of the clusters, in which all cosines of ``clusters`` and the centres' features are told."""
    if centre:
        values = core_centre_cameras(values, cameras)
    if settings["whitening"]:
        values = whiten(values, power=settings["whitening"], shrinkage=settings["shrinkage"])
    return values


@step("select-{iteration}")
def select(clusters: Clusters, labelled: Labelled | None = None, *, settings: dict[str, Any], iteration: int) -> Reliable:
    """Keep the reliable images, and the labelled ones beside them.

    Args:
        clusters: with similarities and centres.
        labelled: images whose identities are known.
        settings: keyword arguments of ``pul_core.selection.select_reliable``.
        iteration: names the task run.
    """
    table, centres = read_table(clusters.clusters), read_table(clusters.centres, ["row", "cluster"])
    rows = column(table, "row")
    centre = np.empty(clusters.num_clusters, np.int64)
    centre[column(centres, "cluster")] = np.searchsorted(rows, column(centres, "row"))
    clustering = Clustering(column(table, "cluster"), centre, column(table, "similarity"), column(table, "similarity_any"), 0.0, 0)
    found = select_reliable(clustering, **settings)
    alone = int((clustering.cluster[found.positions] < 0).sum())
    step_logger().info(
        "select %d: %d of %d images are reliable, in %d classes%s",
        iteration,
        len(found.positions) - alone,
        len(rows),
        found.num_classes - alone,
        f"; {alone} more are a class each" if alone else "",
    )
    known, truth = (column(read_table(labelled.labelled), name) for name in ("row", "class")) if labelled else (np.empty(0, np.int64),) * 2
    num_identities = labelled.num_identities if labelled else 0
    joined = join_labelled(rows[found.positions], found.pseudo_labels, found.num_classes, known, truth, num_identities)
    similarity = np.ones(len(joined.rows), np.float32)
    similarity[~joined.labelled] = found.similarity
    unclustered = np.isin(joined.rows, rows[clustering.cluster < 0])
    columns = {"row": joined.rows, "pseudo_label": joined.classes, "similarity": similarity}
    table = pa.table(columns | {"labelled": joined.labelled, "unclustered": unclustered})
    counts = {"num_labelled": len(known), "num_unclustered": alone}
    return Reliable(reliable=write_table("reliable", table), num_classes=joined.num_classes, **counts)
