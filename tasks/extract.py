"""Step *extract_features*: one file of features for a model and a split."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pul_core.learning.extraction import extract_features as core_extract
from tasks.engine.checkpoints import kept
from tasks.engine.compute import prepare
from tasks.engine.progress import progress
from tasks.engine.steps import step
from tasks.store.artifacts import Artifact, vectors, write_batches
from tasks.store.model_file import read_model
from tasks.store.readers import open_pixels
from tasks.store.references import Compute, Pixels

ROW_GROUP = 4096  # images


@step("extract-features-{iteration}-{split}")
def extract_features(model: Artifact, pixels: Pixels, *, batch_size: int, compute: Compute, iteration: int, split: str) -> Artifact:
    """Write the features of a split: features.parquet (row, feature), in the memory of one row group.

    Args:
        model: whose features.
        pixels: the images.
        batch_size: images at once.
        compute: device, threads, precision.
        iteration: of the model; names the task run.
        split: names the task run.
    """
    prepare(compute)
    backbone, _ = read_model(model)
    rows, images = open_pixels(pixels)
    d = int(backbone.num_features)  # type: ignore[arg-type]
    schema = pa.schema([("row", pa.int64()), ("feature", pa.list_(pa.float32(), d))])

    def groups() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), ROW_GROUP):
            part = slice(start, start + ROW_GROUP)
            values = group(str(start), images[part])
            yield pa.record_batch([pa.array(rows[part]), vectors(values)], schema=schema)

    def group(name: str, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if done := work.load(name):
            shown.advance(len(pixels))
            return np.frombuffer(done, np.float32).reshape(-1, d)
        blocks = []
        for block in core_extract(backbone, pixels, batch_size=batch_size, device=compute.device, bf16=compute.bf16_inference):
            blocks.append(block)
            shown.advance(len(block))
        values = np.concatenate(blocks)
        work.save(name, values.tobytes())
        return values

    with progress(f"extract features {iteration} {split}", len(rows)) as shown, kept() as work:
        return write_batches("features", schema, groups(), len(rows))
