"""Progressive Unsupervised Learning as a flow: extract, cluster, select, fine-tune the original model, until the reliable set is stable."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from pydantic import Field

from flows.config import Clustering, Data, FewLabels, FineTuning, Machine, Model, Plan, Selection, Stopping, Training
from flows.pretrain import original_model_of
from flows.recipes import RecipeName, resolve
from pul_core.seeds import derive_seed
from pul_core.stopping import EXPLANATIONS, reason_to_stop
from tasks.cluster import cluster, select
from tasks.decode import decode
from tasks.engine.compute import resolve_compute
from tasks.evaluate import evaluate
from tasks.extract import extract_features
from tasks.few_labels import reveal
from tasks.index import index
from tasks.preflight import check_sets
from tasks.store.artifacts import Artifact
from tasks.store.references import Compute, ImageSet, Iteration, Pixels
from tasks.tracking.runs import close_run, finish_run, track_iteration, track_run
from tasks.training import fine_tune


def _close(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    close_run(str(flow_run.id), "KILLED" if state.is_cancelled() or state.is_cancelling() else "FAILED")


@flow(name="pul", validate_parameters=True, on_failure=[_close], on_cancellation=[_close], on_crashed=[_close])
def pul(
    target: str = Field(
        description="The unlabelled images: a folder (crops at any depth, or a published set), a manifest, or synthetic:SEED/target."
    ),
    target_data: Data = Data(),
    source: str | list[str] | None = Field(
        None, description="The labelled images: a published set's folder, a manifest, or synthetic:SEED/source; several are joined."
    ),
    source_data: Data = Data(),
    original_model: str | None = Field(None, description="Instead of a source: a trained model's file, or an earlier run."),
    recipe: RecipeName = Field("paper", description="Values for everything left empty below."),
    model: Model = Model(),
    pretraining: Training = Training(),
    clustering: Clustering = Clustering(),
    selection: Selection = Selection(),
    fine_tuning: FineTuning = FineTuning(),
    stopping: Stopping = Stopping(),
    few_labels: FewLabels = FewLabels(),
    machine: Machine = Machine(),
    seed: int = Field(0, ge=0, description="Every random number of the run follows from it."),
) -> str:
    """Carry a person re-identification model from labelled cameras to unlabelled ones.

    Clusters the target's features, keeps the reliable images, fine-tunes the original model on them, and repeats until the reliable set's
    size is stable. Every step leaves an artifact; iterations compare in MLflow. Returns the run's name.
    """
    sections = {"model": model, "pretraining": pretraining, "clustering": clustering, "selection": selection}
    sections |= {"fine_tuning": fine_tuning, "stopping": stopping}
    rest = {"target_data": target_data, "source_data": source_data, "few_labels": few_labels, "machine": machine, "seed": seed}
    plan = resolve(recipe, sections, source=source, target=target, original_model=original_model, **rest)
    compute = resolve_compute(machine.device, machine.threads)

    images = index(target, "target", **target_data.model_dump())
    sources = [index(path, "source", **source_data.model_dump()) for path in plan.source]
    check_sets(sources, images, original_model=original_model, num_clusters=plan.clustering.num_clusters)
    labelled = reveal(images, settings=plan.few_labels.model_dump(), num_clusters=plan.clustering.num_clusters)
    run = track_run(plan.model_dump(), images, sources)
    original, size = original_model_of(plan, sources, compute)
    pixels = {split: decode(images, split=split, **size) for split in images.splits}

    current = Iteration(iteration=0, model=original, scores=score(original, images, pixels, plan, compute, 0))
    history = [track_iteration(run, current, images.labels)]
    sizes: list[int] = []
    reason = None
    while reason is None:
        t = len(sizes) + 1
        features = extract_features(
            current.model, pixels["train"], batch_size=plan.machine.extraction_batch_size, compute=compute, iteration=t - 1, split="train"
        )
        clusters = cluster(
            features,
            images.images,
            labelled,
            settings=plan.clustering.model_dump(),
            centre_cameras=bool(plan.model.centre_cameras),
            seed=derive_seed(seed, t, "cluster"),
            compute=compute,
            iteration=t,
        )
        reliable = select(clusters, labelled, settings=plan.selection.model_dump(), iteration=t)
        sizes.append(reliable.size)
        reason = reason_to_stop(sizes, num_clusters=clusters.num_clusters, num_images=clusters.clusters.rows, **plan.stopping.model_dump())
        trained = fine_tune(
            current.model if plan.fine_tuning.start_from == "last" else original,
            pixels["train"],
            reliable,
            settings=plan.fine_tuning.model_dump(exclude={"start_from"}),
            seed=derive_seed(seed, t, "fine_tune"),
            compute=compute,
            iteration=t,
        )
        current = Iteration(
            iteration=t,
            model=trained.model,
            features=features,
            clusters=clusters,
            reliable=reliable,
            reliable_before=current.reliable,
            trained=trained,
            scores=score(trained.model, images, pixels, plan, compute, t),
        )
        history.append(track_iteration(run, current, images.labels))
    finish_run(run, history, reason, EXPLANATIONS[reason])
    return run.name


def score(model: Artifact, images: ImageSet, pixels: dict[str, Pixels], plan: Plan, compute: Compute, iteration: int) -> Artifact | None:
    """Evaluate a model on the target's query and gallery, if it has any; what comes out is recorded and steers nothing."""
    if not images.scorable or images.labels is None:
        return None
    query, gallery = (
        extract_features(
            model, pixels[split], batch_size=plan.machine.extraction_batch_size, compute=compute, iteration=iteration, split=split
        )
        for split in ("query", "gallery")
    )
    centre = bool(plan.model.centre_cameras)
    return evaluate(query, gallery, images, images.labels, compute=compute, iteration=iteration, centre_cameras=centre)
