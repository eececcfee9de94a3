"""Training of a backbone by classification (IDE): of the identities of the source, or of the pseudo-labels of the target.

`train` yields the statistics of each epoch, so that its caller can report progress and save checkpoints. All randomness of an epoch follows
from (seed, epoch), so a training that is resumed from a checkpoint ends with the same weights as one that was not interrupted.

No step waits for the device (except with SGD in float16): losses and hits stay there, and are read every `CHECK_INTERVAL` steps and at the
end of an epoch.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pul_core.arrays import Ints
from pul_core.errors import NotFiniteError, UserError
from pul_core.learning.augmentation import augment
from pul_core.learning.backbone import normalise
from pul_core.learning.batches import epoch_batches
from pul_core.learning.extraction import forward
from pul_core.learning.feeding import Feed, PixelSource, pixel_feed, split_on_device
from pul_core.learning.memory import ClusterMemory, ImageMemory, count_passes
from pul_core.learning.precision import autocast, fast_products
from pul_core.seeds import derive_seed
from pul_core.settings import Dtype, Memory, Optimisation, Schedule, Training

CHECK_INTERVAL = 50  # steps


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
    """The state of a training: everything that a checkpoint has to contain, and where and in which number format it runs."""

    backbone: nn.Module
    classifier: nn.Sequential  # BatchNorm or identity, dropout, linear layer or memory
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss in float16; it does nothing in other formats
    device: str = "cpu"
    dtype: Dtype = "float32"
    epochs_done: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return a copy, on the CPU, of the weights, the optimiser's state, the scale of the loss and the number of finished epochs."""
        names = ("backbone", "classifier", "optimiser", "scaler")
        return {name: _copy_to_cpu(getattr(self, name).state_dict()) for name in names} | {"epochs_done": self.epochs_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that ``state_dict`` returned."""
        self.backbone.load_state_dict(state["backbone"])
        self.classifier.load_state_dict(state["classifier"])
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))  # it keeps references to the tensors
        self.scaler.load_state_dict(state["scaler"])
        self.epochs_done = state["epochs_done"]


def _copy_to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy_to_cpu(item) for key, item in value.items()}
    return [_copy_to_cpu(item) for item in value] if isinstance(value, list) else value


def begin_training(
    backbone: nn.Module,
    settings: Training,
    *,
    num_classes: int,
    classes: Ints | None = None,
    seed: int,
    device: str = "cpu",
    dtype: Dtype = "float32",
) -> TrainingState:
    """Add a new classifier to a backbone and create the optimiser of both; all layers are trained.

    The classifier is [BatchNorm ->] dropout -> linear, with weights drawn from N(0, 0.001) and a zero bias. A backbone with a neck ends in
    a BatchNorm already, so its classifier has none. A memory replaces the linear layer: it holds one vector per class or per image, which
    `train` initialises before the first epoch.

    Args:
        backbone: (b, 3, h, w) -> (b, d), with an attribute ``num_features`` = d; moved to the device and trained in place.
        settings: the classifier and the optimiser; the settings of epochs and batches are read by `train`.
        num_classes: number of outputs of the classifier.
        classes: (m,) class of each training image, as passed to `train`; only a memory of images requires them.
        seed: seed of the classifier's weights.
        device: a torch device.
        dtype: number format of the forward and backward passes, see `training_dtype`; the weights are float32.

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
    has_batch_norm = settings.batch_norm and not hasattr(backbone, "bn_neck")
    classifier = nn.Sequential(nn.BatchNorm1d(d) if has_batch_norm else nn.Identity(), nn.Dropout(settings.dropout), output_layer)
    backbone.to(device).to(memory_format=torch.channels_last)
    classifier.to(device)
    optimiser = _build_optimiser(backbone, classifier, settings.optimisation, dtype)
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=dtype == "float16")
    return TrainingState(backbone, classifier, optimiser, scaler, device, dtype)


def train(
    training: TrainingState,
    images: PixelSource,
    rows: Ints,
    classes: Ints,
    settings: Training,
    *,
    similar: Ints | None = None,
    seed: int,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[EpochStatistics]:
    """Train by softmax cross-entropy until all epochs are done, and yield the statistics of each.

    The device and the number format are those passed to `begin_training`.

    A memory is initialised before the first epoch with the features of the images without augmentation, extracted in evaluation mode. The
    classifier's BatchNorm or the backbone's neck, if there is one, is applied to all of them as one batch. After each step the memory is
    updated with the features of the step.

    Args:
        training: changed in place.
        images: (n, h, w, 3) uint8, may be memory-mapped.
        rows: (m,) the images to train on, as indices into ``images``.
        classes: (m,) class of each, in [0, num_classes).
        settings: those passed to `begin_training`.
        similar: (p, 2) pairs of classes that may be one person, in both directions (`pul_core.clustering.similar`): the second is left out
            of the softmax of the images of the first. The accuracy compares all classes.
        seed: seed of the order of the images, the augmentation and the dropout.
        on_batch: called after each step with its number of images; on a GPU the step has been started, not finished.

    Yields:
        The statistics of each epoch, when it is done.

    Raises:
        UserError: there are fewer than two images, or batches of one image.
        NotFiniteError: the loss, or a weight at the end of an epoch, is NaN or infinite. The loss is checked every 50 steps.
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
    feed = pixel_feed(images, rows, device=training.device)
    if isinstance(memory, ClusterMemory) and not training.epochs_done:
        _initialize_memory(memory, training, feed, entries, batch_size=settings.batch_size)
    similar_by_class = None if similar is None else _similar_by_class(similar, classes, training.device)
    while training.epochs_done < settings.epochs:
        statistics = _train_epoch(training, feed, classes, entries, settings, similar_by_class, seed=seed, on_batch=on_batch)
        training.epochs_done = statistics.epoch
        yield statistics


def _train_epoch(
    training: TrainingState,
    feed: Feed,
    classes: Ints,
    entries: Ints,
    settings: Training,
    similar: Tensor | None,
    *,
    seed: int,
    on_batch: Callable[[int], None] | None,
) -> EpochStatistics:
    epoch, device = training.epochs_done + 1, training.device
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    torch.manual_seed(derive_seed(seed, epoch, "dropout"))  # dropout has no generator argument
    training.backbone.train()
    training.classifier.train()
    batches = epoch_batches(classes, batch_size=settings.batch_size, images_per_class=settings.images_per_class, generator=generator)
    if torch.device(device).type != "cpu":  # the batches are drawn on the CPU, random numbers of images where the images are
        generator = torch.Generator(device).manual_seed(derive_seed(seed, epoch))
    losses, hits = torch.zeros(2, len(batches), device=device)
    steps = zip(
        batches, feed(batches), *(split_on_device([v[batch] for batch in batches], device=device) for v in (classes, entries)), strict=True
    )
    checked: list[float] = []  # losses
    for step, (batch, pixels, batch_classes, batch_entries) in enumerate(steps):
        share = learning_rate_share(settings.optimisation.schedule, step + (epoch - 1) * len(batches), settings.epochs * len(batches))
        for group in training.optimiser.param_groups:
            group["lr"] = group["peak"] * share
        pixels = augment(pixels, settings.augmentation, generator)
        features, losses[step], hits[step] = _train_step(training, pixels, batch_classes, settings, similar)
        if isinstance(memory := training.classifier[-1], ClusterMemory):
            memory.update(features, batch_entries, passes=count_passes(entries[batch]))
        if on_batch:
            on_batch(len(batch))
        if step + 1 in (len(checked) + CHECK_INTERVAL, len(batches)):
            checked += _finite_losses(losses[len(checked) : step + 1], epoch, len(checked) + 1)
    if not torch.stack([tensor.isfinite().all() for tensor in training.backbone.state_dict().values()]).all():
        raise NotFiniteError(f"the weights are no longer finite after epoch {epoch}: lower the learning rate")
    sizes = [len(batch) for batch in batches]
    loss = sum(loss * size for loss, size in zip(checked, sizes, strict=True)) / sum(sizes)
    learning_rate = training.optimiser.param_groups[0]["lr"]
    return EpochStatistics(epoch, sum(sizes), len(batches), loss, sum(hits.tolist()) / sum(sizes), learning_rate)


def _train_step(
    training: TrainingState, pixels: Tensor, classes: Tensor, settings: Training, similar: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Train on one batch; return its features (b, d), its mean loss and its number of correct predictions, all on the device."""
    training.optimiser.zero_grad(set_to_none=True)
    with fast_products():
        with autocast(training.device, training.dtype):
            features = training.classifier[:-1](training.backbone(normalise(pixels)))
            logits = training.classifier[-1](features)
            loss = _cross_entropy(logits, classes, settings.label_smoothing, similar)
        training.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    training.scaler.step(training.optimiser)
    training.scaler.update()
    return features.detach(), loss.detach(), (logits.detach().argmax(1) == classes).sum()


def _cross_entropy(logits: Tensor, classes: Tensor, label_smoothing: float, similar: Tensor | None) -> Tensor:
    """Return the mean loss of a batch; the classes that are similar to that of an image, (num_classes, s), are left out of its softmax."""
    if similar is None:
        return F.cross_entropy(logits, classes, label_smoothing=label_smoothing)
    own = classes[:, None]
    competes = torch.ones_like(logits, dtype=torch.bool).scatter_(1, similar[classes], False).scatter_(1, own, True)
    log_probability = logits.float().masked_fill(~competes, -torch.inf).log_softmax(1)
    uniform = log_probability.masked_fill(~competes, 0).sum(1) / competes.sum(1)
    return -torch.lerp(log_probability.gather(1, own).squeeze(1), uniform, label_smoothing).mean()


def _similar_by_class(pairs: Ints, classes: Ints, device: str) -> Tensor:
    """Return the classes that are similar to each class, (num_classes, s), padded with the class itself."""
    num_classes = 1 + max(int(classes.max()), int(pairs.max(initial=0)))
    first, second = pairs[np.argsort(pairs[:, 0], kind="stable")].T
    sizes = np.bincount(first, minlength=num_classes)
    similar = np.repeat(np.arange(num_classes)[:, None], sizes.max(initial=0), axis=1)
    similar[first, np.arange(len(first)) - np.repeat(sizes.cumsum() - sizes, sizes)] = second
    return torch.from_numpy(similar).to(device)


def _finite_losses(losses: Tensor, epoch: int, first_step: int) -> list[float]:
    """Return the losses of consecutive steps, or raise NotFiniteError."""
    values: list[float] = losses.tolist()
    for step, loss in enumerate(values, first_step):
        if not math.isfinite(loss):
            steps = f"steps {first_step} to {first_step + len(values) - 1} were checked"
            raise NotFiniteError(f"the loss is {loss} in epoch {epoch}, step {step} ({steps}): lower the learning rate")
    return values


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


def _build_optimiser(backbone: nn.Module, classifier: nn.Module, settings: Optimisation, dtype: Dtype) -> torch.optim.Optimizer:
    """Build the optimiser, fused if possible: few passes over the weights; each parameter group has its peak learning rate as ``peak``."""
    groups = [
        {"params": list(backbone.parameters()), "peak": settings.backbone_learning_rate},
        {"params": list(classifier.parameters()), "peak": settings.classifier_learning_rate},
    ]
    if settings.optimiser == "adam":
        return torch.optim.Adam(groups, weight_decay=settings.weight_decay, fused=True)
    # When float16 gradients overflow in its first step, torch's fused SGD leaves its momentum undefined. The unfused one is right, but the
    # host waits in each step to learn whether they overflow.
    fused, momentum, nesterov = dtype != "float16", settings.momentum, settings.nesterov
    return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, weight_decay=settings.weight_decay, fused=fused)


@torch.no_grad()
def _initialize_memory(memory: ClusterMemory, training: TrainingState, feed: Feed, entries: Ints, *, batch_size: int) -> None:
    """Initialise a memory with the features of all images, which stay on the device."""
    backbone, batch_norm = training.backbone.eval(), training.classifier[0]
    if hasattr(backbone, "bn_neck"):
        batch_norm = backbone.get_submodule("bn_neck")
        backbone = copy.deepcopy(backbone)
        backbone.bn_neck = nn.Identity()
    batches = np.split(np.arange(len(entries)), range(batch_size, len(entries), batch_size))
    for dtype in (training.dtype, "float32"):  # float32 if a feature overflows
        features = torch.cat([forward(backbone, pixels, dtype) for pixels in feed(batches)])  # (m, d)
        if features.isfinite().all():
            memory.initialize(batch_norm.train()(features), torch.tensor(entries, device=training.device))
            return
    raise NotFiniteError("features that initialise the memory are not finite: the weights are damaged, use another model")
