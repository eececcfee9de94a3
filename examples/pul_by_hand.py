"""Progressive Unsupervised Learning (Fan et al. 2018) in one file, on `pul_core` alone: no Prefect, no MLflow, and no files but its input.

A model is trained on a labelled source. Then, until the size of the reliable set is stable: extract the features of the unlabelled target,
cluster them, select the reliable images, and fine-tune the original model (`modern`: the last one) on these with their clusters as classes.

    python examples/pul_by_hand.py synthetic:0/source synthetic:0/target --backbone mobilenetv2_100 --size 96 48
    python examples/pul_by_hand.py data/market1501 data/mine --recipe modern

Data are synthetic people, or folders like Market-1501. With equal parameters, machine and threads, the models equal those of `pul run`.
"""

import argparse
import copy
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from pul_core.clustering.centring import centre_by_camera
from pul_core.clustering.cluster import cluster_features
from pul_core.learning.backbone import architecture, build_backbone
from pul_core.learning.camera_statistics import CameraStatistics, estimate_statistics
from pul_core.learning.extraction import extract_features
from pul_core.learning.precision import inference_dtype, training_dtype
from pul_core.learning.style import cameras_or_groups
from pul_core.learning.training import begin_training, train
from pul_core.recipes import RECIPES
from pul_core.scoring.evaluation import Summary, summarise
from pul_core.scoring.protocols import PROTOCOLS, FeatureSet, score_protocol
from pul_core.seeds import derive_seed
from pul_core.selection import select_reliable, similar_classes
from pul_core.settings import Recipe, Training
from pul_core.stopping import reason_to_stop
from pul_core.synthetic.people import draw_image, plan_domain


def read_split(path: str, folder: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read or draw a folder and return its images (n, height, width, 3), identities (n,) and cameras (n,), in the order of file names."""
    files = {file.name: file for file in Path(path, folder).glob("[!.]*.jpg")}
    if match := re.fullmatch(r"synthetic:(\d+)/(source|target)", path):
        seed, domain = int(match[1]), match[2]
        plan = [image for image in plan_domain(domain, seed) if image.folder == folder]
        files = {image.file_name: io.BytesIO() for image in plan}
        for image in plan:
            Image.fromarray(draw_image(domain, seed, image)).save(files[image.file_name], format="JPEG", quality=90)
    names = sorted(files)
    images = [ImageOps.exif_transpose(Image.open(files[name])).convert("RGB") for name in names]
    pixels = np.stack([np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)) for image in images])
    return pixels, *np.array([re.match(r"(-?\d+)_c(\d+)", name).groups() for name in names], np.int64).T


def adapt(source: str, target: str, recipe: Recipe, seed: int = 0) -> Iterator[tuple[nn.Module, Summary, int, str | None]]:
    """Yield, for the original model and then for each iteration: model, scores, size of the reliable set, and reason to stop."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = (recipe.model.height, recipe.model.width)
    labelled, unlabelled = (read_split(path, "bounding_box_train", size) for path in (source, target))
    query, gallery = (read_split(target, folder, size) for folder in ("query", "bounding_box_test"))

    def estimate(model: nn.Module) -> CameraStatistics | None:
        options = {"seed": derive_seed(seed, "statistics"), "device": device}
        return estimate_statistics(model, unlabelled[0], cameras, recipe.statistics, **options) if recipe.statistics.by_camera else None

    def extract(model: nn.Module, statistics: CameraStatistics | None, images: np.ndarray, _: np.ndarray, camids: np.ndarray) -> np.ndarray:
        options = {"statistics": statistics, "camids": camids, "device": device, "dtype": inference_dtype(device)}
        return np.concatenate(list(extract_features(model, images, flip=recipe.model.flip, **options)))

    def learn(start: nn.Module, images, rows, classes, num_classes: int, settings: Training, *step, similar=None) -> nn.Module:
        options = {"seed": derive_seed(seed, *step), "device": device, "dtype": training_dtype(device)}
        training = begin_training(copy.deepcopy(start), settings, num_classes=num_classes, classes=classes, **options)
        for epoch in train(training, images, rows, classes, settings, similar=similar, seed=options["seed"]):
            print(f"  epoch {epoch.epoch}: loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.3f}")
        return training.backbone

    def score(model: nn.Module, statistics: CameraStatistics | None) -> Summary:
        features = [extract(model, statistics, *split) for split in (query, gallery)]
        if recipe.centre_scores:
            features = np.split(centre_by_camera(np.concatenate(features), np.append(query[2], gallery[2]), device=device), [len(query[2])])
        sets = [FeatureSet(part, pids, camids) for part, (_, pids, camids) in zip(features, (query, gallery), strict=True)]
        return summarise(score_protocol(PROTOCOLS["market1501"], *sets, device=device).scores)

    initial = build_backbone(**architecture(recipe.model), pretrained=recipe.model.weights == "imagenet", seed=derive_seed(seed, "initial"))
    pids, classes = np.unique(labelled[1][labelled[1] > 0], return_inverse=True)
    original = model = learn(initial, labelled[0], np.flatnonzero(labelled[1] > 0), classes, len(pids), recipe.pretraining, "pretrain")
    yield original, score(original, None), 0, None
    cameras = cameras_or_groups(original, *unlabelled[::2], recipe.statistics, seed=derive_seed(seed, "style"), device=device)
    options = {"clustering": recipe.clustering, "algorithm": recipe.algorithm, "centre_cameras": recipe.model.centre_cameras}
    sizes, stop, statistics, by_density = [], None, estimate(original), recipe.clustering.algorithm == "dbscan"
    while stop is None:
        t = len(sizes) + 1
        features = extract(model, statistics, *unlabelled[:2], cameras)
        clusters, prepared = cluster_features(features, cameras, **options, seed=derive_seed(seed, t, "cluster"), device=device)
        rows, pseudo_labels, _, num_classes = reliable = select_reliable(clusters, recipe.selection)
        similar = similar_classes(reliable, clusters, prepared[clusters.centre], recipe.selection, device=device)
        sizes.append(np.count_nonzero(clusters.cluster[rows] >= 0))
        stop = reason_to_stop(sizes, recipe.stopping, num_clusters=len(clusters.centre), num_images=len(features), by_density=by_density)
        start = original if recipe.model.start_from == "original" else model
        model = learn(start, unlabelled[0], rows, pseudo_labels, num_classes, recipe.fine_tuning, t, "fine_tune", similar=similar)
        yield model, score(model, statistics := estimate(model)), sizes[-1], stop


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
    recipe, (height, width) = RECIPES[args.recipe], args.size
    recipe = replace(recipe, model=replace(recipe.model, backbone=args.backbone, weights=args.weights, height=height, width=width))
    for t, (_, scores, num_reliable, stop) in enumerate(adapt(args.source, args.target, recipe, args.seed)):
        print(f"iteration {t}: {num_reliable} reliable images, rank-1 {scores.cmc[0]:.1%}, mAP {scores.mean_ap:.1%} {stop or ''}")
