"""Flow `pul`, Progressive Unsupervised Learning: extract, cluster, select and fine-tune, until the reliable set is stable."""

from dataclasses import replace
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from pydantic import Field

from flows.pretrain import original_model_of
from pul_core.recipes import RecipeChoice
from pul_core.seeds import derive_seed
from pul_core.settings import Clustering, Data, Dbscan, FewLabels, KMeans, Machine, Model, Selection, Statistics, Stopping, Training
from pul_core.stopping import EXPLANATIONS, reason_to_stop
from tasks.cameras import cameras_of
from tasks.cluster import cluster, select
from tasks.decode import decode
from tasks.engine.compute import Resources
from tasks.evaluate import evaluate
from tasks.extract import extract_features
from tasks.few_labels import reveal
from tasks.index import index
from tasks.preflight import check_sets, checked_plan, count_usable, log_recipe, recipe_for
from tasks.statistics import statistics_of
from tasks.store.artifacts import Artifact
from tasks.store.config import Overrides, Plan
from tasks.store.references import ImageSet, Iteration, Pixels, TargetStatistics
from tasks.tracking.runs import close_run, finish_run, track_iteration, track_run
from tasks.training import fine_tune


def _close(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    close_run(str(flow_run.id), "KILLED" if state.is_cancelled() or state.is_cancelling() else "FAILED")


@flow(name="pul", validate_parameters=True, on_failure=[_close], on_cancellation=[_close], on_crashed=[_close])
def pul(
    target: str,
    target_data: Overrides[Data] = Overrides[Data](),
    source: str | list[str] | None = None,
    source_data: Overrides[Data] = Overrides[Data](),
    original_model: str | None = None,
    recipe: RecipeChoice = "auto",
    model: Overrides[Model] = Overrides[Model](),
    statistics: Overrides[Statistics] = Overrides[Statistics](),
    pretraining: Overrides[Training] = Overrides[Training](),
    clustering: Overrides[Clustering] = Overrides[Clustering](),
    kmeans: Overrides[KMeans] = Overrides[KMeans](),
    dbscan: Overrides[Dbscan] = Overrides[Dbscan](),
    selection: Overrides[Selection] = Overrides[Selection](),
    fine_tuning: Overrides[Training] = Overrides[Training](),
    stopping: Overrides[Stopping] = Overrides[Stopping](),
    few_labels: Overrides[FewLabels] = Overrides[FewLabels](),
    machine: Overrides[Machine] = Overrides[Machine](),
    seed: Annotated[int, Field(ge=0)] = 0,
) -> str:
    """Adapt a person re-identification model from labelled cameras to unlabelled ones.

    Clusters the target's features, keeps the reliable images, fine-tunes the original model (modern: the last one) on them, and repeats
    until the size of the reliable set is stable. Every step writes an artifact; iterations can be compared in MLflow. Returns the id of
    the run.

    Args:
        target: The unlabelled images: a folder (crops at any depth, or a published set), a manifest, or synthetic:SEED/target.
        source: The labelled images: the folder of a published set, a manifest, or synthetic:SEED/source; several are joined.
        original_model: Instead of a source: the file of a trained model, or an earlier run.
        recipe: Values for all that is left empty. In flow pul, auto is modern where that can be used, and paper otherwise (docs/method.md).
        seed: All random numbers of the run are derived from it.
    """
    parameters = dict(locals())
    plan = checked_plan(parameters)
    images = index(plan.target, "target", plan.target_data.layout, plan.target_data.pattern)
    if recipe == "auto":
        chosen = recipe_for(parameters, count_usable(images), plan.model)
        plan = checked_plan(parameters, chosen[0])
        log_recipe(*chosen)
    sources = [index(path, "source", plan.source_data.layout, plan.source_data.pattern) for path in plan.source]
    check_sets(sources, images, plan)
    labelled = reveal(images, settings=plan.few_labels, algorithm=plan.algorithm)
    run = track_run(plan, images, sources)
    plan = replace(plan, original_model=run.original_model)
    compute = run.resources
    original, size = original_model_of(plan, sources, compute)
    pixels = {split: decode(images, split=split, **size) for split in images.splits}

    cameras = cameras_of(
        original, pixels["train"], images, settings=plan.statistics, seed=derive_seed(plan.seed, "style"), compute=compute.analysis
    )
    by_camera = estimate(original, cameras, pixels, plan, compute, 0)
    current = Iteration(
        iteration=0,
        model=original,
        cameras=cameras,
        statistics=by_camera,
        scores=score(original, None, images, pixels, plan, compute, 0),  # direct transfer
        scores_statistics=score(original, by_camera, images, pixels, plan, compute, 0) if by_camera else None,
    )
    history = [track_iteration(run, current, images.labels)]
    reliable_sizes: list[int] = []
    reason = None
    while reason is None:
        t = len(reliable_sizes) + 1
        features = extract_features(
            current.model,
            pixels["train"],
            by_camera,
            compute=compute.inference,
            iteration=t - 1,
            split="train",
        )
        clusters = cluster(
            features,
            cameras,
            labelled,
            clustering=plan.clustering,
            algorithm=plan.algorithm,
            centre_cameras=plan.model.centre_cameras,
            seed=derive_seed(plan.seed, t, "cluster"),
            compute=compute.analysis,
            iteration=t,
        )
        reliable = select(clusters, labelled, settings=plan.selection, iteration=t)
        reliable_sizes.append(reliable.size)
        reason = reason_to_stop(
            reliable_sizes,
            plan.stopping,
            num_clusters=clusters.num_clusters,
            num_images=clusters.clusters.rows,
            by_density=plan.clustering.algorithm == "dbscan",
        )
        trained = fine_tune(
            current.model if plan.model.start_from == "last" else original,
            pixels["train"],
            reliable,
            settings=plan.fine_tuning,
            seed=derive_seed(plan.seed, t, "fine_tune"),
            compute=compute.training,
            iteration=t,
        )
        by_camera = estimate(trained.model, cameras, pixels, plan, compute, t)
        current = Iteration(
            iteration=t,
            model=trained.model,
            features=features,
            clusters=clusters,
            reliable=reliable,
            reliable_before=current.reliable,
            trained=trained,
            statistics=by_camera,
            scores=score(trained.model, by_camera, images, pixels, plan, compute, t),
        )
        history.append(track_iteration(run, current, images.labels))
    finish_run(run, history, reason, EXPLANATIONS[reason])
    return run.id


def estimate(
    model: Artifact, cameras: Artifact, pixels: dict[str, Pixels], plan: Plan, compute: Resources, iteration: int
) -> TargetStatistics | None:
    """Estimate a model's statistics on the target, or return None if the plan takes those of the model."""
    seed = derive_seed(plan.seed, "statistics")
    return statistics_of(
        model, pixels["train"], cameras, settings=plan.statistics, seed=seed, compute=compute.analysis, iteration=iteration
    )


def score(
    model: Artifact,
    statistics: TargetStatistics | None,
    images: ImageSet,
    pixels: dict[str, Pixels],
    plan: Plan,
    compute: Resources,
    iteration: int,
) -> Artifact | None:
    """Score a model on the target's labelled queries and gallery, or return None if it has none. The scores do not influence the run."""
    if not images.scorable or images.labels is None:
        return None
    query, gallery = (
        extract_features(
            model,
            pixels[split],
            statistics,
            compute=compute.inference,
            iteration=iteration,
            split=split,
        )
        for split in ("query", "gallery")
    )
    return evaluate(query, gallery, images, images.labels, compute=compute.analysis, iteration=iteration, centre_cameras=plan.centre_scores)
