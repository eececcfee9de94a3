"""Steps *cluster* and *select*: features to clusters with centres, and clusters to the reliable set."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from pul_core import few_labels, selection
from pul_core.clustering.centres import Clusters as ClusterArrays
from pul_core.clustering.cluster import cluster_features
from pul_core.settings import Algorithm, Clustering, KMeans, Selection
from tasks.engine.compute import prepare
from tasks.engine.progress import step_logger
from tasks.engine.steps import step
from tasks.store.artifacts import Artifact, column, read_table, vectors, write_table
from tasks.store.readers import camids
from tasks.store.references import Clusters, Compute, Labelled, Reliable


@step("cluster-{iteration}")
def cluster(
    features: Artifact,
    cameras: Artifact,
    labelled: Labelled | None = None,
    *,
    clustering: Clustering,
    algorithm: Algorithm,
    centre_cameras: bool,
    seed: int,
    compute: Compute,
    iteration: int,
) -> Clusters:
    """Cluster the features of the unlabelled images and find the centre of each cluster.

    Args:
        features: of the target's training images.
        cameras: a table with the column ``camid``, one row per image of the target.
        labelled: images that are left out because their identities are known.
        clustering: how the features are prepared.
        algorithm: settings of the algorithm, which is chosen by their class.
        centre_cameras: subtract the mean feature of each camera first.
        seed: of k-means.
        compute: device and threads.
        iteration: names the task run.
    """
    prepare(compute)
    table = read_table(features)
    rows, values = column(table, "row"), column(table, "feature")
    if labelled:
        unlabelled = ~np.isin(rows, column(read_table(labelled.labelled), "row"))
        rows, values = rows[unlabelled], values[unlabelled]
        if isinstance(algorithm, KMeans) and algorithm.num_clusters:
            algorithm = replace(algorithm, num_clusters=few_labels.num_unlabelled_clusters(algorithm.num_clusters, labelled.num_identities))
    camids_of_rows = camids(read_table(cameras, ["camid"]))[rows]
    arrays, prepared = cluster_features(
        values, camids_of_rows, clustering=clustering, algorithm=algorithm, centre_cameras=centre_cameras, seed=seed, device=compute.device
    )
    clusters = _write_clusters(rows, prepared, arrays)
    step_logger().info(
        "cluster %d: %d images, %d clusters, %d images in no cluster%s",
        iteration,
        len(rows),
        clusters.num_clusters,
        np.count_nonzero(arrays.cluster < 0),
        f", {arrays.passes} passes" if arrays.passes else "",  # of k-means
    )
    return clusters


def _write_clusters(rows: np.ndarray, features: np.ndarray, arrays: ClusterArrays) -> Clusters:
    """Write clusters.parquet and centres.parquet; the features of the centres are the prepared ones."""
    sizes = np.bincount(arrays.cluster[arrays.cluster >= 0])
    order = np.lexsort((np.arange(len(sizes)), arrays.centre))
    centre = arrays.centre[order]
    centres = pa.table({"row": rows[centre], "cluster": order, "size": sizes[order], "feature": vectors(features[centre])})
    similarities = {"similarity": arrays.similarity, "similarity_any": arrays.similarity_any}
    return Clusters(
        clusters=write_table("clusters", pa.table({"row": rows, "cluster": arrays.cluster, **similarities})),
        centres=write_table("centres", centres),
        num_clusters=len(sizes),
        num_single_image_clusters=int((sizes == 1).sum()),
    )


@step("select-{iteration}")
def select(clusters: Clusters, labelled: Labelled | None = None, *, settings: Selection, iteration: int) -> Reliable:
    """Select the reliable images, and add the labelled ones.

    Args:
        clusters: with similarities and centres.
        labelled: images whose identities are known.
        settings: of the selection.
        iteration: names the task run.
    """
    table, centres = read_table(clusters.clusters), read_table(clusters.centres).sort_by("cluster")
    rows = column(table, "row")
    centre = np.searchsorted(rows, column(centres, "row"))
    arrays = ClusterArrays(column(table, "cluster"), centre, column(table, "similarity"), column(table, "similarity_any"))
    reliable = selection.select_reliable(arrays, settings)
    num_unclustered = int((arrays.cluster[reliable.positions] < 0).sum())
    step_logger().info(
        "select %d: %d of %d images are reliable, in %d classes%s",
        iteration,
        len(reliable.positions) - num_unclustered,
        len(rows),
        reliable.num_classes - num_unclustered,
        f", plus {num_unclustered} unclustered images as classes of their own" if num_unclustered else "",
    )
    known, truth = (column(read_table(labelled.labelled), name) for name in ("row", "class")) if labelled else (np.empty(0, np.int64),) * 2
    num_identities = labelled.num_identities if labelled else 0
    joined = few_labels.join_labelled(rows[reliable.positions], reliable.pseudo_labels, reliable.num_classes, known, truth, num_identities)
    pairs = selection.similar_classes(reliable, arrays, column(centres, "feature"), settings)
    similarity = np.ones(len(joined.rows), np.float32)
    similarity[~joined.labelled] = reliable.similarity
    columns = {
        "row": joined.rows,
        "pseudo_label": joined.classes,
        "similarity": similarity,
        "labelled": joined.labelled,
        "unclustered": np.isin(joined.rows, rows[arrays.cluster < 0]),
    }
    return Reliable(
        reliable=write_table("reliable", pa.table(columns)),
        num_classes=joined.num_classes,
        similar=None if pairs is None else _write_similar(pairs + num_identities),
        num_labelled=len(known),
        num_unclustered=num_unclustered,
    )


def _write_similar(pairs: np.ndarray) -> Artifact:
    return write_table("similar", pa.table({"pseudo_label": pairs[:, 0], "similar": pairs[:, 1]}))
