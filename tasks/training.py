"""Steps *pretrain* and *fine_tune*: the same training, on true identities of the source or on pseudo-labels of the target."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pul_core.errors import DataError
from pul_core.learning.training import EpochStatistics, Training, begin_training, train
from tasks.engine.checkpoints import kept
from tasks.engine.compute import prepare
from tasks.engine.progress import progress, step_logger
from tasks.engine.steps import step
from tasks.store.artifacts import Artifact, column, read_table, write_table
from tasks.store.model_file import read_model, write_model
from tasks.store.readers import Joined, open_pixels
from tasks.store.references import Compute, Pixels, Reliable, TrainedModel

OPTIMISER = ("optimiser", "backbone_learning_rate", "classifier_learning_rate", "momentum", "nesterov", "weight_decay")
BEGIN = (*OPTIMISER, "batch_norm", "dropout", "loss", "memory_momentum", "temperature")
FLOW_ONLY = ("start_from",)  # which model a step is given is not the step's business


@step("pretrain")
def pretrain(
    initial: Artifact, pixels: list[Pixels], labels: list[Artifact], *, settings: dict[str, Any], seed: int, compute: Compute
) -> TrainedModel:
    """Train a backbone to tell the sources' identities apart (IDE). Equal numbers in two sources are two people.

    Args:
        initial: the model to start from; not changed.
        pixels: training images of each source.
        labels: identities of each source.
        settings: keyword arguments of ``pul_core.learning.training``.
        seed: of everything random.
        compute: device, threads, precision.

    Raises:
        DataError: the sources have fewer than two identities.
    """
    pids = [column(read_table(table), "pid")[open_pixels(part)[0]] for table, part in zip(labels, pixels, strict=True)]
    source = np.repeat(np.arange(len(pids)), [len(part) for part in pids])
    everyone = np.stack((source, np.concatenate(pids)))  # (2, n): rows of labels are 0, 1, 2, ...
    wanted = np.flatnonzero(everyone[1] > 0)
    identities, classes = np.unique(everyone[:, wanted], axis=1, return_inverse=True)
    num_classes = identities.shape[1]
    if num_classes < 2:
        raise DataError(f"the source has {num_classes} identity to train on, but needs at least 2; file names start with it")
    return _train("pretrain", initial, pixels, wanted, classes, num_classes, settings, seed, compute)


@step("fine-tune-{iteration}")
def fine_tune(
    start: Artifact, pixels: Pixels, reliable: Reliable, *, settings: dict[str, Any], seed: int, compute: Compute, iteration: int
) -> TrainedModel:
    """Fine-tune a model on the reliable set with a new classifier.

    Args:
        start: the model to start from, in PUL the original one; not changed.
        pixels: training images of the target.
        reliable: which of them to use, with pseudo-labels.
        settings: keyword arguments of ``pul_core.learning.training``.
        seed: of everything random.
        compute: device, threads, precision.
        iteration: names the task run.
    """
    rows, _ = open_pixels(pixels)
    table = read_table(reliable.reliable)
    chosen = np.searchsorted(rows, column(table, "row"))
    assert np.array_equal(rows[chosen], column(table, "row")), "an image of the reliable set was not decoded"
    return _train(
        f"fine-tune {iteration}", start, [pixels], chosen, column(table, "pseudo_label"), reliable.num_classes, settings, seed, compute
    )


def _train(
    what: str,
    start: Artifact,
    pixels: list[Pixels],
    chosen: npt.NDArray[np.int64],
    classes: npt.NDArray[np.int64],
    num_classes: int,
    settings: dict[str, Any],
    seed: int,
    compute: Compute,
) -> TrainedModel:
    prepare(compute)
    backbone, config = read_model(start)
    images = Joined([open_pixels(part)[1] for part in pixels])
    begin, rest = core_arguments(settings)
    training = begin_training(backbone, num_classes=num_classes, classes=classes, seed=seed, device=compute.device, **begin)
    with progress(what, len(chosen) * settings["epochs"]) as shown, kept() as work:
        history = _go_on(training, work.load("epoch"))
        shown.advance(sum(epoch.images for epoch in history))
        for epoch in train(
            training,
            images,
            chosen,
            classes,
            seed=seed,
            device=compute.device,
            bf16=compute.bf16_training,
            on_batch=shown.advance,
            **rest,
        ):
            history.append(epoch)
            if epoch.epoch < settings["epochs"]:
                work.save("epoch", _so_far(training, history))
            shown.note = f", epoch {epoch.epoch}/{settings['epochs']}, loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.3f}"
        model = write_model(training.backbone, config)
        columns = dict(zip(EpochStatistics._fields, zip(*history, strict=True), strict=True))
        return TrainedModel(model=model, training=write_table("training", pa.table({"row": range(len(history)), **columns})))


def core_arguments(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keyword arguments that a section of training's settings has for ``begin_training`` and for ``train``.

    What only fine-tuning has may be missing.
    """
    begin = {name: settings[name] for name in BEGIN if name in settings}
    return begin, {name: value for name, value in settings.items() if name not in (*BEGIN, *FLOW_ONLY)}


def _so_far(training: Training, history: list[EpochStatistics]) -> bytes:
    file = io.BytesIO()
    torch.save({"training": training.state(), "history": [list(epoch) for epoch in history]}, file)
    return file.getvalue()


def _go_on(training: Training, data: bytes | None) -> list[EpochStatistics]:
    """Bring a training to where its checkpoint was taken and return the statistics of the epochs until then."""
    if data is None:
        return []
    saved = torch.load(io.BytesIO(data), weights_only=True)
    training.restore(saved["training"])
    step_logger().info("goes on after epoch %d", training.epochs_done)
    return [EpochStatistics(*epoch) for epoch in saved["history"]]
