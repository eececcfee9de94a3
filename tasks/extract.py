"""Step *extract_features*: one file of features for a model and a split."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pul_core.arrays import Features
from pul_core.learning import extraction
from tasks.engine.checkpoints import step_checkpoint
from tasks.engine.compute import prepare
from tasks.engine.progress import progress, step_logger
from tasks.engine.steps import step
from tasks.store.artifacts import Artifact, read_table, vector_type, vectors, write_batches
from tasks.store.model_file import read_model
from tasks.store.readers import camids, open_pixels
from tasks.store.references import Compute, Pixels, TargetStatistics
from tasks.store.statistics_file import statistics_from

ROW_GROUP = 4096  # images


@step("extract-features-{iteration}-{split}")
def extract_features(
    model: Artifact, pixels: Pixels, statistics: TargetStatistics | None = None, *, compute: Compute, iteration: int, split: str
) -> Artifact:
    """Write the features of a split: features.parquet (row, feature). Memory holds one row group.

    Args:
        model: the model that computes the features.
        pixels: the images.
        statistics: BatchNorm statistics by camera, and how features are whitened; None: the model's statistics, and plain features.
        compute: device, threads and precision.
        iteration: of the model; names the task run.
        split: names the task run.
    """
    prepare(compute)
    backbone, config = read_model(model)
    rows, images = open_pixels(pixels)
    d = int(backbone.num_features)  # type: ignore[arg-type]
    schema = pa.schema([pa.field("row", pa.int64()), pa.field("feature", vector_type(d), nullable=False)])
    by_camera = statistics_from(read_table(statistics.statistics)) if statistics else None
    cameras = camids(read_table(statistics.cameras, ["camid"]))[rows] if statistics else None
    repeated: list[int] = []

    def extract(part: slice) -> Features:
        name, block_images = str(part.start), images[part]
        if saved := checkpoint.load(name):
            progress_bar.restore(len(block_images))
            return np.frombuffer(saved, np.float32).reshape(-1, d)
        blocks = []
        for block in extraction.extract_features(
            backbone,
            block_images,
            statistics=by_camera,
            camids=None if cameras is None else cameras[part],
            flip=config.flip,
            batch_size=compute.batch_size,
            device=compute.device,
            dtype=compute.dtype,
            on_float32_fallback=repeated.append,
        ):
            blocks.append(block)
            progress_bar.advance(len(block))
        features = np.concatenate(blocks)
        if checkpoint.is_due(name):
            checkpoint.save(name, lambda: features.data)
        return features

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), ROW_GROUP):
            part = slice(start, start + ROW_GROUP)
            yield pa.record_batch([pa.array(rows[part]), vectors(extract(part))], schema=schema)

    with progress(f"extract features {iteration} {split}", len(rows)) as progress_bar, step_checkpoint() as checkpoint:
        features = write_batches("features", schema, batches(), len(rows))
    if repeated:
        message = "%d images: their bfloat16 features were not finite, so they were computed again in float32 (%d batches)"
        step_logger().warning(message, sum(repeated), len(repeated))
    return features
