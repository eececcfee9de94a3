"""Where the original model comes from: trained on a labelled source, or brought by the user. Also a flow of its own."""

from typing import Any

from prefect import flow
from pydantic import Field

from flows.config import Clustering, Data, Machine, Model, Plan, Selection, Stopping, Training
from flows.recipes import RecipeName, resolve
from pul_core.seeds import derive_seed
from tasks.artifacts import Artifact, locate
from tasks.compute import resolve_compute
from tasks.decode import decode
from tasks.index import index
from tasks.layouts import DataError
from tasks.models import import_model, initial_model, model_size
from tasks.references import Compute, ImageSet
from tasks.training import pretrain as pretrain_step


def original_model_of(plan: Plan, source: ImageSet | None, compute: Compute) -> tuple[Artifact, dict[str, int]]:
    """Return the model that every iteration starts from, and the input size it wants."""
    size: dict[str, Any] = {"height": plan.model.height, "width": plan.model.width}
    if plan.original_model:
        brought = import_model(plan.original_model, backbone=plan.model.backbone, **size)
        return brought, model_size(brought)
    if source is None:
        raise DataError("a run needs a labelled source (--source DIR) or a trained model (--original-model FILE)")
    if source.labels is None:
        raise DataError(f"{source.root} has no identities to learn from in layout {source.layout}: see docs/data.md for layouts that have")
    initial = initial_model(plan.model.backbone, weights=plan.model.weights, seed=derive_seed(plan.seed, "initial"), **size)
    pixels = decode(source, split="train", **size)
    settings, seed = plan.pretraining.model_dump(), derive_seed(plan.seed, "pretrain")
    return pretrain_step(initial, pixels, source.labels, settings=settings, seed=seed, compute=compute).model, size


@flow(name="pretrain", validate_parameters=True)
def pretrain(
    source: str = Field(description="The labelled images: a published set's folder, a manifest, or synthetic:SEED/source."),
    source_data: Data = Data(),
    recipe: RecipeName = Field("paper", description="Values for everything left empty below."),
    model: Model = Model(),
    pretraining: Training = Training(),
    machine: Machine = Machine(),
    seed: int = Field(0, ge=0, description="Every random number of the run follows from it."),
) -> str:
    """Train the original model on a labelled source and return where its file lies; `pul` with the same parameters reuses it."""
    sections = {"model": model, "pretraining": pretraining, "clustering": Clustering(), "selection": Selection()}
    sections |= {"fine_tuning": Training(), "stopping": Stopping()}
    rest = {"source_data": source_data, "machine": machine, "seed": seed}
    plan = resolve(recipe, sections, source=source, target="", original_model=None, **rest)
    compute = resolve_compute(machine.device, machine.threads)
    trained, _ = original_model_of(plan, index(source, "source", **source_data.model_dump()), compute)
    return locate(trained)
