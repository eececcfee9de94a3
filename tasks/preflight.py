"""Checks before a run: whether its parameters, data and model can be used, and an estimate of its time, disk space and memory."""

import logging
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from pydantic import Field
from torch import nn

from pul_core.arrays import Features
from pul_core.clustering.density import cluster_by_density
from pul_core.clustering.kmeans import cluster_by_kmeans, default_num_clusters
from pul_core.clustering.neighbours import nearest_neighbours, neighbours_by_camera
from pul_core.clustering.possible_neighbours import possible_neighbours
from pul_core.clustering.suggestion import MIN_IMAGES
from pul_core.errors import DataError, UserError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID, NO_CAMERA, identity_in_split
from pul_core.learning.backbone import architecture, build_backbone, check_backbone
from pul_core.learning.camera_statistics import batch_norm_layers
from pul_core.learning.extraction import extract_features
from pul_core.learning.foreign_weights import shape_of
from pul_core.learning.style import style_layer
from pul_core.learning.training import begin_training, train
from pul_core.recipes import RECIPES, RecipeName, choose_recipe
from pul_core.scoring.evaluation import Unscored
from pul_core.scoring.protocols import ProtocolName
from pul_core.scoring.ranks import Ties
from pul_core.settings import Algorithm, Data, Dbscan, KMeans, Machine, Model, Statistics
from tasks.data.check import (
    ADVICE,
    Finding,
    Report,
    answerable_queries,
    camera_findings,
    check_set,
    count_identities,
    crop_findings,
    evaluation_findings,
    file_findings,
    has_single_camera,
    identity_findings,
    listing_findings,
    usable_rows,
)
from tasks.data.layouts import read_layout
from tasks.data.options import with_role
from tasks.engine.compute import Resources, available_cores, nvidia_problem, prepare, resolve_compute
from tasks.engine.progress import step_logger
from tasks.index import dataset_root, index
from tasks.models import check_weights, complete_plan, describe_model
from tasks.store.artifacts import Artifact, check_artifact_root, column, read_table
from tasks.store.config import AUTO, Overrides, Plan, override, requested, resolve_plan
from tasks.store.home import user_path
from tasks.store.readers import camids
from tasks.store.references import ImageSet, Reference

PROBE_BATCHES = 4  # batches that are timed for an estimate
FEW_IMAGES = 5  # times as many images as DBSCAN's neighbours, or fewer, are probably all in one cluster
SAMPLE = 2048  # images that are clustered for an estimate
MIN_TRAINING_IMAGES = 4
CHOICES: dict[str, tuple[str, ...]] = {"protocol": get_args(ProtocolName), "ties": get_args(Ties), "unscored": get_args(Unscored)}


class Counts(Reference):
    """The size of a data set: the number of images in each split, and what else decides whether a run or a score is possible."""

    splits: dict[str, int]
    identities: int = 0  # in the training split; 0 if unknown
    problems: dict[str, int] = Field(default_factory=dict)  # number of images of each problem, which the splits do not count
    camera_sizes: tuple[int, ...] = ()  # number of training images on each known camera
    single_camera: bool = False  # whether all query and gallery images are from one known camera
    labelled_queries: bool = False  # whether a query image has an identity


class Estimate(Reference):
    """The time, disk space and memory that a run requires at most, i.e. if the reliable set holds every image."""

    pretrain_seconds: float
    iteration_seconds: float
    disk_bytes: int
    disk_bytes_per_iteration: int
    memory_bytes: int


class ValidatedRun(NamedTuple):
    """A plan whose data and model exist, and the sizes of its data sets."""

    plan: Plan
    source: Counts | None
    target: Counts
    warnings: tuple[str, ...] = ()
    recipe_reason: str = ""  # why the recipe auto stands for the one of the plan; empty if auto was not requested


def validate_run(parameters: Mapping[str, Any]) -> ValidatedRun:
    """Resolve the parameters of flow `pul` and check its data and model, without opening an image.

    Raises:
        UserError: a parameter, the data or the model cannot be used.
    """
    plan, reason = checked_plan(parameters), ""
    target = _count_in_role("target", plan.target, plan.target_data)
    if (parameters.get("recipe") or AUTO) == AUTO:
        recipe, reason = recipe_for(parameters, target, plan.model)
        plan = checked_plan(parameters, recipe)
    sources = [_count_in_role("source", path, plan.source_data) for path in plan.source]
    source = add_counts(sources, plan.source) if sources else None
    check_counts(source, target, plan)
    _check_few_labels(target, plan)
    return ValidatedRun(plan, source, target, tuple(run_warnings(target, plan)), reason)


def recipe_for(parameters: Mapping[str, Any], target: Counts, model: Model) -> tuple[RecipeName, str]:
    """Return the recipe that auto stands for on a target, and the reason in words: see `choose_recipe`; paper if k-means is requested.

    Args:
        parameters: of the run.
        target: counts of the target.
        model: the network. If it has no style layer, `modern` requires known cameras.
    """
    if requested(parameters, "clustering").algorithm == "kmeans" or any(value is not None for _, value in requested(parameters, "kmeans")):
        return "paper", "k-means is requested"
    modern = RECIPES["modern"]
    dbscan, statistics = (override(getattr(modern, name), requested(parameters, name)) for name in ("dbscan", "statistics"))
    if not _has_layer(model, style_layer):
        statistics = replace(statistics, style_groups=0)
    return choose_recipe(target.splits.get("train", 0), target.camera_sizes, dbscan, statistics)


def log_recipe(recipe: RecipeName, reason: str) -> None:
    """Log which recipe auto chose, and why. Unlike the first line of the command, this counts only images that can be decoded."""
    step_logger().info("recipe %s (auto: %s)", recipe, reason)


def checked_plan(parameters: Mapping[str, Any], auto: RecipeName = "paper") -> Plan:
    """Resolve the parameters of flow `pul`, and check what only a library would reject.

    Args:
        parameters: as for `resolve_plan`.
        auto: as for `resolve_plan`.

    Raises:
        UserError: as for `check_plan`.
    """
    plan = complete_plan(resolve_plan(parameters, auto))
    return check_plan(plan, requested(parameters, "statistics"))


def check_plan(plan: Plan, form: Any = None) -> Plan:
    """Check what only a library would reject: the machine, the backbone with its input size and layers, and the initial weights.

    Args:
        plan: of a run.
        form: the settings of the section ``statistics`` that the user set; all others have the values of the recipe.

    Returns:
        The plan; without statistics by camera or style groups, if only the recipe sets them and the backbone has no BatchNorm for them.

    Raises:
        UserError: one of them cannot be used.
    """
    check_machine(plan.machine)
    check_backbone(**architecture(plan.model))
    if plan.source:
        check_weights(plan.model.weights, plan.model.backbone)
    if not plan.statistics.by_camera:
        return plan
    if _has_layer(plan.model, batch_norm_layers, must_have=form is not None and form.by_camera is not None):
        if not plan.statistics.style_groups or _has_layer(plan.model, style_layer, must_have=bool(form and form.style_groups)):
            return plan
        step_logger().info("statistics.style_groups is 0, because %s has no BatchNorm layer of a feature map", plan.model.backbone)
        return replace(plan, statistics=replace(plan.statistics, style_groups=0))
    # The epsilon of the recipe is one of whitened features.
    is_of_recipe = plan.dbscan.max_distance == RECIPES[plan.recipe].dbscan.max_distance
    dbscan = replace(plan.dbscan, max_distance=Dbscan.max_distance) if is_of_recipe else plan.dbscan
    step_logger().info(
        "statistics.by_camera is false and dbscan.max_distance %g, because %s has no BatchNorm layer",
        dbscan.max_distance,
        plan.model.backbone,
    )
    return replace(plan, statistics=replace(plan.statistics, by_camera=False), dbscan=dbscan)


def _has_layer(model: Model, find: Callable[[nn.Module], object], *, must_have: bool = False) -> bool:
    """Return whether the network has the layers that a function finds; with ``must_have`` its error is raised if it has none."""
    try:
        return bool(find(shape_of(**architecture(model))))
    except UserError:
        if must_have:
            raise
        return False


def check_machine(machine: Machine) -> None:
    """Check that this machine has the device, and that artifacts can be written; log if its cores or its GPU are not used as expected.

    Raises:
        UserError: the device does not exist, or PUL_ARTIFACTS cannot be used.
    """
    resolve_compute(machine)
    check_artifact_root()
    if machine.threads and machine.threads > available_cores():
        step_logger().warning("%d threads share %d cores, which is slow: set fewer threads", machine.threads, available_cores())
    if machine.device is None and (problem := nvidia_problem()):
        step_logger().warning("this run uses the CPU; %s", problem)


def validate_evaluation(parameters: Mapping[str, Any]) -> None:
    """Check the parameters of flow `evaluate`, all of them by name, with its data and model.

    Raises:
        UserError: a parameter, the data or the model cannot be used.
        pydantic.ValidationError: a value of ``machine`` is out of bounds.
    """
    for name, values in CHOICES.items():
        if parameters[name] not in values:
            raise UserError(f"{name} must be one of {', '.join(values)}, got {parameters[name]!r}")
    data = parameters["data"]
    statistics = override(Statistics(), Overrides[Statistics].model_validate(parameters["statistics"]))
    check_scorable(count_images(data, parameters["layout"], parameters["pattern"]), data, statistics)
    _check_inference(parameters)


def validate_suggestion(parameters: Mapping[str, Any]) -> None:
    """Check the parameters of flow `suggest`, all of them by name, with its data and model.

    Raises:
        UserError: a parameter, the data or the model cannot be used.
        pydantic.ValidationError: a value of ``machine`` is out of bounds.
    """
    data = parameters["data"]
    images = count_images(data, parameters["layout"], parameters["pattern"]).splits.get("train", 0)
    if images < MIN_IMAGES:
        raise DataError(f"{data} has {images} training images, but a suggestion requires at least {MIN_IMAGES}: give more images")
    _check_inference(parameters)


def _check_inference(parameters: Mapping[str, Any]) -> None:
    check_machine(override(Machine(), Overrides[Machine].model_validate(parameters["machine"])))
    config = describe_model(parameters["model"], **{name: parameters.get(name) for name in ("backbone", "height", "width")})
    check_backbone(**architecture(config))


def count_images(path: str, layout: str | None = None, pattern: str | None = None) -> Counts:
    """Count the images and identities of a data set without opening an image.

    Raises:
        DataError: the data set cannot be read.
    """
    splits: Counter[str] = Counter()
    pids = defaultdict[str, set[int | str]](set)
    train_cameras, test_cameras = Counter[int | str | None](), set[int | str | None]()
    for image in read_layout(dataset_root(path), layout, pattern)[1]:
        splits[image.split] += 1
        camid = None if image.camid == NO_CAMERA else image.camid
        if image.split == "train":
            train_cameras[camid] += 1
        else:
            test_cameras.add(camid)
        if (pid := identity_in_split(image.pid, image.split)) is not None and pid not in (DISTRACTOR_PID, JUNK_PID):
            pids[image.split].add(pid)
    del train_cameras[None]
    return Counts(
        splits=dict(sorted(splits.items())),
        identities=len(pids["train"]),
        camera_sizes=tuple(sorted(train_cameras.values())),
        single_camera=len(test_cameras - {None}) == len(test_cameras) == 1,
        labelled_queries=bool(pids["query"]),
    )


def _count_in_role(role: str, path: str, data: Data) -> Counts:
    """Count the images of a source or target; an error names the options of that role."""
    try:
        return count_images(path, data.layout, data.pattern)
    except DataError as error:
        raise DataError(with_role(str(error), role)) from error


def add_counts(counts: Sequence[Counts], names: Sequence[str]) -> Counts:
    """Return the sum of the counts of one or more sources; identities of different sources are different people.

    Args:
        counts: of each source.
        names: of each source, for the error message.

    Raises:
        DataError: one of several sources has no identities.
    """
    unlabelled = [name for source, name in zip(counts, names, strict=True) if source.identities == 0]
    if unlabelled and len(counts) > 1:
        raise DataError(
            f"source {unlabelled[0]} has no identities to train on: state its --source-layout or --source-pattern, or leave it out"
        )
    splits = {split: sum(source.splits.get(split, 0) for source in counts) for source in counts for split in source.splits}
    problems = sum((Counter(source.problems) for source in counts), Counter[str]())
    return Counts(splits=splits, identities=sum(source.identities for source in counts), problems=problems)


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
        finding = Finding(code="not_a_data_set", severity="error", advice=str(error))
        return Report(path=path, layout=layout, findings=[finding], verdict="unusable"), None
    return check_set(images), images


def check_sets(sources: list[ImageSet], target: ImageSet | None, plan: Plan) -> None:
    """Log the findings about the indexed data sets of a run, and check that it can use them.

    The target's identities only affect scores, so findings about them are logged and are never an error.

    Args:
        sources: the labelled data sets; empty if the run starts from a given model.
        target: the unlabelled data set; None if only a source model is trained.
        plan: the settings of the run.

    Raises:
        DataError: as for `check_counts`, or one of several sources has no identities.
    """
    labelled = add_counts([_check_source(source) for source in sources], [source.name for source in sources]) if sources else None
    counts = _check_target(target) if target else None
    check_counts(labelled, counts, plan)
    for warning in run_warnings(counts, plan) if counts else ():
        step_logger().warning("%s", warning)


def check_evaluation(images: ImageSet, data: str, statistics: Statistics | None = None) -> Artifact:
    """Check that the indexed data set of an evaluation can be scored.

    Args:
        images: the indexed data set.
        data: its name in error messages.
        statistics: as for `check_scorable`.

    Returns:
        The identities.

    Raises:
        DataError: as for `check_scorable`, or no query has a match.
    """
    table, labels = read_table(images.images), read_table(images.labels) if images.labels else None
    query = usable_rows(table, "query")
    is_labelled = labels is not None and bool((column(labels, "pid")[query] > DISTRACTOR_PID).any())
    check_scorable(_count_usable(images, table).model_copy(update={"labelled_queries": is_labelled}), data, statistics)
    if labels is None or images.labels is None or not answerable_queries(table, labels).any():
        raise DataError(
            f"none of the {len(query)} query images of {data} has a match in the gallery from another camera, so nothing can be scored: "
            "check its names and cameras with pul data check"
        )
    return images.labels


def check_scorable(counts: Counts, data: str, statistics: Statistics | None = None) -> None:
    """Check that a data set has labelled queries, a gallery that is not limited to the queries' camera, and images for statistics.

    Args:
        counts: of the data set.
        data: its name in error messages.
        statistics: whether BatchNorm statistics are estimated from its training images; None: they are not.

    Raises:
        DataError: the data set cannot be scored.
    """
    query, gallery = counts.splits.get("query", 0), counts.splits.get("gallery", 0)
    if not (query and gallery):
        raise DataError(f"{data} has {query} query and {gallery} gallery images{_problems_text(counts)}: give a data set with both")
    if not counts.labelled_queries:
        raise DataError(f"none of the {query} query images of {data} has an identity, so nothing can be scored: give a labelled data set")
    if counts.single_camera:
        raise DataError(f"{data} cannot be scored: {ADVICE['single_camera']}")
    if statistics and statistics.by_camera and counts.splits.get("train", 0) < 2:
        raise DataError(f"{data} has no training images to estimate statistics from: leave the statistics out, or give such images")


def run_warnings(target: Counts, plan: Plan) -> Iterator[str]:
    """Yield what will probably not work in a run that is possible, one line each.

    Args:
        target: counts of the unlabelled data set.
        plan: the settings of the run.
    """
    images = target.splits.get("train", 0)
    if target.single_camera and target.splits.get("query") and target.splits.get("gallery"):
        yield f"the run can adapt the model, but its scores will be missing: {ADVICE['single_camera']}"
    if isinstance(plan.algorithm, Dbscan) and images < FEW_IMAGES * plan.algorithm.num_neighbours:
        yield (
            f"the target has only {images} training images for {plan.algorithm.num_neighbours} neighbours of each (dbscan.num_neighbours), "
            "so all may end up in one cluster: choose fewer neighbours than a person has images, or give more images"
        )


def _check_source(images: ImageSet) -> Counts:
    table, labels = read_table(images.images), read_table(images.labels) if images.labels else None
    findings = [*listing_findings(images), *file_findings(table), *identity_findings(table, labels), *crop_findings(table, images.root)]
    _log_findings("source", logging.WARNING, findings)
    identities = count_identities(column(labels, "pid")[usable_rows(table, "train")]) if labels else 0
    return _count_usable(images, table).model_copy(update={"identities": identities})


def _check_target(images: ImageSet) -> Counts:
    table = read_table(images.images)
    findings = [*listing_findings(images), *file_findings(table), *crop_findings(table, images.root), *camera_findings(table)]
    _log_findings("target", logging.WARNING, findings)
    _log_findings("target", logging.INFO, evaluation_findings(table, read_table(images.labels) if images.labels else None))
    return _count_usable(images, table)


def _log_findings(role: str, level: int, findings: Iterable[Finding]) -> None:
    for finding in findings:
        examples = f" ({', '.join(map(ascii, finding.examples))})" if finding.examples else ""
        finding_level = logging.INFO if finding.severity == "info" else level
        step_logger().log(
            finding_level, "%s: %s, %s%s: %s", role, finding.code, f"{finding.count:,}", examples, with_role(finding.advice, role)
        )


def count_usable(images: ImageSet) -> Counts:
    """Count the images that can be decoded, and their cameras; identities are not read."""
    return _count_usable(images, read_table(images.images))


def _count_usable(images: ImageSet, table: pa.Table) -> Counts:
    train, query, gallery = (usable_rows(table, split) for split in ("train", "query", "gallery"))
    cameras = camids(table)
    return Counts(
        splits={split: len(usable_rows(table, split)) for split in images.splits},
        problems=Counter(table["problem"].drop_null().to_pylist()),
        camera_sizes=tuple(sorted(Counter(cameras[train][cameras[train] != NO_CAMERA].tolist()).values())),
        single_camera=has_single_camera(cameras[np.concatenate((query, gallery))]),
    )


def _problems_text(counts: Counts) -> str:
    """Return how many images the splits do not count, and why; empty if there are none."""
    return f" (of all images, {', '.join(f'{count:,} are {name}' for name, count in counts.problems.items())})" if counts.problems else ""


def check_counts(source: Counts | None, target: Counts | None, plan: Plan) -> None:
    """Check that a run has a source or a model, and enough images and identities.

    Args:
        source: counts of the labelled data sets together; None if the run starts from a given model.
        target: counts of the unlabelled data set; None if only a source model is trained.
        plan: the settings of the run.

    Raises:
        DataError: the data sets are missing or too small, or all images of a split are damaged.
    """
    if source is None and plan.original_model is None:
        raise DataError(
            "a run requires a labelled source or a trained model: give --source DIR, or --original-model FILE or an earlier run's name"
        )
    if source is not None and plan.original_model is not None:
        raise DataError(f"a source and the original model {plan.original_model} were given: leave one of them out")
    if source is not None and source.identities < 2:
        raise DataError(
            f"the source has {source.identities} identities to train on among {source.splits.get('train', 0)} training images"
            f"{_problems_text(source)}, but training requires at least 2: give a published set, a "
            "manifest with a column identity, or state --source-layout folder-per-identity, or a --source-pattern with a group identity"
        )
    if target is None:
        return
    images = target.splits.get("train", 0)
    if images < MIN_TRAINING_IMAGES:
        raise DataError(
            f"the target has {images} usable training images{_problems_text(target)}, but a run requires at least "
            f"{MIN_TRAINING_IMAGES}: add images"
        )
    if empty := [split for split, count in target.splits.items() if count == 0]:
        raise DataError(
            f"none of the target's {empty[0]} images can be decoded{_problems_text(target)}: copy them again, or leave the split out"
        )
    _check_clustering(target, images, plan)


def _check_clustering(target: Counts, images: int, plan: Plan) -> None:
    """Check that the settings of the clustering suit the number of training images and their cameras."""
    if isinstance(plan.algorithm, KMeans) and plan.algorithm.num_clusters > images:
        raise DataError(
            f"num_clusters is {plan.algorithm.num_clusters}, but the target has only {images} training images: choose fewer clusters"
        )
    if plan.centre_scores and images == sum(target.camera_sizes) == len(target.camera_sizes):
        raise DataError(
            f"each of the target's {images} training images is alone on its camera, so centring by camera leaves nothing to cluster: use "
            "a --target-pattern in which the camera is the same for all images of a camera, or --set model.centre_cameras=false"
        )
    if isinstance(plan.algorithm, Dbscan):
        others = possible_neighbours(images, plan.statistics.camera_sizes(images, target.camera_sizes), plan.algorithm)
        if plan.algorithm.num_neighbours >= others:
            raise DataError(
                f"dbscan.num_neighbours is {plan.algorithm.num_neighbours}, but an image of the target has at most {others} possible "
                f"neighbours, so all images would be in one cluster: choose fewer neighbours than a person has images, or give more images"
            )


def _check_few_labels(target: Counts, plan: Plan) -> None:
    """Check that the target labels that training may use exist; the step *reveal* checks them in detail.

    Raises:
        UserError: they do not exist.
    """
    file, needs_identities = plan.few_labels.file, plan.few_labels.identities or plan.few_labels.share
    if file is not None and not user_path(file).is_file():
        raise UserError(f"there is no list of labels {file!r}: give a number of identities, a share such as 10%, or an existing file")
    if needs_identities and target.identities == 0:
        raise DataError(f"{plan.target} has no identities, which few_labels requires: give a list of labels with few_labels.file")


def estimate_run(run: ValidatedRun) -> Estimate:
    """Estimate the time, disk space and memory of a run: a few batches of noise are timed, and extrapolated to the run."""
    plan, source, target = run.plan, run.source, run.target
    compute = resolve_compute(plan.machine)
    prepare(compute.analysis)
    n = target.splits["train"]
    k = plan.kmeans.num_clusters or default_num_clusters(n)
    train_speed, extract_speed, d, num_weights = _probe(plan, max(k, 2), compute)
    scored = target.splits.get("query", 0) + target.splits.get("gallery", 0)
    statistics_images = whitening = 0
    if plan.statistics.by_camera:
        sizes = plan.statistics.camera_sizes(n, target.camera_sizes)
        own = (min(size, plan.statistics.images_per_camera) for size in sizes)
        statistics_images = (sum(own) + min(n, plan.statistics.images_per_camera)) * (2 if plan.statistics.whitening else 1)
        whitening = 2 * 4 * d * d if plan.statistics.whitening else 0  # bytes, in the artifact store and in MLflow
    memory_images = n if plan.fine_tuning.memory.entries != "none" else 0  # extracted once more, to initialise the memory
    source_images = source.splits["train"] if source else 0
    pixels = (source_images + n + scored) * plan.model.height * plan.model.width * 3
    weights = 2 * 4 * num_weights  # bytes, in the artifact store and in MLflow
    features = (n + scored) * d * 4  # bytes
    return Estimate(
        pretrain_seconds=source_images * plan.pretraining.epochs / train_speed,
        iteration_seconds=(n + scored + memory_images + statistics_images) / extract_speed
        + n * plan.fine_tuning.epochs / train_speed
        + _clustering_seconds(plan.algorithm, n, k, d),
        disk_bytes=pixels + weights + features,
        disk_bytes_per_iteration=weights + features + whitening,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 3 * n * d * 4,
    )


def _probe(plan: Plan, num_classes: int, compute: Resources) -> tuple[float, float, int, int]:
    """Measure training and feature extraction on noise.

    Returns:
        Images/s of training, images/s of extraction, the length d of a feature, and the number of weights of the backbone.
    """
    backbone = build_backbone(**architecture(plan.model))
    settings = replace(plan.fine_tuning, epochs=2, augmentation=replace(plan.fine_tuning.augmentation, erase_probability=0))
    shape = (PROBE_BATCHES * settings.batch_size, plan.model.height, plan.model.width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rows = np.arange(len(images))
    classes = rows % num_classes
    device, dtype = compute.training.device, compute.training.dtype
    training = begin_training(backbone, settings, num_classes=num_classes, classes=classes, seed=0, device=device, dtype=dtype)
    epochs = train(training, images, rows, classes, settings, seed=0)
    epoch_ends = [time.monotonic() for _ in epochs]
    train_speed = len(images) / (epoch_ends[1] - epoch_ends[0])  # the first epoch is a warm-up
    started = time.monotonic()
    list(extract_features(backbone, images, flip=plan.model.flip, device=device, dtype=compute.inference.dtype))
    extract_speed = len(images) / (time.monotonic() - started)
    num_weights = sum(tensor.numel() for tensor in backbone.parameters())
    return train_speed, extract_speed, int(backbone.num_features), num_weights  # type: ignore[arg-type]


def _clustering_seconds(algorithm: Algorithm, n: int, k: int, d: int) -> float:
    """Return the estimated seconds of a clustering: a sample of drawn people, 16 images each, is clustered."""
    rows = min(n, SAMPLE)
    generator = np.random.default_rng(0)
    people = generator.standard_normal((rows // 16 + 1, d), np.float32)
    features = people[np.arange(rows) // 16] + generator.standard_normal((rows, d), np.float32) * np.float32(0.5)
    if isinstance(algorithm, KMeans):
        return _kmeans_seconds(features, algorithm, n, k)
    return _density_seconds(features, algorithm, n)


def _density_seconds(features: Features, settings: Dbscan, n: int) -> float:
    """Return the estimated seconds of a clustering by density of n images, of which the features (m, d) are a sample on two cameras.

    The time of the neighbour search grows with n squared; that of the rest grows with n.
    """
    cameras, growth = np.arange(len(features)) % 2, n / len(features)
    started = time.monotonic()
    if settings.camera_aware:
        neighbours_by_camera(features, cameras, settings.num_neighbours, settings.num_neighbours)
    else:
        nearest_neighbours(features, settings.num_neighbours + 1)
    search = time.monotonic() - started
    started = time.monotonic()
    cluster_by_density(features, cameras, settings)
    rest = max(time.monotonic() - started - search, 0)
    return search * growth**2 + rest * growth


def _kmeans_seconds(features: Features, settings: KMeans, n: int, k: int) -> float:
    """Return the estimated seconds of k-means of n images, of which the features (m, d) are a sample: the time grows with n and with K."""
    clusters = min(k, max(1, len(features) // 16))
    started = time.monotonic()
    cluster_by_kmeans(features, replace(settings, num_clusters=clusters), seed=0)
    return (time.monotonic() - started) * n / len(features) * k / clusters
