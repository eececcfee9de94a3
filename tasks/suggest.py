"""Step *suggest*: curve.parquet, the number of clusters at a series of distances. No label is read, and no training reads the result."""

from typing import Any

import pyarrow as pa

from pul_core.clustering.centring import centre_by_camera
from pul_core.clustering.suggestion import Curve, clusters_by_distance, read_curve
from tasks.engine.compute import prepare
from tasks.engine.progress import step_logger
from tasks.engine.steps import step
from tasks.store.artifacts import Artifact, column, read_table, write_table
from tasks.store.readers import camids
from tasks.store.references import Compute


@step("suggest")
def suggest(
    features: Artifact,
    images: Artifact,
    *,
    num_neighbours: int,
    num_averaged: int,
    min_samples: int,
    centre_cameras: bool,
    compute: Compute,
) -> Artifact:
    """Cluster the features of unlabelled images at a series of distances, and count the clusters.

    Args:
        features: of the images.
        images: their images.parquet, for the camera ids.
        num_neighbours: see ``pul_core.settings.Dbscan``.
        num_averaged: see ``pul_core.settings.Dbscan``.
        min_samples: see ``pul_core.settings.Dbscan``.
        centre_cameras: subtract the mean feature of each camera first.
        compute: device and threads.

    Raises:
        NothingToSuggestError: there are too few images, or their features are all alike.
    """
    prepare(compute)
    table = read_table(features)
    values, cameras = column(table, "feature"), camids(read_table(images, ["camid"]))[column(table, "row")]
    if centre_cameras:
        values = centre_by_camera(values, cameras, device=compute.device)
    curve = clusters_by_distance(
        values, cameras, num_neighbours=num_neighbours, num_averaged=num_averaged, min_samples=min_samples, device=compute.device
    )
    step_logger().info("suggest: %d images, at most %d clusters", len(values), curve.num_clusters.max())
    return write_table("curve", pa.table(curve._asdict()))


def read_suggestion(curve: Artifact) -> dict[str, Any]:
    """Return the suggestion that is read off a curve, and the curve itself, one object per distance.

    Raises:
        NothingToSuggestError: no distance has two clusters.
    """
    table = read_table(curve)
    suggestion = read_curve(Curve(*(column(table, name) for name in Curve._fields)))
    return {**suggestion._asdict(), "curve": table.to_pylist()}
