"""The steps of the loop as the lab runs them, on `pul_core` alone; the models equal those of examples/pul_by_hand.py."""

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from lab_queue import Plan
from packed import Sets, Split
from torch import nn

from pul_core.arrays import Features, Ints
from pul_core.clustering.centring import centre_by_camera
from pul_core.clustering.cluster import cluster_features
from pul_core.learning.camera_statistics import CameraStatistics, estimate_statistics
from pul_core.learning.extraction import extract_features
from pul_core.learning.precision import inference_dtype, training_dtype
from pul_core.learning.style import cameras_or_groups
from pul_core.learning.training import begin_training, train
from pul_core.scoring.diagnostics import cluster_quality
from pul_core.scoring.evaluation import summarise
from pul_core.scoring.protocols import PROTOCOLS, FeatureSet, score_protocol
from pul_core.seeds import derive_seed
from pul_core.selection import select_reliable, similar_classes
from pul_core.settings import Training
from pul_core.stopping import reason_to_stop

Record = dict[str, Any]


class Loop(NamedTuple):
    """The images of a target, and where the loop stands."""

    train: Split
    original: nn.Module
    model: nn.Module  # of the last finished iteration
    statistics: CameraStatistics | None  # of that model
    records: list[Record]  # of all finished iterations, iteration 0 included


def training_images(original: nn.Module, plan: Plan, sets: Sets) -> Split:
    """Return the target's training images; style groups replace cameras that are unknown or that the recipe ignores."""
    part, seed = sets.split(plan.target_set, "train"), derive_seed(plan.seed, "style")
    options = {"seed": seed, "device": plan.device}
    return part._replace(camids=cameras_or_groups(original, part.pixels, part.camids, plan.recipe.statistics, **options))


def estimate(model: nn.Module, plan: Plan, part: Split) -> CameraStatistics | None:
    """Estimate the statistics of a model on the training images of the target, if the recipe uses them."""
    settings = plan.recipe.statistics
    options = {"seed": derive_seed(plan.seed, "statistics"), "device": plan.device}
    return estimate_statistics(model, part.pixels, part.camids, settings, **options) if settings.by_camera else None


def extract(model: nn.Module, statistics: CameraStatistics | None, part: Split, plan: Plan) -> Features:
    options = {"statistics": statistics, "camids": part.camids, "flip": plan.recipe.model.flip}
    return np.concatenate(list(extract_features(model, part.pixels, **options, device=plan.device, dtype=inference_dtype(plan.device))))


def learn(
    start: nn.Module,
    images: np.ndarray,
    rows: Ints,
    classes: Ints,
    num_classes: int,
    settings: Training,
    *,
    similar: Ints | None = None,
    seed: int,
    device: str,
) -> tuple[nn.Module, int]:
    """Train a copy of a model; return it and the number of images seen."""
    options = {"seed": seed, "device": device, "dtype": training_dtype(device)}
    training = begin_training(copy.deepcopy(start), settings, num_classes=num_classes, classes=classes, **options)
    return training.backbone, sum(epoch.images for epoch in train(training, images, rows, classes, settings, similar=similar, seed=seed))


def score_direct(original: nn.Module, plan: Plan, sets: Sets, train: Split) -> Record:
    """Score direct transfer, which uses no target image, and the same model with the target's statistics."""
    scores = score(original, None, plan, sets)
    if plan.recipe.statistics.by_camera:
        by_camera = score(original, estimate(original, plan, train), plan, sets)
        scores |= {f"{name}_statistics": value for name, value in by_camera.items()}
    return scores


def score(model: nn.Module, statistics: CameraStatistics | None, plan: Plan, sets: Sets) -> Record:
    """Score a model on the queries and the gallery of the target, on plain features and, if the recipe does so, on centred ones."""
    parts = [sets.split(plan.target_set, split) for split in ("query", "gallery")]
    plain = [extract(model, statistics, part, plan) for part in parts]
    if not plan.recipe.centre_scores:
        return score_features(plain, parts, plan.device)
    centred = centre_by_camera(np.concatenate(plain), np.concatenate([part.camids for part in parts]), device=plan.device)
    scores = score_features(plain, parts, plan.device)
    return score_features(np.split(centred, [len(plain[0])]), parts, plan.device) | {f"{name}_plain": scores[name] for name in scores}


def score_features(features: list[Features], parts: list[Split], device: str) -> Record:
    feature_sets = [FeatureSet(values, part.pids, part.camids) for values, part in zip(features, parts, strict=True)]
    summary = summarise(score_protocol(PROTOCOLS["market1501"], *feature_sets, device=device).scores)
    return {f"rank_{k}": float(summary.cmc[k - 1]) for k in (1, 5, 10)} | {"mAP": summary.mean_ap}


def train_source(plan: Plan, sets: Sets) -> nn.Module:
    """Train the original model on the identities of all sources; a number in two sources stands for two people."""
    parts = [sets.split(source, "train") for source in plan.sources]
    numbers = np.repeat(np.arange(len(parts)), [len(part.pids) for part in parts])
    identities = np.stack((numbers, np.concatenate([part.pids for part in parts])))
    rows = np.flatnonzero(identities[1] > 0)
    people, classes = np.unique(identities[:, rows], axis=1, return_inverse=True)
    images = parts[0].pixels if len(parts) == 1 else np.concatenate([part.pixels for part in parts])
    initial = sets.initial_model(plan.recipe.model, plan.seed)
    seed = derive_seed(plan.seed, "pretrain")
    return learn(initial, images, rows, classes, people.shape[1], plan.recipe.pretraining, seed=seed, device=plan.device)[0]


def iterate(loop: Loop, plan: Plan) -> tuple[nn.Module, Record]:
    """Run one iteration; return its model and its record, without scores."""
    recipe, t, seconds = plan.recipe, len(loop.records), {}
    options = {"clustering": recipe.clustering, "algorithm": recipe.algorithm, "centre_cameras": recipe.model.centre_cameras}
    with timed(seconds, "extract"):
        features = extract(loop.model, loop.statistics, loop.train, plan)
    with timed(seconds, "cluster"):
        seed = derive_seed(plan.seed, t, "cluster")
        clusters, prepared = cluster_features(features, loop.train.camids, **options, seed=seed, device=plan.device)
        rows, pseudo_labels, _, num_classes = reliable = select_reliable(clusters, recipe.selection)
        similar = similar_classes(reliable, clusters, prepared[clusters.centre], recipe.selection, device=plan.device)
    is_clustered = clusters.cluster[rows] >= 0
    sizes = [*(record["reliable"] for record in loop.records[1:]), int(np.count_nonzero(is_clustered))]
    start = loop.original if recipe.model.start_from == "original" else loop.model
    with timed(seconds, "fine_tune"):
        seed = derive_seed(plan.seed, t, "fine_tune")
        options = {"similar": similar, "seed": seed, "device": plan.device}
        model, images = learn(start, loop.train.pixels, rows, pseudo_labels, num_classes, recipe.fine_tuning, **options)
    of_clusters = cluster_quality(clusters.cluster, loop.train.pids)
    of_selected = cluster_quality(np.where(is_clustered, pseudo_labels, -1), loop.train.pids[rows])
    return model, {
        "reliable": sizes[-1],
        "clusters": len(clusters.centre),
        "clustered": int(np.count_nonzero(clusters.cluster >= 0)),
        "images_seen": loop.records[-1]["images_seen"] + images,
        "oracle_purity": of_selected and of_selected.purity,
        "oracle_nmi": of_clusters and of_clusters.nmi,
        "oracle_clusters_per_person": of_clusters and of_clusters.clusters_per_person,
        "stop": reason_to_stop(
            sizes,
            recipe.stopping,
            num_clusters=len(clusters.centre),
            num_images=len(features),
            by_density=recipe.clustering.algorithm == "dbscan",
        ),
        "seconds": seconds,
    }


@contextlib.contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - started, 2)
