"""Where the original model comes from: trained on a labelled source, or brought by the user. Also a flow of its own."""

from typing import Any

from prefect import flow
from pydantic import Field

from flows.config import Clustering, Data, FewLabels, FineTuning, Machine, Model, Plan, Selection, Stopping, Training
from flows.recipes import RecipeName, resolve
from pul_core.seeds import derive_seed
from tasks.decode import decode
from tasks.engine.compute import resolve_compute
from tasks.index import index
from tasks.models import import_model, initial_model
from tasks.preflight import check_sets
from tasks.store.artifacts import Artifact, locate
from tasks.store.model_file import model_size
from tasks.store.references import Compute, ImageSet
from tasks.training import pretrain as pretrain_step


def original_model_of(plan: Plan, sources: list[ImageSet], compute: Compute) -> tuple[Artifact, dict[str, int]]:
    """Return the model that every iteration starts from, and the input size it wants."""
    size: dict[str, Any] = {"height": plan.model.height, "width": plan.model.width}
    if plan.original_model:
        brought = import_model(plan.original_model, backbone=plan.model.backbone, **size)
        return brought, model_size(brought)
    initial = initial_model(plan.model.backbone, weights=plan.model.weights, seed=derive_seed(plan.seed, "initial"), **size)
    pixels = [decode(source, split="train", **size) for source in sources]
    labels = [source.labels for source in sources if source.labels]
    settings, seed = plan.pretraining.model_dump(), derive_seed(plan.seed, "pretrain")
    return pretrain_step(initial, pixels, labels, settings=settings, seed=seed, compute=compute).model, size


@flow(name="pretrain", validate_parameters=True)
def pretrain(
    source: str | list[str] = Field(
        description="The labelled images: a published set's folder, a manifest, or synthetic:SEED/source; several are joined."
    ),
    source_data: Data = Data(),
    recipe: RecipeName = Field("paper", description="Values for everything left empty below."),
    model: Model = Model(),
    pretraining: Training = Training(),
    machine: Machine = Machine(),
    seed: int = Field(0, ge=0, description="Every random number of the run follows from it."),
) -> str:
    """Train the original model on a labelled source and return where its file lies; `pul` with the same parameters reuses it."""
    sections = {"model": model, "pretraining": pretraining, "clustering": Clustering(), "selection": Selection()}
    sections |= {"fine_tuning": FineTuning(), "stopping": Stopping()}
    rest = {
        "target": "",
        "original_model": None,
        "source_data": source_data,
        "target_data": Data(),
        "few_labels": FewLabels(),
        "machine": machine,
        "seed": seed,
    }
    plan = resolve(recipe, sections, source=source, **rest)
    compute = resolve_compute(machine.device, machine.threads)
    sources = [index(path, "source", **source_data.model_dump()) for path in plan.source]
    check_sets(sources, None)
    trained, _ = original_model_of(plan, sources, compute)
    return locate(trained)
