"""What can be known before hours are spent: whether the data can work at all, and how long, how much disk and memory a run will take."""

import itertools
import logging
import resource
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pul_core.clustering.kmeans import default_num_clusters
from pul_core.errors import DataError
from pul_core.identities import DISTRACTOR_PID
from pul_core.learning.backbone import build_backbone
from pul_core.learning.extraction import extract_features
from pul_core.learning.training import begin_training, train
from tasks.data.check import Finding, Report, check_set, evaluation_findings, file_findings, identity_findings, usable
from tasks.data.layouts import read_layout
from tasks.engine.compute import prepare
from tasks.engine.progress import step_logger
from tasks.index import dataset_root, index
from tasks.store.artifacts import column, read_table
from tasks.store.references import Compute, ImageSet, Reference
from tasks.training import core_arguments

PROBE_BATCHES = 4
KMEANS_PASSES = 25  # typical; the limit is only rarely reached


class Counts(Reference):
    """How many images of a set belong to each split, and how many identities its training split has (0 unknown)."""

    splits: dict[str, int]
    identities: int = 0


class Estimate(Reference):
    """What a run will take, at most: the reliable set counted as if it were everything."""

    pretrain_seconds: float
    iteration_seconds: float
    disk_bytes: int
    disk_bytes_an_iteration: int
    memory_bytes: int


def count_images(path: str, layout: str | None = None, pattern: str | None = None) -> Counts:
    """List a data set without opening an image.

    Raises:
        DataError: it cannot be used.
    """
    splits: Counter[str] = Counter()
    pids = set[int | str]()
    for image in read_layout(dataset_root(path), layout, pattern)[1]:
        splits[image.split] += 1
        if image.split == "train" and image.pid is not None and (isinstance(image.pid, str) or image.pid > DISTRACTOR_PID):
            pids.add(image.pid)
    return Counts(splits=dict(sorted(splits.items())), identities=len(pids))


def add_counts(sets: list[Counts], names: list[str]) -> Counts:
    """Count several sources as one: identities are kept apart.

    Raises:
        DataError: one of several brings nothing.
    """
    for one, name in zip(sets, names, strict=True):
        if len(sets) > 1 and one.identities == 0:
            raise DataError(f"source {name} has no identities to train on: state its layout, or leave it out")
    splits = {split: sum(one.splits.get(split, 0) for one in sets) for one in sets for split in one.splits}
    return Counts(splits=splits, identities=sum(one.identities for one in sets))


def check_path(path: str, layout: str | None = None, pattern: str | None = None) -> tuple[Report, ImageSet | None]:
    """Index a data set and check it; what cannot be indexed is a finding too.

    Args:
        path: as `index` takes it.
        layout: as `index` takes it.
        pattern: as `index` takes it.

    Returns:
        The report, and the indexed set if there is one.
    """
    try:
        images = index.fn(path, "check", layout, pattern)
    except DataError as error:
        finding = Finding(code="not_a_data_set", severity="error", count=1, examples=[], advice=str(error))
        nothing: dict[str, Any] = {"images": 0, "identities": None, "cameras": None, "splits": {}, "sizes": {}}
        return Report(path=path, layout=layout, findings=[finding], verdict="unusable", **nothing), None
    return check_set(images), images


def check_sets(
    sources: list[ImageSet], target: ImageSet | None, *, original_model: str | None = None, num_clusters: int | None = None
) -> None:
    """Warn of what is wrong with the indexed sets of a run and refuse what cannot work, before hours are spent.

    A target's identities decide nothing here: what they tell is about scores, and is only noted.

    Args:
        sources: the labelled sets; empty when a model is brought.
        target: the unlabelled set; None if a source model is all that is wanted.
        original_model: as `check` takes it.
        num_clusters: as `check` takes it.

    Raises:
        DataError: in one sentence, what to change.
    """
    learnt = add_counts([_look_at_source(source) for source in sources], [source.name for source in sources]) if sources else None
    unlabelled = _look_at_target(target) if target else None
    check(learnt, unlabelled, original_model=original_model, num_clusters=num_clusters)


def _look_at_source(images: ImageSet) -> Counts:
    table, labels = read_table(images.images), read_table(images.labels) if images.labels else None
    _say("source", logging.WARNING, itertools.chain(file_findings(table), identity_findings(table, labels)))
    pids = column(labels, "pid")[usable(table) & (np.asarray(table["split"]) == "train")] if labels else np.zeros(0)
    return Counts(splits=_count_usable(images, table), identities=len(np.unique(pids[pids > DISTRACTOR_PID])))


def _look_at_target(images: ImageSet) -> Counts:
    table = read_table(images.images)
    _say("target", logging.WARNING, file_findings(table))
    _say("target", logging.INFO, evaluation_findings(table, read_table(images.labels) if images.labels else None))
    return Counts(splits=_count_usable(images, table))


def _say(role: str, level: int, findings: Iterable[Finding]) -> None:
    for finding in findings:
        shown = f" ({', '.join(map(ascii, finding.examples))})" if finding.examples else ""
        quiet = logging.INFO if finding.severity == "info" else level
        step_logger().log(quiet, "%s: %s, %s%s: %s", role, finding.code, f"{finding.count:,}", shown, finding.advice)


def _count_usable(images: ImageSet, table: pa.Table) -> dict[str, int]:
    split = np.asarray(table["split"])[usable(table)]
    return {name: int((split == name).sum()) for name in images.splits}


def check(source: Counts | None, target: Counts | None, *, original_model: str | None = None, num_clusters: int | None = None) -> None:
    """Refuse what cannot work.

    Args:
        source: counts of the labelled set; None when a model is brought.
        target: counts of the unlabelled set; None if a source model is all that is wanted.
        original_model: the model that is brought.
        num_clusters: K of k-means; None for the default, which always fits.

    Raises:
        DataError: in one sentence, what to change.
    """
    if source is None and original_model is None:
        raise DataError("a run needs a labelled source (--source DIR) or a trained model (--original-model FILE or an earlier run's name)")
    if source is not None and original_model is not None:
        raise DataError("give either a source to train on or an original model, not both")
    if source is not None and source.identities < 2:
        raise DataError(
            f"the source has {source.identities} identities to train on, but at least 2 are needed: give a published set, a manifest with "
            "a column identity, or state the layout (folder-per-identity, or pattern with its pattern)"
        )
    if target is None:
        return
    images = target.splits.get("train", 0)
    if images < 4:
        raise DataError(f"the target has {images} training images that can be used; two clusters of two images are the least to learn from")
    if empty := [split for split, count in target.splits.items() if count == 0]:
        raise DataError(f"none of the target's {empty[0]} images can be decoded: copy them again, or leave the split out")
    if num_clusters is not None and num_clusters > images:
        raise DataError(f"num_clusters is {num_clusters}, but the target has only {images} training images: choose fewer clusters")


def estimate(plan: dict[str, Any], source: Counts | None, target: Counts, compute: Compute) -> Estimate:
    """Train and extract a few batches of noise and extend what that took to the whole run.

    Args:
        plan: the resolved parameters.
        source: its counts; None when a model is brought.
        target: its counts.
        compute: device, threads, precision.
    """
    prepare(compute)
    model = plan["model"]
    h, w = model["height"], model["width"]
    n = target.splits["train"]
    k = plan["clustering"]["num_clusters"] or default_num_clusters(n)
    train_speed, extract_speed, d, parameters = _probe(model["backbone"], plan["fine_tuning"], h, w, k, compute)
    scored = target.splits.get("query", 0) + target.splits.get("gallery", 0)
    remembered = n if plan["fine_tuning"]["loss"] != "softmax" else 0  # a memory begins with features of its own
    learnt = source.splits["train"] if source else 0
    pixels = (learnt + n + scored) * h * w * 3
    weights = 2 * 4 * parameters  # in the artifact store and in MLflow
    return Estimate(
        pretrain_seconds=learnt * plan["pretraining"]["epochs"] / train_speed,
        iteration_seconds=(n + scored + remembered) / extract_speed
        + n * plan["fine_tuning"]["epochs"] / train_speed
        + plan["clustering"]["num_restarts"] * _kmeans_seconds(n, k, d),
        disk_bytes=pixels + weights + (n + scored) * d * 4,
        disk_bytes_an_iteration=weights + (n + scored) * d * 4,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 3 * n * d * 4,
    )


def _probe(backbone_name: str, settings: dict[str, Any], h: int, w: int, k: int, compute: Compute) -> tuple[float, float, int, int]:
    """Return images/s in training and in extraction, the features' length and the number of weights."""
    backbone = build_backbone(backbone_name)
    b = settings["batch_size"]
    images = np.random.default_rng(0).integers(0, 256, (PROBE_BATCHES * b, h, w, 3), np.uint8)
    classes = np.arange(len(images)) % max(k, 2)
    begin, rest = core_arguments(settings | {"epochs": 2, "erase_probability": 0})
    training = begin_training(backbone, num_classes=max(k, 2), classes=classes, seed=0, device=compute.device, **begin)
    started = []
    for _ in train(training, images, np.arange(len(images)), classes, seed=0, device=compute.device, bf16=compute.bf16_training, **rest):
        started.append(time.monotonic())  # the first epoch warms up
    train_speed = len(images) / (started[1] - started[0])
    before = time.monotonic()
    for _ in extract_features(backbone, images, device=compute.device, bf16=compute.bf16_inference):
        pass
    parameters = sum(tensor.numel() for tensor in backbone.parameters())
    return train_speed, len(images) / (time.monotonic() - before), int(backbone.num_features), parameters  # type: ignore[arg-type]


def _kmeans_seconds(n: int, k: int, d: int) -> float:
    """Time one product of a block of distances and count how many of them seeding and passes need."""
    rows = min(n, 2048)
    block, centroids = torch.rand(rows, d), torch.rand(k, d)
    block @ centroids.T
    started = time.monotonic()
    block @ centroids.T
    seconds = time.monotonic() - started
    trials = 2 + int(np.log(max(k, 2)))
    return n / rows * seconds * (KMEANS_PASSES + 2 * trials)  # a seeding trial is a thinner, slower product
