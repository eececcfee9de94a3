"""A peer for direct transfer: torchreid's softmax + triplet baseline on the same source images, backbone, weights and number of epochs.

Usage, after `make peers`: .venv-peers/bin/python benchmarks/torchreid_baseline.py SOURCE WEIGHTS OUT.safetensors [--epochs 10] [--seed 0]
[--threads 1]. SOURCE is a folder in the Market-1501 layout, WEIGHTS a file of ImageNet weights. What it writes holds the trunk alone:
pul evaluate OUT.safetensors TARGET --backbone mobilenetv2_100 --size 128x64
"""

import argparse
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchreid import reid as torchreid

from pul_core.learning.backbone import build_backbone
from tasks.models import load_file_into


class Network(nn.Module):
    """What torchreid's engine asks for: logits and features in training, features otherwise."""

    def __init__(self, backbone: str, weights: Path, num_classes: int) -> None:
        super().__init__()
        self.trunk = build_backbone(backbone)
        load_file_into(self.trunk, weights)
        self.classifier = nn.Linear(self.trunk.num_features, num_classes)

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # noqa: D102 - the class says it
        features = self.trunk(pixels)
        return (self.classifier(features), features) if self.training else features


def images_of(source: Path) -> list[tuple[str, int, int]]:
    """Return path, class and camera of every training image that shows somebody."""
    names = [(path, re.match(r"(-?\d+)_c(\d+)", path.name)) for path in sorted(source.glob("bounding_box_train/*.jpg"))]
    known = [(str(path), int(found[1]), int(found[2])) for path, found in names if found and int(found[1]) > 0]
    classes = {pid: number for number, pid in enumerate(sorted({pid for _, pid, _ in known}))}
    return [(path, classes[pid], camera) for path, pid, camera in known]


def main(given: argparse.Namespace) -> None:
    torchreid.utils.set_random_seed(given.seed)
    torch.set_num_threads(given.threads)
    train = images_of(given.source)
    if not train:
        raise SystemExit(f"there is no image called like 0001_c1s1_000001_00.jpg in {given.source}/bounding_box_train")

    class Source(torchreid.data.ImageDataset):  # type: ignore[misc, name-defined]
        def __init__(self, root: str = "", **options: object) -> None:
            super().__init__(train, train[:1], [(*train[0][:2], train[0][2] + 1)], **options)

    torchreid.data.register_image_dataset("source", Source)
    h, w = (int(number) for number in given.size.split("x"))
    data = torchreid.data.ImageDataManager(
        sources="source",
        height=h,
        width=w,
        transforms=["random_flip", "random_crop", "random_erase"],
        use_gpu=False,
        batch_size_train=given.batch_size,
        batch_size_test=given.batch_size,
        num_instances=4,
        train_sampler="RandomIdentitySampler",
        workers=0,
    )
    network = Network(given.backbone, given.weights, data.num_train_pids)
    optimiser = torchreid.optim.build_optimizer(network, optim="adam", lr=3e-4)
    schedule = torchreid.optim.build_lr_scheduler(optimiser, lr_scheduler="cosine", max_epoch=given.epochs)
    engine = torchreid.engine.ImageTripletEngine(data, network, optimiser, scheduler=schedule, use_gpu=False)
    engine.max_epoch = given.epochs
    for engine.epoch in range(given.epochs):
        engine.train(print_freq=50)
    save_file({name: tensor.contiguous() for name, tensor in network.trunk.state_dict().items()}, given.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--size", default="128x64")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args())
