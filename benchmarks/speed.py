"""Training and extraction as a run does them, against the bare model on tensors in memory, in one process: images/s and their ratio.

`make bench` prints a table and writes .pul/bench.json. Ratios are comparable between machines; images/s are not.
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
from pul_core.learning.training import begin_training, train
from tasks.engine.compute import prepare, resolve_compute

BATCH = 32
ROUNDS = 3
CASES = (("mobilenetv2_100", 128, 64, 12), ("resnet50", 256, 128, 3))
CLASSES = 500
AUGMENTATION = {
    "flip_probability": 0.5,
    "crop_share": 0.08,
    "erase_probability": 0.5,
    "rotation_degrees": 0,
    "shift_share": 0,
    "colour_share": 0,
}
OPTIMISER = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
HEAD = {"batch_norm": True, "dropout": 0.0}


def bare_training(name: str, h: int, w: int, batches: int) -> Callable[[], None]:
    model = torch.nn.Sequential(backbone := build_backbone(name), torch.nn.Linear(int(backbone.num_features), CLASSES))
    images = torch.randn(BATCH, 3, h, w).contiguous(memory_format=torch.channels_last)
    wanted = torch.randint(CLASSES, (BATCH,))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, **OPTIMISER)

    def run() -> None:
        model.train()
        for _ in range(batches):
            optimiser.zero_grad()
            F.cross_entropy(model(images), wanted).backward()
            optimiser.step()

    return run


def our_training(name: str, images: np.ndarray) -> Callable[[], None]:
    training = begin_training(
        build_backbone(name),
        num_classes=CLASSES,
        optimiser="sgd",
        backbone_learning_rate=0.01,
        classifier_learning_rate=0.01,
        seed=0,
        **OPTIMISER,
        **HEAD,
    )
    rows, classes = np.arange(len(images)), np.arange(len(images)) % CLASSES

    def run() -> None:
        training.epochs_done = 0
        options = {"epochs": 1, "batch_size": BATCH, "schedule": "one_cycle", "label_smoothing": 0.1, "seed": 0}
        list(train(training, images, rows, classes, **options, **AUGMENTATION))

    return run


def bare_extraction(name: str, h: int, w: int, batches: int, bf16: bool) -> Callable[[], None]:
    model = build_backbone(name).eval()
    images = torch.randn(BATCH, 3, h, w).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for _ in range(batches):
                model(images)

    return run


def our_extraction(name: str, images: np.ndarray, bf16: bool) -> Callable[[], None]:
    model = build_backbone(name)
    return lambda: [None for _ in extract_features(model, images, batch_size=BATCH, bf16=bf16)].clear()


def seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def compare(ours: Callable[[], None], bare: Callable[[], None], images: int) -> tuple[float, float, float]:
    """Return images/s of both and the median ratio of pairs measured in turn, after one warm-up of each."""
    ours()
    bare()
    pairs = [(seconds(ours), seconds(bare)) for _ in range(ROUNDS)]
    own, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    return images / own, images / other, statistics.median(b / a for a, b in pairs)


def main() -> None:
    compute = resolve_compute("cpu")
    prepare(compute)
    found: dict[str, float | int] = {"threads": compute.threads}
    print(f"{'':34}{'ours':>9}{'bare':>9}{'ratio':>8}   images/s, batch {BATCH}, {compute.threads} threads")
    for name, h, w, batches in CASES:
        with tempfile.TemporaryDirectory() as folder:
            images = np.memmap(Path(folder, "images.u8"), np.uint8, mode="w+", shape=(batches * BATCH, h, w, 3))
            images[:] = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
            cases = {
                "training": (our_training(name, images), bare_training(name, h, w, batches)),
                "extraction": (
                    our_extraction(name, images, compute.bf16_inference),
                    bare_extraction(name, h, w, batches, compute.bf16_inference),
                ),
            }
            for what, (ours, bare) in cases.items():
                own, other, ratio = compare(ours, bare, len(images))
                key = f"{name}_{h}x{w}_{what}"
                found |= {f"{key}_images_per_second": round(own, 1), f"{key}_ratio": round(ratio, 3)}
                print(f"{key:34}{own:9.1f}{other:9.1f}{ratio:8.2f}", flush=True)
    path = Path(".pul/bench.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
