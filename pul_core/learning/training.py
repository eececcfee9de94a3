"""How a backbone learns identities: by classification (IDE), on true identities of the source or on pseudo-labels of the target.

Training is a generator of per-epoch statistics: who calls it decides what to show and what to keep. All of an epoch's randomness follows
from (seed, epoch), so a training that goes on after epoch 3 from saved weights ends like one that was never interrupted.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pul_core.errors import NotFiniteError, UserError
from pul_core.learning.augmentation import augment
from pul_core.learning.backbone import normalise
from pul_core.learning.batches import epoch_batches, num_steps
from pul_core.learning.extraction import extract_features
from pul_core.learning.memory import ClusterMemory, ImageMemory
from pul_core.seeds import derive_seed

Schedule = Literal["constant", "one_cycle"]
Optimiser = Literal["sgd", "adam"]
Loss = Literal["softmax", "cluster_memory", "image_memory"]


class Images(Protocol):
    """Pixels that can be had by row: an array (n, h, w, 3) uint8, or several files that look like one."""

    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> npt.NDArray[np.uint8]:
        """Return the images at these rows (b, h, w, 3)."""


class EpochStatistics(NamedTuple):
    """What one epoch did: means over the images it showed; learning rate of the backbone at its end."""

    epoch: int
    images: int
    steps: int
    loss: float
    accuracy: float
    learning_rate: float


@dataclass
class Training:
    """A training under way: what has to be kept to go on with it later."""

    backbone: nn.Module
    classifier: nn.Sequential  # norm, dropout, linear layer or memory
    optimiser: torch.optim.Optimizer
    epochs_done: int = 0

    def state(self) -> dict[str, Any]:
        """Return a copy of weights, optimiser state and the number of finished epochs."""
        parts: dict[str, Any] = {"backbone": self.backbone, "classifier": self.classifier, "optimiser": self.optimiser}
        return copy.deepcopy({name: part.state_dict() for name, part in parts.items()}) | {"epochs_done": self.epochs_done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state that ``state`` returned."""
        self.backbone.load_state_dict(state["backbone"])
        self.classifier.load_state_dict(state["classifier"])
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))  # it keeps the tensors it is given
        self.epochs_done = state["epochs_done"]


def begin_training(
    backbone: nn.Module,
    *,
    num_classes: int,
    classes: npt.NDArray[np.int64] | None = None,
    optimiser: Optimiser,
    backbone_learning_rate: float,
    classifier_learning_rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    batch_norm: bool,
    dropout: float,
    loss: Loss = "softmax",
    memory_momentum: float = 0.1,
    temperature: float = 0.05,
    seed: int,
    device: str = "cpu",
) -> Training:
    """Put a new classifier behind a backbone and an optimiser behind both; every layer trains.

    The classifier is [BatchNorm ->] dropout -> linear with weights N(0, 0.001) and zero bias. With a memory the last of them is no layer
    with weights but one vector a class, or an image, which `train` fills before the first epoch.

    Args:
        backbone: (b, 3, h, w) -> (b, d), with attribute ``num_features`` = d; moved to the device and trained in place.
        num_classes: outputs of the classifier.
        classes: (m,) class of each image that `train` will be given; only a memory of images asks for it.
        optimiser: ``sgd``, or ``adam`` with its usual betas, for which momentum and nesterov mean nothing.
        backbone_learning_rate: peak learning rate of the backbone.
        classifier_learning_rate: the same of the classifier.
        momentum, nesterov: of SGD.
        weight_decay: L2 penalty, in the gradient.
        batch_norm: normalise the features before the classifier.
        dropout: share of the features dropped before the classifier.
        loss: ``softmax``; or softmax over cosines to a `ClusterMemory` (``cluster_memory``) or an `ImageMemory` (``image_memory``).
        memory_momentum: of the memory, in [0, 1]; softmax has none.
        temperature: what the memory's cosines are divided by, above 0; softmax has none.
        seed: of the classifier's weights.
        device: a torch device.

    Returns:
        A training at epoch 0.

    Raises:
        UserError: fewer than two classes, or a memory of images that nobody named the classes of.

    Source: the authors' code (dropout 0.5, N(0, 0.001), SGD); the BatchNorm is ours. Dai et al. 2021 and Ge et al. 2020 (the memories).

    Example:
        >>> from pul_core.learning.backbone import build_backbone
        >>> training = begin_training(build_backbone("resnet10t"), num_classes=5, optimiser="sgd", backbone_learning_rate=0.01,
        ...     classifier_learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, batch_norm=True, dropout=0.0, seed=0)
        >>> training.epochs_done
        0
    """
    if num_classes < 2:
        raise UserError(f"a classifier needs at least 2 classes, not {num_classes}")
    d = int(backbone.num_features)  # type: ignore[arg-type]
    last: nn.Module
    if loss == "cluster_memory":
        last = ClusterMemory(num_classes, d, momentum=memory_momentum, temperature=temperature)
    elif loss == "image_memory":
        if classes is None:
            raise UserError("a memory of images needs the class of each image")
        last = ImageMemory(torch.from_numpy(classes.copy()), num_classes, d, momentum=memory_momentum, temperature=temperature)
    else:
        last = _new_linear(d, num_classes, seed)
    classifier = nn.Sequential(nn.BatchNorm1d(d) if batch_norm else nn.Identity(), nn.Dropout(dropout), last)
    backbone.to(device).to(memory_format=torch.channels_last)
    classifier.to(device)
    groups = [
        {"params": list(backbone.parameters()), "peak": backbone_learning_rate},
        {"params": list(classifier.parameters()), "peak": classifier_learning_rate},
    ]
    if optimiser == "adam":
        return Training(backbone, classifier, torch.optim.Adam(groups, lr=backbone_learning_rate, weight_decay=weight_decay))
    sgd = torch.optim.SGD(groups, lr=backbone_learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    return Training(backbone, classifier, sgd)


def train(
    training: Training,
    images: Images,
    rows: npt.NDArray[np.int64],
    classes: npt.NDArray[np.int64],
    *,
    epochs: int,
    batch_size: int,
    images_per_class: int = 0,
    schedule: Schedule,
    label_smoothing: float,
    flip_probability: float,
    crop_share: float,
    erase_probability: float,
    rotation_degrees: float,
    shift_share: float,
    colour_share: float,
    seed: int,
    device: str = "cpu",
    bf16: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[EpochStatistics]:
    """Train by softmax cross-entropy from the epoch the training stands at to the last one.

    A memory begins with the images' features, or their class means, as the starting model sees them: without augmentation, in evaluation
    mode, behind the classifier's BatchNorm, if it has one, which takes them as one batch; ``on_batch`` is not told of these. It follows the
    features of each step after the step.

    Args:
        training: changed in place.
        images: (n, h, w, 3) uint8, may be memory-mapped.
        rows: (m,) which images to train on, indices into ``images``.
        classes: (m,) class of each, in [0, num_classes).
        epochs: passes over the m images.
        batch_size: images a step; a last batch of one image joins the one before, for BatchNorm's sake.
        images_per_class: K of batches of P classes with K images each, see `epoch_batches`; 0 shuffles all images.
        schedule: ``constant``, or ``one_cycle``: linear warm-up from 1/25 of the peak over the first 30 % of steps, then cosine to 0.
        label_smoothing: share of probability spread over all classes.
        flip_probability, crop_share, erase_probability, rotation_degrees, shift_share, colour_share: see ``augmentation``.
        seed: of the order, the augmentation and the dropout.
        device: a torch device.
        bf16: autocast the forward pass to bfloat16.
        on_batch: told the number of images after each step.

    Yields:
        Statistics of each epoch, when it is done.

    Raises:
        UserError: fewer than two images, classes that do not match rows or the memory, or more images of a class than a batch holds.
        NotFiniteError: the loss, or a weight at the end of an epoch, is NaN or infinite.

    Source: Fan et al. 2018 (fine-tuning by softmax); Dai et al. 2021, Ge et al. 2020 (the memories); the schedule is Smith's
    one-cycle without momentum cycling.

    Example:
        >>> from pul_core.learning.backbone import build_backbone
        >>> training = begin_training(build_backbone("resnet10t"), num_classes=2, optimiser="adam", backbone_learning_rate=0.01,
        ...     classifier_learning_rate=0.01, momentum=0.9, nesterov=True, weight_decay=0, batch_norm=True, dropout=0.0, seed=0)
        >>> images = np.zeros((8, 64, 32, 3), np.uint8); images[4:] = 255
        >>> off = dict(flip_probability=0, crop_share=0, erase_probability=0, rotation_degrees=0, shift_share=0, colour_share=0)
        >>> history = list(train(training, images, np.arange(8), np.arange(8) // 4, epochs=2, batch_size=4, schedule="constant",
        ...     label_smoothing=0, seed=0, **off))
        >>> [(epoch.epoch, epoch.images, epoch.steps) for epoch in history]
        [(1, 8, 2), (2, 8, 2)]
    """
    if len(rows) < 2:
        raise UserError(f"training needs at least 2 images, not {len(rows)}")
    if len(rows) != len(classes):
        raise UserError(f"{len(rows)} images but {len(classes)} classes")
    steps = num_steps(len(rows), batch_size)
    entries = _begin_memory(training, images, rows, classes, batch_size=batch_size, device=device, bf16=bf16)
    for epoch in range(training.epochs_done + 1, epochs + 1):
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        torch.manual_seed(derive_seed(seed, epoch, "dropout"))  # dropout takes no generator
        training.backbone.train()
        training.classifier.train()
        loss_sum = correct = 0.0
        batches = epoch_batches(classes, batch_size=batch_size, images_per_class=images_per_class, generator=generator)
        for step, batch in enumerate(batches):
            rate = learning_rate_share(schedule, (epoch - 1) * steps + step, epochs * steps)
            for group in training.optimiser.param_groups:
                group["lr"] = group["peak"] * rate
            pixels = torch.from_numpy(images[rows[batch]]).to(device).permute(0, 3, 1, 2)  # (b, 3, h, w), channels_last
            pixels = augment(
                pixels,
                flip_probability=flip_probability,
                crop_share=crop_share,
                erase_probability=erase_probability,
                rotation_degrees=rotation_degrees,
                shift_share=shift_share,
                colour_share=colour_share,
                generator=generator,
            )
            wanted = torch.from_numpy(classes[batch]).to(device)
            moved = torch.from_numpy(entries[batch]).to(device)
            loss, hits = _step(training, pixels, wanted, moved, label_smoothing=label_smoothing, bf16=bf16)
            if not math.isfinite(loss):
                raise NotFiniteError(f"the loss is {loss} in epoch {epoch}, step {step + 1}: lower the learning rate")
            loss_sum += loss * len(batch)
            correct += hits
            if on_batch:
                on_batch(len(batch))
        if not all(bool(torch.isfinite(tensor).all()) for tensor in training.backbone.state_dict().values()):
            raise NotFiniteError(f"the weights are no longer finite after epoch {epoch}: lower the learning rate")
        training.epochs_done = epoch
        shown = sum(len(batch) for batch in batches)
        yield EpochStatistics(epoch, shown, steps, loss_sum / shown, correct / shown, training.optimiser.param_groups[0]["lr"])


def learning_rate_share(schedule: Schedule, step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step (from 0) of a training of so many steps.

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


def _new_linear(d: int, num_classes: int, seed: int) -> nn.Linear:
    linear = nn.Linear(d, num_classes)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.001)
        linear.bias.zero_()
    return linear


@torch.no_grad()
def _begin_memory(
    training: Training,
    images: Images,
    rows: npt.NDArray[np.int64],
    classes: npt.NDArray[np.int64],
    *,
    batch_size: int,
    device: str,
    bf16: bool,
) -> npt.NDArray[np.int64]:
    """Fill a memory, unless the training is under way; return the entry that each image moves, which without a memory means nothing."""
    norm, memory = training.classifier[0], training.classifier[-1]
    entries = np.arange(len(rows)) if isinstance(memory, ImageMemory) else classes
    if isinstance(memory, ImageMemory) and not np.array_equal(memory.classes.cpu().numpy(), classes):
        raise UserError("begin_training was given other classes than train")
    if training.epochs_done or not isinstance(memory, ClusterMemory):
        return entries
    parts = (images[rows[start : start + batch_size]] for start in range(0, len(rows), batch_size))
    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "bf16": bf16}
    features = np.concatenate([block for part in parts for block in extract_features(training.backbone, part, **options)])  # (m, d)
    memory.begin(norm.train()(torch.from_numpy(features).to(device)), torch.tensor(entries, device=device))
    return entries


def _step(
    training: Training, pixels: Tensor, wanted: Tensor, entries: Tensor, *, label_smoothing: float, bf16: bool
) -> tuple[float, float]:
    training.optimiser.zero_grad(set_to_none=True)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
        features = training.classifier[:-1](training.backbone(normalise(pixels)))  # (b, d)
        logits = training.classifier[-1](features)
        loss = F.cross_entropy(logits, wanted, label_smoothing=label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    training.optimiser.step()
    if isinstance(memory := training.classifier[-1], ClusterMemory):
        memory.follow(features.detach(), entries)
    return loss.item(), float((logits.detach().argmax(1) == wanted).sum())
