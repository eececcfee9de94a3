"""Training and feature extraction as a run does them, compared with the bare model on tensors in memory: images/s and their ratio.

Both are timed alternately in one process. What holds for a whole process (denormal numbers, how threads wait) is an argument or a variable
of the environment, so `speed.py` starts this file as a program, once per state; `gpu.py` imports its functions.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the project need not be installed

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pul_core.learning.backbone import build_backbone
from pul_core.learning.extraction import extract_features
from pul_core.learning.precision import autocast, fast_products, inference_dtype, training_dtype
from pul_core.learning.training import TrainingState, begin_training, train
from pul_core.settings import Training

CLASSES = 500
# Training leaves channels whose output no layer uses. Weight decay then shrinks their parameters and moments until they are denormal.
DEAD_SHARE = 0.02  # share of the channels inside a block
DECAY_FROM = 0.1  # standard deviation of their parameters at first
DECAY_STEPS = 4000  # steps of Adam without a gradient: 10 epochs of Market-1501


def begin(name: str, h: int, w: int, batch: int, device: str) -> TrainingState:
    """Begin a training of random weights with the recipes' optimiser, then give it the dead channels that a long training leaves."""
    settings = Training(epochs=1, batch_size=batch)
    placed = {"device": device, "dtype": training_dtype(device)}
    training = begin_training(build_backbone(name), settings, num_classes=CLASSES, seed=0, **placed)
    images = np.random.default_rng(0).integers(0, 256, (2, h, w, 3), np.uint8)
    list(train(training, images, np.arange(2), np.arange(2), settings, seed=0))  # creates the optimiser's moments
    decay_dead_channels(training)
    return training


def decay_dead_channels(training: TrainingState) -> None:
    """Replace the parameters of some inner channels, and their moments, by what many steps without a gradient make of them."""
    masks = [mask for block in training.backbone.modules() for mask in _dead_parameters(block)]
    if not masks:
        return
    settings = training.optimiser.param_groups[0]
    size = sum(int(mask.sum()) for _, mask in masks)
    decayed = nn.Parameter(DECAY_FROM * torch.randn(size, generator=torch.Generator().manual_seed(0)))
    decayed.grad = torch.zeros_like(decayed)
    optimiser = torch.optim.Adam([decayed], lr=settings["peak"], weight_decay=settings["weight_decay"])
    for _ in range(DECAY_STEPS):
        optimiser.step()
    values = {"parameter": decayed.detach(), **optimiser.state[decayed]}
    start = 0
    for parameter, mask in masks:
        state = training.optimiser.state[parameter]
        part = slice(start, start := start + int(mask.sum()))
        for name, tensor in {"parameter": parameter.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}.items():
            tensor[mask] = values[name][part].to(tensor.device)
    for state in training.optimiser.state.values():
        state["step"].fill_(DECAY_STEPS)


def _dead_parameters(block: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Return the parameters of a residual block that make or read its dead inner channels, each with a mask of the entries."""
    if hasattr(block, "conv_pw") and hasattr(block, "conv_pwl"):  # MobileNetV2
        written, read = (block.conv_pw.weight, block.bn1.weight, block.bn1.bias, block.conv_dw.weight), block.conv_pwl.weight
        written = (*written, block.bn2.weight, block.bn2.bias)
    elif hasattr(block, "conv2") and hasattr(block, "bn2"):  # ResNet
        written, read = (block.conv1.weight, block.bn1.weight, block.bn1.bias), block.conv2.weight
    else:
        return []
    channels = len(written[0])
    dead = torch.arange(round(DEAD_SHARE * channels)) * 7 % channels
    masks = []
    for parameter in (*written, read):
        mask = torch.zeros_like(parameter, dtype=torch.bool)
        mask[(slice(None), dead) if parameter is read else dead] = True
        masks.append((parameter, mask))
    return masks


def count_denormals(training: TrainingState) -> tuple[int, int]:
    """Return the numbers of denormal weights and of denormal moments. Their bits are read: the comparison of numbers may flush them."""

    def count(tensor: Tensor) -> int:
        bits = tensor.detach().float().contiguous().view(torch.int32)
        return int((((bits & 0x7F800000) == 0) & ((bits & 0x7FFFFF) != 0)).sum())

    moments = [state[name] for state in training.optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return sum(map(count, training.backbone.parameters())), sum(map(count, moments))


def bare_training(training: TrainingState, h: int, w: int, batch: int, steps: int) -> Callable[[], None]:
    """Return a plain training loop on one batch of normalised images, starting from a copy of the weights and moments."""
    device, dtype = training.device, training.dtype
    model = nn.Sequential(copy.deepcopy(training.backbone), copy.deepcopy(training.classifier))
    optimiser = torch.optim.Adam(model.parameters(), lr=3.5e-4, weight_decay=5e-4, fused=True)
    parameters = nn.Sequential(training.backbone, training.classifier).parameters()
    for bare, ours in zip(model.parameters(), parameters, strict=True):
        optimiser.state[bare] = {name: value.clone() for name, value in training.optimiser.state[ours].items()}
    images = torch.randn(batch, 3, h, w, device=device).contiguous(memory_format=torch.channels_last)
    classes = torch.randint(CLASSES, (batch,), device=device)

    def run() -> None:
        model.train()
        for _ in range(steps):
            optimiser.zero_grad()
            with autocast(device, dtype):
                loss = F.cross_entropy(model(images), classes, label_smoothing=0.1)
            loss.backward()
            optimiser.step()

    return run


def pul_training(training: TrainingState, images: np.ndarray, batch: int) -> Callable[[], None]:
    rows, classes, settings = np.arange(len(images)), np.arange(len(images)) % CLASSES, Training(epochs=1, batch_size=batch)

    def run() -> None:
        training.epochs_done = 0
        list(train(training, images, rows, classes, settings, seed=0))

    return run


def bare_extraction(backbone: nn.Module, h: int, w: int, batch: int, steps: int, device: str) -> Callable[[], None]:
    backbone = copy.deepcopy(backbone).eval()
    images = torch.randn(batch, 3, h, w, device=device).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode(), autocast(device, inference_dtype(device)):
            for _ in range(steps):
                backbone(images)

    return run


def pul_extraction(backbone: nn.Module, images: np.ndarray, batch: int, device: str) -> Callable[[], None]:
    backbone = copy.deepcopy(backbone)
    options = {"batch_size": batch, "device": device, "dtype": inference_dtype(device)}
    return lambda: [None for _ in extract_features(backbone, images, **options)].clear()


def seconds(run: Callable[[], None]) -> float:
    """Return the wall time, including what the GPU still has to do when the call returns."""
    started = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(pul: Callable[[], None], bare: Callable[[], None], images: int, rounds: int) -> dict[str, float]:
    """Return images/s of both, and the median ratio of pairs timed alternately after one warm-up run each."""
    pul()
    bare()
    pairs = [(seconds(pul), seconds(bare)) for _ in range(rounds)]
    pul_seconds, bare_seconds = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {"ours": images / pul_seconds, "bare": images / bare_seconds, "ratio": statistics.median(b / a for a, b in pairs)}


def measure_model(name: str, h: int, w: int, batch: int, steps: int, *, device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Compare training and extraction of one model; the images of ours come from a memory-mapped file."""
    with tempfile.TemporaryDirectory() as folder, fast_products():  # for the bare model; ours does it itself
        images = np.memmap(Path(folder, "images.u8"), np.uint8, mode="w+", shape=(steps * batch, h, w, 3))
        images[:] = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
        training = begin(name, h, w, batch, device)
        size = (h, w, batch, steps)
        results = {}
        ours, bare = pul_extraction(training.backbone, images, batch, device), bare_extraction(training.backbone, *size, device)
        results["extraction"] = compare(ours, bare, len(images), rounds)
        ours, bare = pul_training(training, images, batch), bare_training(training, *size)
        results["training"] = compare(ours, bare, len(images), rounds)
        weights, moments = count_denormals(training)
        results["denormals"] = {"weights": weights, "moments": moments}
    return results


def measure_training_alone(name: str, h: int, w: int, batch: int, steps: int, *, rounds: int) -> float:
    """Return images/s of training, the best of the rounds."""
    images = np.random.default_rng(0).integers(0, 256, (steps * batch, h, w, 3), np.uint8)
    run = pul_training(begin(name, h, w, batch, "cpu"), images, batch)
    run()
    return len(images) / min(seconds(run) for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", help="JSON: a list of [model, height, width, batch, steps]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--denormals", choices=("flushed", "kept"), default="flushed")
    parser.add_argument("--training-alone", action="store_true")
    options = parser.parse_args()
    from tasks.engine.compute import prepare
    from tasks.store.references import Compute

    prepare(Compute(device="cpu", threads=options.threads, dtype="float32"))
    # Before the first parallel operation, because threads inherit it when they start; after `prepare`, which a run's steps call.
    torch.set_flush_denormal(options.denormals == "flushed")
    for name, *size in json.loads(options.cases):
        if options.training_alone:
            results: object = measure_training_alone(name, *size, rounds=options.rounds)
        else:
            results = measure_model(name, *size, device="cpu", rounds=options.rounds)
        print(json.dumps({f"{name}_{size[0]}x{size[1]}": results}), flush=True)


if __name__ == "__main__":
    main()
