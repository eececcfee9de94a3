"""Speed of training and feature extraction in a run, compared with the bare model on tensors in memory: images/s and their ratio.

`make bench` prints a table and writes .pul/bench.json. Both are timed in the same process. The ratios can be compared between machines, but
not images/s.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pul_core.learning.backbone import build_backbone
from pul_core.learning.extraction import extract_features
from pul_core.learning.precision import Dtype, autocast
from pul_core.learning.training import begin_training, train
from pul_core.settings import Machine, Optimisation, Training
from tasks.engine.compute import prepare, resolve_compute

BATCH = 32
ROUNDS = 3
CASES = (("mobilenetv2_100", 128, 64, 12), ("resnet50", 256, 128, 3))
CLASSES = 500
OPTIMISER = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
SETTINGS = Training(
    epochs=1,
    batch_size=BATCH,
    optimisation=Optimisation(optimiser="sgd", backbone_learning_rate=0.01, classifier_learning_rate=0.01, **OPTIMISER),
)


def bare_training(name: str, h: int, w: int, batches: int) -> Callable[[], None]:
    model = torch.nn.Sequential(backbone := build_backbone(name), torch.nn.Linear(int(backbone.num_features), CLASSES))
    images = torch.randn(BATCH, 3, h, w).contiguous(memory_format=torch.channels_last)
    classes = torch.randint(CLASSES, (BATCH,))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, **OPTIMISER)

    def run() -> None:
        model.train()
        for _ in range(batches):
            optimiser.zero_grad()
            F.cross_entropy(model(images), classes).backward()
            optimiser.step()

    return run


def pul_training(name: str, images: np.ndarray) -> Callable[[], None]:
    training = begin_training(build_backbone(name), SETTINGS, num_classes=CLASSES, seed=0)
    rows, classes = np.arange(len(images)), np.arange(len(images)) % CLASSES

    def run() -> None:
        training.epochs_done = 0
        list(train(training, images, rows, classes, SETTINGS, seed=0))

    return run


def bare_extraction(name: str, h: int, w: int, batches: int, dtype: Dtype) -> Callable[[], None]:
    model = build_backbone(name).eval()
    images = torch.randn(BATCH, 3, h, w).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode(), autocast("cpu", dtype):
            for _ in range(batches):
                model(images)

    return run


def pul_extraction(name: str, images: np.ndarray, dtype: Dtype) -> Callable[[], None]:
    model = build_backbone(name)
    return lambda: [None for _ in extract_features(model, images, batch_size=BATCH, dtype=dtype)].clear()


def seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def compare(pul: Callable[[], None], bare: Callable[[], None], images: int) -> tuple[float, float, float]:
    """Return images/s of both, and the median ratio of pairs timed alternately after one warm-up run each."""
    pul()
    bare()
    pairs = [(seconds(pul), seconds(bare)) for _ in range(ROUNDS)]
    pul_seconds, bare_seconds = (statistics.median(times) for times in zip(*pairs, strict=True))
    return images / pul_seconds, images / bare_seconds, statistics.median(b / a for a, b in pairs)


def main() -> None:
    compute = resolve_compute(Machine(device="cpu"))
    threads, dtype = compute.host.threads, compute.inference.dtype
    prepare(compute.host)
    results: dict[str, float | int] = {"threads": threads}
    print(f"{'':34}{'pul':>9}{'bare':>9}{'ratio':>8}   images/s, batch {BATCH}, {threads} threads")
    for name, h, w, batches in CASES:
        with tempfile.TemporaryDirectory() as folder:
            images = np.memmap(Path(folder, "images.u8"), np.uint8, mode="w+", shape=(batches * BATCH, h, w, 3))
            images[:] = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
            cases = {
                "training": (pul_training(name, images), bare_training(name, h, w, batches)),
                "extraction": (pul_extraction(name, images, dtype), bare_extraction(name, h, w, batches, dtype)),
            }
            for case, (pul, bare) in cases.items():
                pul_speed, bare_speed, ratio = compare(pul, bare, len(images))
                key = f"{name}_{h}x{w}_{case}"
                results |= {f"{key}_images_per_second": round(pul_speed, 1), f"{key}_ratio": round(ratio, 3)}
                print(f"{key:34}{pul_speed:9.1f}{bare_speed:9.1f}{ratio:8.2f}", flush=True)
    path = Path(".pul/bench.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
