"""Progressive Unsupervised Learning in one file: the whole method on `pul_core` alone, without Prefect, MLflow and files of its own.

A model is trained on a labelled source. Then, until the size of the reliable set is stable: extract the features of the unlabelled target,
cluster them, select the reliable images, and fine-tune the original model on these with their clusters as classes (Fan et al. 2018).

    python examples/pul_by_hand.py synthetic:0/source synthetic:0/target --backbone mobilenetv2_100 --size 96 48
    python examples/pul_by_hand.py data/market1501 data/mine --recipe modern

A data set is drawn people, or a folder in the Market-1501 layout. The models equal, tensor by tensor, those of `pul run` with the same
parameters, machine and number of threads.
"""

import argparse
import copy
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from pul_core.clustering.centring import centre_by_camera
from pul_core.clustering.cluster import cluster_features
from pul_core.learning.backbone import build_backbone
from pul_core.learning.extraction import extract_features
from pul_core.learning.precision import has_native_bfloat16
from pul_core.learning.training import begin_training, train
from pul_core.recipes import RECIPES
from pul_core.scoring.evaluation import Summary, summarise
from pul_core.scoring.protocols import PROTOCOLS, FeatureSet, score_protocol
from pul_core.seeds import derive_seed
from pul_core.selection import select_reliable
from pul_core.settings import Recipe, Training
from pul_core.stopping import reason_to_stop
from pul_core.synthetic.people import draw_image, plan_domain

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


class Split(NamedTuple):
    """The images of a split (n, h, w, 3), in the order of their file names, with identities and cameras (n,)."""

    images: np.ndarray
    pids: np.ndarray
    camids: np.ndarray


def read_split(path: str, split: str, size: tuple[int, int]) -> Split:
    """Read or draw the images of a split and resize them to (height, width)."""
    if match := re.fullmatch(r"synthetic:(\d+)/(source|target)", path):
        plan = [image for image in plan_domain(match[2], int(match[1])) if image.folder == FOLDERS[split]]
        files = {image.file_name: jpeg(draw_image(match[2], int(match[1]), image)) for image in plan}
    else:
        files = {file.name: file for file in Path(path, FOLDERS[split]).glob("*.jpg")}
    names = sorted(files)
    images = [ImageOps.exif_transpose(Image.open(files[name])).convert("RGB") for name in names]
    pixels = np.stack([np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)) for image in images])
    return Split(pixels, *np.array([re.match(r"(-?\d+)_c(\d+)", name).groups() for name in names], np.int64).T)


def jpeg(pixels: np.ndarray) -> io.BytesIO:
    """Compress an image as `pul run` stores drawn people."""
    Image.fromarray(pixels).save(file := io.BytesIO(), format="JPEG", quality=90)
    return file


def adapt(source: str, target: str, recipe: Recipe, seed: int = 0) -> Iterator[tuple[nn.Module, Summary, int, str | None]]:
    """Yield of the original model and of each iteration: model, scores, size of the reliable set, and the reason to stop."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast, size = has_native_bfloat16(device), (recipe.model.height, recipe.model.width)
    labelled, unlabelled = read_split(source, "train", size), read_split(target, "train", size)
    query, gallery = read_split(target, "query", size), read_split(target, "gallery", size)

    def extract(model: nn.Module, images: np.ndarray) -> np.ndarray:
        return np.concatenate(list(extract_features(model, images, device=device, bf16=fast)))

    def learn(start: nn.Module, images: np.ndarray, rows: np.ndarray, classes: np.ndarray, k: int, settings: Training, name: int | str):
        options = {"seed": derive_seed(seed, *((name,) if name == "pretrain" else (name, "fine_tune"))), "device": device}
        training = begin_training(copy.deepcopy(start), settings, num_classes=k, classes=classes, **options)
        for epoch in train(training, images, rows, classes, settings, bf16=fast and device == "cuda", **options):
            print(f"  {name}, epoch {epoch.epoch}: loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.3f}")
        return training.backbone

    def score(model: nn.Module) -> Summary:
        features = np.concatenate([extract(model, split.images) for split in (query, gallery)])
        if recipe.model.centre_cameras:
            features = centre_by_camera(features, np.append(query.camids, gallery.camids))
        parts = zip(np.split(features, [len(query.pids)]), (query, gallery), strict=True)
        return summarise(score_protocol(PROTOCOLS["market1501"], *(FeatureSet(f, split.pids, split.camids) for f, split in parts)).scores)

    initial = build_backbone(recipe.model.backbone, pretrained=recipe.model.weights == "imagenet", seed=derive_seed(seed, "initial"))
    rows = np.flatnonzero(labelled.pids > 0)
    pids, classes = np.unique(labelled.pids[rows], return_inverse=True)
    original = model = learn(initial, labelled.images, rows, classes, len(pids), recipe.pretraining, "pretrain")
    yield original, score(original), 0, None
    sizes, stop = [], None
    while stop is None:
        t = len(sizes) + 1
        options = {"clustering": recipe.clustering, "algorithm": recipe.algorithm, "centre_cameras": recipe.model.centre_cameras}
        features = extract(model, unlabelled.images)
        clusters, _ = cluster_features(features, unlabelled.camids, **options, seed=derive_seed(seed, t, "cluster"))
        reliable = select_reliable(clusters, recipe.selection)
        sizes.append(int((clusters.cluster[reliable.positions] >= 0).sum()))
        stop = reason_to_stop(sizes, recipe.stopping, num_clusters=len(clusters.centre), num_images=len(features))
        start = original if recipe.model.start_from == "original" else model
        model = learn(start, unlabelled.images, *reliable[:2], reliable.num_classes, recipe.fine_tuning, t)
        yield model, score(model), sizes[-1], stop


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--recipe", choices=RECIPES, default="paper")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--weights", choices=("imagenet", "random"), default="imagenet")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = {"backbone": args.backbone, "weights": args.weights, "height": args.size[0], "width": args.size[1]}
    recipe = replace(RECIPES[args.recipe], model=replace(RECIPES[args.recipe].model, **model))
    for t, (_, scores, num_reliable, stop) in enumerate(adapt(args.source, args.target, recipe, args.seed)):
        print(f"iteration {t}: {num_reliable} reliable images, rank-1 {scores.cmc[0]:.1%}, mAP {scores.mean_ap:.1%} {stop or ''}")
