"""Training of a backbone by classification (IDE): of the identities of the source, or of the pseudo-labels of the target.

`train` yields the statistics of each epoch, so that its caller can report progress and save checkpoints. All randomness of an epoch follows
from (seed, epoch), so a training that is resumed from a checkpoint ends with the same weights as one that was not interrupted.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pul_core.arrays import Images, Ints
from pul_core.errors import NotFiniteError, UserError
from pul_core.learning.augmentation import augment
from pul_core.learning.backbone import normalise
from pul_core.learning.batches import epoch_batches
from pul_core.learning.extraction import extract_features
from pul_core.learning.memory import ClusterMemory, ImageMemory
from pul_core.seeds import derive_seed
from pul_core.settings import Memory, Optimisation, Schedule, Training


class PixelSource(Protocol):
    """Images that can be indexed by row: an array (n, h, w, 3) uint8, or several files behind the same interface."""

    def __getitem__(self, rows: Ints, /) -> Images:
        """Return the images of these rows (b, h, w, 3)."""


class EpochStatistics(NamedTuple):
    """Statistics of one epoch: mean loss and accuracy over its images, and the backbone's learning rate in its last step."""

    epoch: int
    images: int
    steps: int
    loss: float
    accuracy: float
    learning_rate: float


@dataclass
class TrainingState:
    """The state of a training: everything that a checkpoint has to contain."""

    backbone: nn.Module
    classifier: nn.Sequential  # BatchNorm or identity, dropout, linear layer or memory
    optimiser: torch.optim.Optimizer
    epochs_done: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the weights, the optimiser's state and the number of finished epochs."""
        parts: dict[str, Any] = {"backbone": self.backbone, "classifier": self.classifier, "optimiser": self.optimiser}
        return copy.deepcopy({name: part.state_dict() for name, part in parts.items()}) | {"epochs_done": self.epochs_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that ``state_dict`` returned."""
        self.backbone.load_state_dict(state["backbone"])
        self.classifier.load_state_dict(state["classifier"])
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))  # it keeps references to the tensors
        self.epochs_done = state["epochs_done"]


def begin_training(
    backbone: nn.Module, settings: Training, *, num_classes: int, classes: Ints | None = None, seed: int, device: str = "cpu"
) -> TrainingState:
    """Add a new classifier to a backbone and create the optimiser of both; all layers are trained.

    The classifier is [BatchNorm ->] dropout -> linear, with weights drawn from N(0, 0.001) and a zero bias. A memory replaces the linear
    layer: it holds one vector per class or per image, which `train` initialises before the first epoch.

    Args:
        backbone: (b, 3, h, w) -> (b, d), with an attribute ``num_features`` = d; moved to the device and trained in place.
        settings: the classifier and the optimiser; the settings of epochs and batches are read by `train`.
        num_classes: number of outputs of the classifier.
        classes: (m,) class of each training image, as passed to `train`; only a memory of images requires them.
        seed: seed of the classifier's weights.
        device: a torch device.

    Returns:
        The state before the first epoch.

    Raises:
        UserError: there are fewer than two classes.
        ValueError: a memory of images without ``classes``.

    Source: the authors' code (dropout 0.5, N(0, 0.001), SGD); the BatchNorm is ours. Dai et al. 2021 and Ge et al. 2020 (the memories).

    Example:
        >>> from pul_core.learning.backbone import build_backbone
        >>> training = begin_training(build_backbone("resnet10t"), Training(), num_classes=5, seed=0)
        >>> training.classifier[-1], training.epochs_done
        (Linear(in_features=512, out_features=5, bias=True), 0)
    """
    if num_classes < 2:
        raise UserError(f"a classifier requires at least 2 classes, got {num_classes}")
    d = int(backbone.num_features)  # type: ignore[arg-type]
    output_layer = _build_output_layer(settings.memory, d, num_classes, classes, seed)
    classifier = nn.Sequential(nn.BatchNorm1d(d) if settings.batch_norm else nn.Identity(), nn.Dropout(settings.dropout), output_layer)
    backbone.to(device).to(memory_format=torch.channels_last)
    classifier.to(device)
    return TrainingState(backbone, classifier, _build_optimiser(backbone, classifier, settings.optimisation))


def train(
    training: TrainingState,
    images: PixelSource,
    rows: Ints,
    classes: Ints,
    settings: Training,
    *,
    seed: int,
    device: str = "cpu",
    bf16: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[EpochStatistics]:
    """Train by softmax cross-entropy until all epochs are done, and yield the statistics of each.

    A memory is initialised before the first epoch with the features of the images without augmentation, extracted in evaluation mode. The
    classifier's BatchNorm, if there is one, is applied to all of them as one batch. After each step the memory is updated with the features
    of the step.

    Args:
        training: changed in place.
        images: (n, h, w, 3) uint8, may be memory-mapped.
        rows: (m,) the images to train on, as indices into ``images``.
        classes: (m,) class of each, in [0, num_classes).
        settings: those passed to `begin_training`.
        seed: seed of the order of the images, the augmentation and the dropout.
        device: a torch device, the one passed to `begin_training`.
        bf16: autocast the forward pass to bfloat16.
        on_batch: called after each step with its number of images.

    Yields:
        The statistics of each epoch, when it is done.

    Raises:
        UserError: there are fewer than two images, or batches of one image.
        NotFiniteError: the loss, or a weight at the end of an epoch, is NaN or infinite.
        ValueError: classes that do not match the rows or those passed to `begin_training`.

    Source: Fan et al. 2018 (fine-tuning by softmax); Dai et al. 2021, Ge et al. 2020 (the memories).

    Example:
        >>> from pul_core.learning.backbone import build_backbone
        >>> settings = Training(epochs=2, batch_size=4)
        >>> training = begin_training(build_backbone("resnet10t"), settings, num_classes=2, seed=0)
        >>> images = np.zeros((8, 64, 32, 3), np.uint8)
        >>> history = list(train(training, images, np.arange(8), np.arange(8) // 4, settings, seed=0))
        >>> [(epoch.epoch, epoch.images, epoch.steps) for epoch in history]
        [(1, 8, 2), (2, 8, 2)]
    """
    if len(rows) < 2:
        raise UserError(f"training requires at least 2 images, got {len(rows)}")
    if len(rows) != len(classes):
        raise ValueError(f"got {len(rows)} rows but {len(classes)} classes")
    memory = training.classifier[-1]
    if isinstance(memory, ImageMemory) and not np.array_equal(memory.classes.cpu().numpy(), classes):
        raise ValueError("the classes differ from those passed to begin_training")
    entries = np.arange(len(rows)) if isinstance(memory, ImageMemory) else classes  # the vector of a memory that each image updates
    if isinstance(memory, ClusterMemory) and not training.epochs_done:
        _initialize_memory(memory, training, images, rows, entries, batch_size=settings.batch_size, device=device, bf16=bf16)
    while training.epochs_done < settings.epochs:
        epoch = training.epochs_done + 1
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        torch.manual_seed(derive_seed(seed, epoch, "dropout"))  # dropout has no generator argument
        training.backbone.train()
        training.classifier.train()
        batches = epoch_batches(classes, batch_size=settings.batch_size, images_per_class=settings.images_per_class, generator=generator)
        loss_sum = num_correct = 0.0
        for step, batch in enumerate(batches, (epoch - 1) * len(batches)):
            rate_share = learning_rate_share(settings.optimisation.schedule, step, settings.epochs * len(batches))
            pixels = torch.from_numpy(images[rows[batch]]).to(device).permute(0, 3, 1, 2)  # (b, 3, h, w), channels_last
            pixels = augment(pixels, settings.augmentation, generator)
            batch_classes, batch_entries = (torch.from_numpy(values[batch]).to(device) for values in (classes, entries))
            loss, correct = _train_step(training, pixels, batch_classes, batch_entries, rate_share, settings.label_smoothing, bf16=bf16)
            if not math.isfinite(loss):
                raise NotFiniteError(f"the loss is {loss} in epoch {epoch}, step {step % len(batches) + 1}: lower the learning rate")
            loss_sum += loss * len(batch)
            num_correct += correct
            if on_batch:
                on_batch(len(batch))
        if not all(bool(torch.isfinite(tensor).all()) for tensor in training.backbone.state_dict().values()):
            raise NotFiniteError(f"the weights are no longer finite after epoch {epoch}: lower the learning rate")
        training.epochs_done = epoch
        num_images = sum(map(len, batches))
        learning_rate = training.optimiser.param_groups[0]["lr"]
        yield EpochStatistics(epoch, num_images, len(batches), loss_sum / num_images, num_correct / num_images, learning_rate)


def learning_rate_share(schedule: Schedule, step: int, steps: int) -> float:
    """Return the learning rate of a step, as a share of the peak learning rate.

    ``constant`` is 1. ``one_cycle`` is a linear warm-up from 1/25 over the first 30 % of the steps, followed by a cosine decay to 0.

    Args:
        schedule: the name of the schedule.
        step: number of the step, from 0.
        steps: number of steps of the whole training.

    Source: Smith 2018 (one cycle), without cycling the momentum.

    Example:
        >>> [round(learning_rate_share("one_cycle", step, 10), 2) for step in (0, 3, 9)]
        [0.04, 1.0, 0.05]
        >>> learning_rate_share("constant", 5, 10)
        1.0
    """
    if schedule == "constant":
        return 1.0
    warm_up = max(1.0, 0.3 * steps)
    if step < warm_up:
        return 0.04 + 0.96 * step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1.0, steps - warm_up)))


def _build_output_layer(settings: Memory, num_features: int, num_classes: int, classes: Ints | None, seed: int) -> nn.Module:
    if settings.entries == "none":
        linear = nn.Linear(num_features, num_classes)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.001)
            linear.bias.zero_()
        return linear
    if settings.entries == "clusters":
        return ClusterMemory(num_classes, num_features, momentum=settings.momentum, temperature=settings.temperature)
    if classes is None:
        raise ValueError("a memory of images requires the class of each image")
    return ImageMemory(
        torch.from_numpy(classes.copy()), num_classes, num_features, momentum=settings.momentum, temperature=settings.temperature
    )


def _build_optimiser(backbone: nn.Module, classifier: nn.Module, settings: Optimisation) -> torch.optim.Optimizer:
    """Build the optimiser; each parameter group has its peak learning rate as ``peak``."""
    groups = [
        {"params": list(backbone.parameters()), "peak": settings.backbone_learning_rate},
        {"params": list(classifier.parameters()), "peak": settings.classifier_learning_rate},
    ]
    if settings.optimiser == "adam":
        return torch.optim.Adam(groups, weight_decay=settings.weight_decay)
    return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov, weight_decay=settings.weight_decay)


@torch.no_grad()
def _initialize_memory(
    memory: ClusterMemory,
    training: TrainingState,
    images: PixelSource,
    rows: Ints,
    entries: Ints,
    *,
    batch_size: int,
    device: str,
    bf16: bool,
) -> None:
    batches = (images[rows[start : start + batch_size]] for start in range(0, len(rows), batch_size))
    blocks = (extract_features(training.backbone, batch, batch_size=batch_size, device=device, bf16=bf16) for batch in batches)
    features = torch.from_numpy(np.concatenate(list(chain.from_iterable(blocks)))).to(device)  # (m, d)
    memory.initialize(training.classifier[0].train()(features), torch.tensor(entries, device=device))


def _train_step(
    training: TrainingState,
    pixels: Tensor,
    classes: Tensor,
    entries: Tensor,
    rate_share: float,
    label_smoothing: float,
    *,
    bf16: bool,
) -> tuple[float, int]:
    """Train on one batch and update the memory; return the mean loss and the number of correct predictions."""
    for group in training.optimiser.param_groups:
        group["lr"] = group["peak"] * rate_share
    training.optimiser.zero_grad(set_to_none=True)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
        features = training.classifier[:-1](training.backbone(normalise(pixels)))  # (b, d)
        logits = training.classifier[-1](features)
        loss = F.cross_entropy(logits, classes, label_smoothing=label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    training.optimiser.step()
    if isinstance(memory := training.classifier[-1], ClusterMemory):
        memory.update(features.detach(), entries)
    return loss.item(), int((logits.detach().argmax(1) == classes).sum())
