"""Step *suggest*: curve.parquet, the clusters at a row of distances. No label is read, and nothing that trains reads the result."""

from typing import Any

import pyarrow as pa

from pul_core.clustering.cameras import centre_cameras as core_centre_cameras
from pul_core.clustering.suggestion import Curve, clusters_by_distance, read_curve
from tasks.engine.compute import prepare
from tasks.engine.progress import step_logger
from tasks.engine.steps import step
from tasks.store.artifacts import Artifact, column, read_table, write_table
from tasks.store.readers import camids
from tasks.store.references import Compute


@step("suggest")
def suggest(features: Artifact, images: Artifact, *, settings: dict[str, Any], centre_cameras: bool, compute: Compute) -> Artifact:
    """Cluster the features of unlabelled images at a row of distances, and count.

    Args:
        features: of the images.
        images: their images.parquet, for its cameras.
        settings: keyword arguments of ``pul_core.clustering.suggestion.clusters_by_distance``.
        centre_cameras: see ``pul_core.clustering.cameras.centre_cameras``.
        compute: threads.

    Raises:
        NothingToSuggestError: there are too few images, or all are alike.
    """
    prepare(compute)
    table = read_table(features)
    values, cameras = column(table, "feature"), camids(read_table(images, ["camid"]))[column(table, "row")]
    if centre_cameras:
        values = core_centre_cameras(values, cameras)
    curve = clusters_by_distance(values, cameras, **settings)
    step_logger().info("suggest: %d images, at most %d clusters", len(values), curve.num_clusters.max())
    return write_table("curve", pa.table(curve._asdict()))


def report(curve: Artifact) -> dict[str, Any]:
    """Return what is read off a curve, and the curve itself, one object a distance.

    Raises:
        NothingToSuggestError: nowhere are there two clusters.
    """
    table = read_table(curve)
    found = read_curve(Curve(*(column(table, name) for name in Curve._fields)))
    return {**found._asdict(), "curve": table.to_pylist()}
