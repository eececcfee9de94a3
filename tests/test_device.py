"""Learning on a GPU, as far as it can be tested without one: no tensor on the wrong device, and no step that waits for a value.

Tensors on "meta", and fake tensors on "cuda", have shapes but no values: reading a value is an error, and so is mixing devices.
"""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pul_core.learning import constants, extraction, training
from pul_core.learning.augmentation import augment
from pul_core.learning.backbone import normalise
from pul_core.learning.feeding import resident_feed
from pul_core.learning.memory import ClusterMemory, ImageMemory, count_passes
from pul_core.learning.precision import use_deterministic_algorithms
from pul_core.learning.training import begin_training, train
from pul_core.settings import Augmentation, Memory, Optimisation, Training

AUGMENTATION = Augmentation(
    flip_probability=0.5, crop_share=0.1, erase_probability=0.5, rotation_degrees=20, shift_share=0.2, colour_share=0.2
)
SETTINGS = Training(epochs=2, batch_size=4, dropout=0.2, label_smoothing=0.1, augmentation=AUGMENTATION)
ROWS, CLASSES = np.arange(12), np.repeat(np.arange(3), 4)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 16, 3), np.uint8)
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal", "aten::unique2"}
SGD = {"optimisation": Optimisation(optimiser="sgd")}
KINDS = [
    {},
    SGD,
    {"memory": Memory(entries="clusters"), "images_per_class": 2},
    {"memory": Memory(entries="images"), "batch_norm": True},
]


class Small(nn.Sequential):
    num_features = 8

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture(autouse=True)
def forget_constants():
    """Constants on fake devices must not be used by other tests."""
    yield
    constants.constant.cache_clear()
    constants.positions.cache_clear()


class Waits(TorchDispatchMode):
    """Logs each operation that makes the host wait for a GPU."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        is_mask = name in ("aten::index", "aten::index_put_") and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in WAITS or is_mask:
            self.log.append(name)
        return func(*args, **(kwargs or {}))


def test_operations_that_wait_are_detected():
    with Waits(log := []):
        x = torch.ones(3)
        bool(x.all())
        x[x > 0]
        x[torch.tensor([0, 1])]
        float(x[0])
        x.nonzero()
    assert log == ["aten::_local_scalar_dense", "aten::index", "aten::_local_scalar_dense", "aten::nonzero"]


@pytest.mark.parametrize(
    ("options", "dtype"),
    [*((options, "float32") for options in KINDS), *((options, "float16") for options in KINDS if options != SGD)],
)
def test_no_step_waits_for_the_device(options, dtype):
    """After the first forward pass, nothing is read before the last step is done."""
    settings, log = replace(SETTINGS, epochs=1, **options), []
    state = begin_training(Small(), settings, num_classes=3, classes=CLASSES, seed=0, dtype=dtype)
    state.backbone.register_forward_pre_hook(lambda module, _: log.append("forward") if module.training else None)
    with Waits(log):
        list(train(state, IMAGES, ROWS, CLASSES, settings, seed=0, on_batch=lambda _: log.append("step")))
    steps = log[log.index("forward") : len(log) - log[::-1].index("step")]
    assert steps == ["forward", "step"] * 3
    assert len(log) > len(steps), "the weights are checked at the end of the epoch"


@pytest.mark.parametrize("options", KINDS[:3])  # a memory of images reads its classes before the first step
def test_every_step_runs_without_values_and_on_one_device(options, monkeypatch):
    """All steps of an epoch run on "meta", where the first value that is read is an error."""
    settings, steps = replace(SETTINGS, **options), []
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda _device="cpu": generator())  # none for "meta"
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(training, "_build_optimiser", plain_sgd)  # fused optimisers refuse "meta"
    state = begin_training(Small(), settings, num_classes=3, classes=CLASSES, seed=0, device="meta")
    state.epochs_done = 1  # a memory is initialised before the first epoch
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        list(train(state, IMAGES, ROWS, CLASSES, settings, seed=0, on_batch=steps.append))
    assert steps == [4, 4, 4]


def plain_sgd(backbone, classifier, _settings, _dtype):
    groups = [{"params": list(module.parameters()), "peak": 0.1} for module in (backbone, classifier) if list(module.parameters())]
    return torch.optim.SGD(groups, momentum=0.9)


def test_a_batch_goes_through_augmentation_backbone_and_memory_on_a_fake_gpu():
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            backbone, clusters, per_image = Small(), memory(ClusterMemory, 3), memory(ImageMemory, torch.from_numpy(CLASSES).cuda(), 3)
        pixels = torch.empty(4, 32, 16, 3, dtype=torch.uint8, device="cuda").permute(0, 3, 1, 2)
        entries = torch.from_numpy(CLASSES[:4]).to("cuda")
        features = backbone(normalise(augment(pixels, AUGMENTATION, None)))  # the GPU's own generator
        for module in (clusters, per_image):
            assert module(features).shape == (4, 3)
            module.update(features, entries, passes=count_passes(CLASSES[:4]))
            assert module.vectors.device.type == features.device.type == "cuda"


def memory(kind, *arguments):
    return kind(*arguments, 8, momentum=0.1, temperature=0.05)


def test_images_that_are_kept_on_a_device_are_gathered_there():
    (pixels,) = resident_feed(IMAGES, ROWS, device="meta")([np.arange(5)])
    assert (pixels.shape, pixels.device.type) == ((5, 3, 32, 16), "meta")


class GpuTensor:
    """Features of a batch that say when they are copied."""

    device = torch.device("cuda")

    def __init__(self, number, log):
        self.number, self.log = number, log
        log.append(f"compute {number}")

    def to(self, device, *, non_blocking):
        assert (device, non_blocking) == ("cpu", True)
        self.log.append(f"copy {self.number}")
        return torch.full((2, 3), float(self.number))


def test_features_are_copied_while_the_next_batch_is_computed(monkeypatch):
    log = []
    event = SimpleNamespace(synchronize=lambda: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(record_event=lambda: event))
    batches = extraction._to_host((f"pixels {number}", GpuTensor(number, log)) for number in range(3))
    for number, (pixels, features) in enumerate(batches):
        log.append(f"yield {number}")
        assert pixels == f"pixels {number}"
        assert (features == number).all()
    first = ["compute 0", "copy 0", "compute 1", "copy 1", "wait", "yield 0"]
    assert log == [*first, "compute 2", "copy 2", "wait", "yield 1", "wait", "yield 2"]


@pytest.mark.parametrize("options", KINDS)
def test_training_uses_no_operation_without_a_deterministic_form(options):
    """On the CPU, where deterministic algorithms give the same bytes as the others."""
    settings, weights = replace(SETTINGS, **options), []
    for enabled in (False, True):
        state = begin_training(Small(), settings, num_classes=3, classes=CLASSES, seed=0)
        use_deterministic_algorithms(enabled)
        try:
            list(train(state, IMAGES, ROWS, CLASSES, settings, seed=0))
        finally:
            use_deterministic_algorithms(False)
        weights.append(state.backbone.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
