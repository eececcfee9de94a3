"""torchreid's softmax + triplet baseline, trained on the same source images, backbone, weights and epochs as PUL's source model.

Usage, after `make peers`: .venv-peers/bin/python benchmarks/torchreid_baseline.py SOURCE WEIGHTS OUT.safetensors [--epochs 10] [--seed 0]
[--threads 1]. SOURCE is a folder in the Market-1501 layout, WEIGHTS a file of ImageNet weights. The output file holds the backbone only,
without the classifier. Evaluate its direct transfer with: pul evaluate OUT.safetensors TARGET --backbone mobilenetv2_100 --size 128x64
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
    """A network with the interface of torchreid's engine: it returns (logits, features) in training, and features otherwise."""

    def __init__(self, backbone: str, weights: Path, num_classes: int) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        load_file_into(self.backbone, weights)
        self.classifier = nn.Linear(self.backbone.num_features, num_classes)

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # noqa: D102 - described by the class
        features = self.backbone(pixels)
        return (self.classifier(features), features) if self.training else features


def training_images(source: Path) -> list[tuple[str, int, int]]:
    """Return the path, class and camera number of every labelled training image."""
    matches = [(path, re.match(r"(-?\d+)_c(\d+)", path.name)) for path in sorted(source.glob("bounding_box_train/*.jpg"))]
    labelled = [(str(path), int(match[1]), int(match[2])) for path, match in matches if match and int(match[1]) > 0]
    classes = {pid: number for number, pid in enumerate(sorted({pid for _, pid, _ in labelled}))}
    return [(path, classes[pid], camid) for path, pid, camid in labelled]


def main(options: argparse.Namespace) -> None:
    torchreid.utils.set_random_seed(options.seed)
    torch.set_num_threads(options.threads)
    train = training_images(options.source)
    if not train:
        raise SystemExit(f"{options.source}/bounding_box_train has no file named like 0001_c1s1_000001_00.jpg: use the Market-1501 layout.")

    class Source(torchreid.data.ImageDataset):  # type: ignore[misc, name-defined]
        def __init__(self, root: str = "", **kwargs: object) -> None:
            super().__init__(train, train[:1], [(*train[0][:2], train[0][2] + 1)], **kwargs)

    torchreid.data.register_image_dataset("source", Source)
    h, w = (int(number) for number in options.size.split("x"))
    data = torchreid.data.ImageDataManager(
        sources="source",
        height=h,
        width=w,
        transforms=["random_flip", "random_crop", "random_erase"],
        use_gpu=False,
        batch_size_train=options.batch_size,
        batch_size_test=options.batch_size,
        num_instances=4,
        train_sampler="RandomIdentitySampler",
        workers=0,
    )
    network = Network(options.backbone, options.weights, data.num_train_pids)
    optimiser = torchreid.optim.build_optimizer(network, optim="adam", lr=3e-4)
    schedule = torchreid.optim.build_lr_scheduler(optimiser, lr_scheduler="cosine", max_epoch=options.epochs)
    engine = torchreid.engine.ImageTripletEngine(data, network, optimiser, scheduler=schedule, use_gpu=False)
    engine.max_epoch = options.epochs
    for engine.epoch in range(options.epochs):
        engine.train(print_freq=50)
    save_file({name: tensor.contiguous() for name, tensor in network.backbone.state_dict().items()}, options.out)


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
