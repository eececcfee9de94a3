"""The file of statistics of a model and a target: a Parquet table with one row per layer and camera, and one of the whitening."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pul_core.learning.camera_statistics import CameraStatistics, Whitening
from tasks.store.artifacts import Artifact, column, write_table

NUMBERS = pa.list_(pa.float32())
FEATURES = "features"  # the layer of the row that whitens


def write_statistics(statistics: CameraStatistics) -> Artifact:
    """Write statistics: layer, camid (null for all cameras without an entry of their own), images, mean and variance of the channels.

    If the features are whitened, a last row has the layer `FEATURES`, their mean, and the rows of the ``transform``, one after the other.
    """
    layers, entries = list(statistics.means), len(statistics.num_images)
    columns = {
        "layer": pa.array(np.repeat(layers, entries)),
        "camid": pa.array([*statistics.camids.tolist(), None] * len(layers), pa.int64()),
        "images": pa.array(np.tile(statistics.num_images, len(layers)), pa.int64()),
        "mean": pa.array([mean for layer in layers for mean in statistics.means[layer]], NUMBERS),
        "variance": pa.array([variance for layer in layers for variance in statistics.variances[layer]], NUMBERS),
        "transform": pa.nulls(len(layers) * entries, NUMBERS),
    }
    table = pa.table(columns)
    if statistics.whitening is not None:
        mean, transform = statistics.whitening
        row = (FEATURES, None, int(statistics.num_images.sum()), mean, None, transform.ravel())
        last = [pa.array([value], kind) for value, kind in zip(row, table.schema.types, strict=True)]
        table = pa.concat_tables([table, pa.table(last, schema=table.schema)])
    return write_table("statistics", table)


def statistics_of_iteration(folder: Path) -> CameraStatistics | None:
    """Return the statistics that the model in a run's folder ``iteration=N`` is used with; None for iteration 0, direct transfer."""
    file = folder / "statistics.parquet"
    return deployed_statistics(file) if folder.name != "iteration=0" and file.exists() else None


def deployed_statistics(file: Path | str) -> CameraStatistics:
    """Return the statistics in a file that apply to new images, without those of style groups."""
    return statistics_from(pq.read_table(file)).of_cameras()


def statistics_from(table: pa.Table) -> CameraStatistics:
    """Return the statistics in a table that `write_statistics` wrote."""
    is_whitening = pc.equal(table["layer"], FEATURES)
    last, table = table.filter(is_whitening), table.filter(pc.invert(is_whitening))
    layers = list(dict.fromkeys(table["layer"].to_pylist()))
    entries = table.num_rows // len(layers)
    means, variances = (
        {layer: np.stack(list(rows)) for layer, rows in zip(layers, np.split(column(table, name), len(layers)), strict=True)}
        for name in ("mean", "variance")
    )
    camids = np.array(table["camid"][: entries - 1].to_pylist(), np.int64)
    statistics = CameraStatistics(camids, column(table, "images")[:entries], means, variances)
    if not last.num_rows:
        return statistics
    mean, transform = (np.array(column(last, name)[0]) for name in ("mean", "transform"))  # copies, which torch may write to
    return replace(statistics, whitening=Whitening(mean, transform.reshape(len(mean), len(mean))))
