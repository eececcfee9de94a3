"""The file of BatchNorm statistics by camera: a Parquet table with one row per layer and camera."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pul_core.learning.camera_statistics import CameraStatistics
from tasks.store.artifacts import Artifact, column, write_table

CHANNELS = pa.list_(pa.float32())


def write_statistics(statistics: CameraStatistics) -> Artifact:
    """Write statistics: layer, camid (null for all cameras without an entry of their own), images, mean and variance of the channels."""
    layers, entries = list(statistics.means), len(statistics.num_images)
    columns = {
        "layer": pa.array(np.repeat(layers, entries)),
        "camid": pa.array([*statistics.camids.tolist(), None] * len(layers), pa.int64()),
        "images": np.tile(statistics.num_images, len(layers)),
        "mean": pa.array([mean for layer in layers for mean in statistics.means[layer]], CHANNELS),
        "variance": pa.array([variance for layer in layers for variance in statistics.variances[layer]], CHANNELS),
    }
    return write_table("statistics", pa.table(columns))


def statistics_of_iteration(folder: Path) -> CameraStatistics | None:
    """Return the statistics that the model in a run's folder ``iteration=N`` is used with; None for iteration 0, direct transfer."""
    file = folder / "statistics.parquet"
    return statistics_from(pq.read_table(file)) if folder.name != "iteration=0" and file.exists() else None


def statistics_from(table: pa.Table) -> CameraStatistics:
    """Return the statistics in a table that `write_statistics` wrote."""
    layers = list(dict.fromkeys(table["layer"].to_pylist()))
    entries = table.num_rows // len(layers)
    means, variances = (
        {layer: np.stack(list(rows)) for layer, rows in zip(layers, np.split(column(table, name), len(layers)), strict=True)}
        for name in ("mean", "variance")
    )
    camids = np.array(table["camid"][: entries - 1].to_pylist(), np.int64)
    return CameraStatistics(camids, column(table, "images")[:entries], means, variances)
