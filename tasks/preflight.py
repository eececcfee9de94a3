"""Checks before a run: whether its data and model can work at all, and an estimate of its time, disk space and memory."""

import itertools
import logging
import resource
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import torch

from pul_core.clustering.kmeans import default_num_clusters
from pul_core.clustering.suggestion import MIN_IMAGES
from pul_core.errors import DataError, UserError
from pul_core.identities import DISTRACTOR_PID
from pul_core.learning.backbone import build_backbone
from pul_core.learning.extraction import extract_features
from pul_core.learning.training import begin_training, train
from pul_core.scoring.evaluation import Unscored
from pul_core.scoring.protocols import ProtocolName
from pul_core.scoring.ranks import Ties
from pul_core.settings import KMeans
from tasks.data.check import Finding, Report, check_set, evaluation_findings, file_findings, identity_findings, usable
from tasks.data.layouts import read_layout
from tasks.engine.compute import Resources, prepare, resolve_compute
from tasks.engine.progress import step_logger
from tasks.index import dataset_root, index
from tasks.models import model_file
from tasks.store.artifacts import column, read_table
from tasks.store.config import Plan, resolve_plan
from tasks.store.references import ImageSet, Reference

PROBE_BATCHES = 4
KMEANS_PASSES = 25  # typical; the limit is only rarely reached
MIN_TRAINING_IMAGES = 4
CHOICES: dict[str, tuple[str, ...]] = {"protocol": get_args(ProtocolName), "ties": get_args(Ties), "unscored": get_args(Unscored)}


class Counts(Reference):
    """The number of images per split of a data set, and of identities in its training split (0: unknown)."""

    splits: dict[str, int]
    identities: int = 0


class Estimate(Reference):
    """What a run takes at most: the reliable set is counted as if it held every image."""

    pretrain_seconds: float
    iteration_seconds: float
    disk_bytes: int
    disk_bytes_an_iteration: int
    memory_bytes: int


class ValidatedRun(NamedTuple):
    """A plan whose data and model exist, with the size of its data sets."""

    plan: Plan
    source: Counts | None
    target: Counts


def validate_run(parameters: Mapping[str, Any]) -> ValidatedRun:
    """Resolve the parameters of flow `pul` and check its data and model, without opening an image.

    Raises:
        UserError: the run cannot work.
    """
    plan = resolve_plan(parameters)
    data = (plan.source_data.layout, plan.source_data.pattern)
    source = add_counts([count_images(path, *data) for path in plan.source], list(plan.source)) if plan.source else None
    target = count_images(plan.target, plan.target_data.layout, plan.target_data.pattern)
    if plan.original_model:
        with model_file(plan.original_model):
            pass
    check_counts(source, target, plan)
    return ValidatedRun(plan, source, target)


def validate_evaluation(model: str, data: str, layout: str | None = None, pattern: str | None = None, **policies: str) -> None:
    """Check the parameters, the data and the model of flow `evaluate`.

    Raises:
        UserError: nothing can be scored.
    """
    for name, value in policies.items():
        if value not in CHOICES[name]:
            raise UserError(f"{name} must be one of {', '.join(CHOICES[name])}, got {value!r}")
    with model_file(model):
        pass
    splits = count_images(data, layout, pattern).splits
    if not (splits.get("query") and splits.get("gallery")):
        raise DataError(f"{data} has no queries and gallery with identities: give a data set that has both")


def validate_suggestion(model: str, data: str, layout: str | None = None, pattern: str | None = None) -> None:
    """Check the data and the model of flow `suggest`.

    Raises:
        UserError: nothing can be suggested.
    """
    with model_file(model):
        pass
    images = count_images(data, layout, pattern).splits.get("train", 0)
    if images < MIN_IMAGES:
        raise DataError(f"{data} has {images} training images, but a suggestion requires at least {MIN_IMAGES}: give more images")


def count_images(path: str, layout: str | None = None, pattern: str | None = None) -> Counts:
    """Count the images and identities of a data set without opening an image.

    Raises:
        DataError: the data set cannot be used.
    """
    splits: Counter[str] = Counter()
    pids = set[int | str]()
    for image in read_layout(dataset_root(path), layout, pattern)[1]:
        splits[image.split] += 1
        if image.split == "train" and image.pid is not None and (isinstance(image.pid, str) or image.pid > DISTRACTOR_PID):
            pids.add(image.pid)
    return Counts(splits=dict(sorted(splits.items())), identities=len(pids))


def add_counts(counts: list[Counts], names: list[str]) -> Counts:
    """Return the counts of several sources together; their identities are different people.

    Raises:
        DataError: one of several sources has no identities.
    """
    for source, name in zip(counts, names, strict=True):
        if len(counts) > 1 and source.identities == 0:
            raise DataError(f"source {name} has no identities to train on: state its layout, or leave it out")
    splits = {split: sum(source.splits.get(split, 0) for source in counts) for source in counts for split in source.splits}
    return Counts(splits=splits, identities=sum(source.identities for source in counts))


def check_path(path: str, layout: str | None = None, pattern: str | None = None) -> tuple[Report, ImageSet | None]:
    """Index a data set and check it; a set that cannot be indexed is reported as a finding.

    Args:
        path: as for `index`.
        layout: as for `index`.
        pattern: as for `index`.

    Returns:
        The report, and the indexed set; None if it could not be indexed.
    """
    try:
        images = index.fn(path, "check", layout, pattern)
    except DataError as error:
        finding = Finding(code="not_a_data_set", severity="error", count=1, examples=[], advice=str(error))
        empty: dict[str, Any] = {"images": 0, "identities": None, "cameras": None, "splits": {}, "sizes": {}}
        return Report(path=path, layout=layout, findings=[finding], verdict="unusable", **empty), None
    return check_set(images), images


def check_sets(sources: list[ImageSet], target: ImageSet | None, plan: Plan) -> None:
    """Log the findings about the indexed sets of a run, and refuse a run that cannot work.

    The target's identities only affect scores, so findings about them are logged and never refuse a run.

    Args:
        sources: the labelled sets; empty if the run starts from a given model.
        target: the unlabelled set; None if only a source model is trained.
        plan: of the run.

    Raises:
        DataError: the run cannot work.
    """
    labelled = add_counts([_check_source(source) for source in sources], [source.name for source in sources]) if sources else None
    check_counts(labelled, _check_target(target) if target else None, plan)


def _check_source(images: ImageSet) -> Counts:
    table, labels = read_table(images.images), read_table(images.labels) if images.labels else None
    _log_findings("source", logging.WARNING, itertools.chain(file_findings(table), identity_findings(table, labels)))
    pids = column(labels, "pid")[usable(table) & (np.asarray(table["split"]) == "train")] if labels else np.zeros(0)
    return Counts(splits=_count_usable(images, table), identities=len(np.unique(pids[pids > DISTRACTOR_PID])))


def _check_target(images: ImageSet) -> Counts:
    table = read_table(images.images)
    _log_findings("target", logging.WARNING, file_findings(table))
    _log_findings("target", logging.INFO, evaluation_findings(table, read_table(images.labels) if images.labels else None))
    return Counts(splits=_count_usable(images, table))


def _log_findings(role: str, level: int, findings: Iterable[Finding]) -> None:
    for finding in findings:
        examples = f" ({', '.join(map(ascii, finding.examples))})" if finding.examples else ""
        finding_level = logging.INFO if finding.severity == "info" else level
        step_logger().log(finding_level, "%s: %s, %s%s: %s", role, finding.code, f"{finding.count:,}", examples, finding.advice)


def _count_usable(images: ImageSet, table: pa.Table) -> dict[str, int]:
    split = np.asarray(table["split"])[usable(table)]
    return {name: int((split == name).sum()) for name in images.splits}


def check_counts(source: Counts | None, target: Counts | None, plan: Plan) -> None:
    """Refuse a run whose data cannot work.

    Args:
        source: counts of the labelled set; None if the run starts from a given model.
        target: counts of the unlabelled set; None if only a source model is trained.
        plan: of the run.

    Raises:
        DataError: the run cannot work.
    """
    if source is None and plan.original_model is None:
        raise DataError(
            "a run requires a labelled source or a trained model: give --source DIR, or --original-model FILE or an earlier run's name"
        )
    if source is not None and plan.original_model is not None:
        raise DataError("both a source and an original model were given: leave one of them out")
    if source is not None and source.identities < 2:
        raise DataError(
            f"the source has {source.identities} identities to train on, but training requires at least 2: give a published set, a "
            "manifest with a column identity, or state the layout (folder-per-identity, or pattern with its pattern)"
        )
    if target is None:
        return
    images = target.splits.get("train", 0)
    if images < MIN_TRAINING_IMAGES:
        raise DataError(f"the target has {images} usable training images, but a run requires at least {MIN_TRAINING_IMAGES}: add images")
    if empty := [split for split, count in target.splits.items() if count == 0]:
        raise DataError(f"none of the target's {empty[0]} images can be decoded: copy them again, or leave the split out")
    if isinstance(plan.algorithm, KMeans) and plan.algorithm.num_clusters > images:
        raise DataError(
            f"num_clusters is {plan.algorithm.num_clusters}, but the target has only {images} training images: choose fewer clusters"
        )


def estimate_run(run: ValidatedRun) -> Estimate:
    """Train and extract a few batches of noise, and extrapolate the time they take to the whole run."""
    plan, source, target = run
    compute = resolve_compute(plan.machine)
    prepare(compute.host)
    n = target.splits["train"]
    k = plan.kmeans.num_clusters or default_num_clusters(n)
    train_speed, extract_speed, d, parameters = _probe(plan, k, compute)
    scored = target.splits.get("query", 0) + target.splits.get("gallery", 0)
    memory_images = n if plan.fine_tuning.memory.entries != "none" else 0  # a memory is initialised with features
    source_images = source.splits["train"] if source else 0
    pixels = (source_images + n + scored) * plan.model.height * plan.model.width * 3
    weights = 2 * 4 * parameters  # in the artifact store and in MLflow
    features = (n + scored) * d * 4
    return Estimate(
        pretrain_seconds=source_images * plan.pretraining.epochs / train_speed,
        iteration_seconds=(n + scored + memory_images) / extract_speed
        + n * plan.fine_tuning.epochs / train_speed
        + plan.kmeans.num_restarts * _kmeans_seconds(n, k, d),
        disk_bytes=pixels + weights + features,
        disk_bytes_an_iteration=weights + features,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 3 * n * d * 4,
    )


def _probe(plan: Plan, num_classes: int, compute: Resources) -> tuple[float, float, int, int]:
    """Return images/s of training and of extraction, the length of a feature, and the number of weights."""
    backbone = build_backbone(plan.model.backbone)
    settings = replace(plan.fine_tuning, epochs=2, augmentation=replace(plan.fine_tuning.augmentation, erase_probability=0))
    shape = (PROBE_BATCHES * settings.batch_size, plan.model.height, plan.model.width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rows = np.arange(len(images))
    classes = rows % max(num_classes, 2)
    device = compute.training.device
    training = begin_training(backbone, settings, num_classes=max(num_classes, 2), classes=classes, seed=0, device=device)
    epoch_ends = []
    for _ in train(training, images, rows, classes, settings, seed=0, device=device, bf16=compute.training.bf16):
        epoch_ends.append(time.monotonic())  # the first epoch is a warm-up
    train_speed = len(images) / (epoch_ends[1] - epoch_ends[0])
    started = time.monotonic()
    for _ in extract_features(backbone, images, device=device, bf16=compute.inference.bf16):
        pass
    parameters = sum(tensor.numel() for tensor in backbone.parameters())
    return train_speed, len(images) / (time.monotonic() - started), int(backbone.num_features), parameters  # type: ignore[arg-type]


def _kmeans_seconds(n: int, k: int, d: int) -> float:
    """Time one block of distances, and multiply by the number of blocks that seeding and the passes compute."""
    rows = min(n, 2048)
    block, centroids = torch.rand(rows, d), torch.rand(k, d)
    block @ centroids.T
    started = time.monotonic()
    block @ centroids.T
    seconds = time.monotonic() - started
    trials = 2 + int(np.log(max(k, 2)))
    return n / rows * seconds * (KMEANS_PASSES + 2 * trials)  # a seeding trial is a thinner, slower product
