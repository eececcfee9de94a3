"""Steps *pretrain* and *fine_tune*: the same training, on true identities of the source or on pseudo-labels of the target."""

import io
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from pul_core.arrays import Ints
from pul_core.errors import DataError
from pul_core.learning.training import EpochStatistics, TrainingState, begin_training, train
from pul_core.settings import Training
from tasks.engine.checkpoints import step_checkpoint
from tasks.engine.compute import prepare
from tasks.engine.progress import progress, step_logger
from tasks.engine.steps import step
from tasks.store.artifacts import Artifact, column, read_table, write_table
from tasks.store.model_file import read_model, write_model
from tasks.store.readers import JoinedPixels, open_pixels
from tasks.store.references import Compute, Pixels, Reliable, TrainedModel


class Examples(NamedTuple):
    """Images to train on and their classes."""

    pixels: list[Pixels]  # of one or several data sets, one after the other
    rows: Ints  # (m,) positions in them
    classes: Ints  # (m,) in [0, num_classes)
    num_classes: int
    similar: Ints | None = None  # (p, 2) pairs of classes that do not compete


@step("pretrain")
def pretrain(
    initial: Artifact, pixels: list[Pixels], labels: list[Artifact], *, settings: Training, seed: int, compute: Compute
) -> TrainedModel:
    """Train a backbone to classify the identities of the sources; an identity number in two sources stands for two people.

    Args:
        initial: the model to start from; it is not changed.
        pixels: the training images of each source.
        labels: labels.parquet of each source, with the identities.
        settings: settings of the training.
        seed: all random numbers are derived from it.
        compute: device, threads and precision.

    Raises:
        DataError: the sources have fewer than two identities.
    """
    pids = [column(read_table(table), "pid")[open_pixels(part)[0]] for table, part in zip(labels, pixels, strict=True)]
    source = np.repeat(np.arange(len(pids)), [len(part) for part in pids])
    identities = np.stack((source, np.concatenate(pids)))  # (2, n); the rows of labels are 0, 1, 2, ...
    rows = np.flatnonzero(identities[1] > 0)
    unique, classes = np.unique(identities[:, rows], axis=1, return_inverse=True)
    num_classes = unique.shape[1]
    if num_classes < 2:
        raise DataError(f"the sources have {num_classes} identity, but training requires at least 2: add identities, or check the layout")
    return _train("pretrain", initial, Examples(pixels, rows, classes, num_classes), settings, seed, compute)


@step("fine-tune-{iteration}")
def fine_tune(
    start: Artifact, pixels: Pixels, reliable: Reliable, *, settings: Training, seed: int, compute: Compute, iteration: int
) -> TrainedModel:
    """Fine-tune a model on the reliable set with a new classifier.

    Args:
        start: the model to start from, in PUL the original model; it is not changed.
        pixels: training images of the target.
        reliable: the images to train on, with pseudo-labels.
        settings: settings of the training.
        seed: all random numbers are derived from it.
        compute: device, threads and precision.
        iteration: number of the iteration; only names the task run.
    """
    decoded_rows, _ = open_pixels(pixels)
    table = read_table(reliable.reliable)
    rows = np.searchsorted(decoded_rows, column(table, "row"))
    assert np.array_equal(decoded_rows[rows], column(table, "row")), "an image of the reliable set was not decoded"
    similar = None
    if reliable.similar:
        pairs = read_table(reliable.similar)
        similar = np.stack((column(pairs, "pseudo_label"), column(pairs, "similar")), axis=1)
    examples = Examples([pixels], rows, column(table, "pseudo_label"), reliable.num_classes, similar)
    return _train(f"fine-tune {iteration}", start, examples, settings, seed, compute)


def _train(description: str, start: Artifact, examples: Examples, settings: Training, seed: int, compute: Compute) -> TrainedModel:
    """Train a model on examples, with checkpoints after epochs; ``description`` is shown with the progress."""
    prepare(compute)
    backbone, config = read_model(start)
    pixels, rows, classes, num_classes, similar = examples
    images = JoinedPixels([open_pixels(part)[1] for part in pixels])
    training = begin_training(
        backbone, settings, num_classes=num_classes, classes=classes, seed=seed, device=compute.device, dtype=compute.dtype
    )
    with progress(description, len(rows) * settings.epochs) as progress_bar, step_checkpoint() as checkpoint:
        history = _restore(training, checkpoint.load("epoch"))
        progress_bar.restore(sum(epoch.images for epoch in history))
        for epoch in train(training, images, rows, classes, settings, similar=similar, seed=seed, on_batch=progress_bar.advance):
            history.append(epoch)
            if epoch.epoch < settings.epochs and checkpoint.is_due("epoch"):
                checkpoint.save("epoch", partial(_pack, training.state_dict(), list(history)))
            progress_bar.note = f", epoch {epoch.epoch}/{settings.epochs}, loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.3f}"
        table = pa.Table.from_pylist([epoch._asdict() for epoch in history])
        return TrainedModel(model=write_model(training.backbone, config), training=write_table("training", table))


def _pack(state: dict[str, Any], history: list[EpochStatistics]) -> memoryview:
    """Return a checkpoint: a copy of the state of a training, and the statistics of its epochs."""
    file = io.BytesIO()
    torch.save({"training": state, "history": [list(epoch) for epoch in history]}, file)
    return file.getbuffer()


def _restore(training: TrainingState, data: bytes | None) -> list[EpochStatistics]:
    """Load a checkpoint from `_pack`, if there is one, into a training; return the statistics of the epochs that are done."""
    if data is None:
        return []
    saved = torch.load(io.BytesIO(data), weights_only=True)
    training.load_state_dict(saved["training"])
    step_logger().info("resumed after epoch %d", training.epochs_done)
    return [EpochStatistics(*epoch) for epoch in saved["history"]]
