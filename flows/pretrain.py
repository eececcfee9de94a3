"""Flow `pretrain`: trains the original model on a labelled source. Flow `pul` obtains its original model from here, too."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from pul_core.recipes import RecipeName
from pul_core.seeds import derive_seed
from pul_core.settings import Data, Machine, Model, Training
from tasks.decode import decode
from tasks.engine.compute import Resources, resolve_compute
from tasks.index import index
from tasks.models import import_model, initial_model, state_licence, with_flip
from tasks.preflight import check_plan, check_sets
from tasks.store.artifacts import Artifact, locate
from tasks.store.config import Overrides, Plan, resolve_plan
from tasks.store.model_file import model_size
from tasks.store.references import ImageSet
from tasks.training import pretrain


def original_model_of(plan: Plan, sources: list[ImageSet], compute: Resources) -> tuple[Artifact, dict[str, int]]:
    """Train the model that the loop starts from, or import the one that the user gave; return it with its input size."""
    size = {"height": plan.model.height, "width": plan.model.width}
    if plan.original_model:
        imported = import_model(plan.original_model, backbone=plan.model.backbone, **size, default=plan.model)
        return imported, model_size(imported)
    initial = initial_model(plan.model, seed=derive_seed(plan.seed, "initial"))
    pixels = [decode(source, split="train", **size) for source in sources]
    labels = [source.labels for source in sources if source.labels]
    trained = pretrain(
        initial, pixels, labels, settings=plan.pretraining, seed=derive_seed(plan.seed, "pretrain"), compute=compute.training
    )
    return with_flip(trained.model) if plan.model.flip else trained.model, size


@flow(name="pretrain", validate_parameters=True)
def pretrain_original(
    source: str | list[str],
    source_data: Overrides[Data] = Overrides[Data](),
    recipe: RecipeName = "paper",
    model: Overrides[Model] = Overrides[Model](),
    pretraining: Overrides[Training] = Overrides[Training](),
    machine: Overrides[Machine] = Overrides[Machine](),
    seed: Annotated[int, Field(ge=0)] = 0,
) -> str:
    """Train the original model on a labelled source and return the path of its file.

    A run of `pul` with the same parameters reuses the model.

    Args:
        source: The labelled images: the folder of a published set, a manifest, or synthetic:SEED/source; several are joined.
        recipe: Values for all that is left empty. In flow pul, auto is modern where that can be used, and paper otherwise (docs/method.md).
        seed: All random numbers of the run are derived from it.
    """
    plan = resolve_plan(locals())  # at this point, the local variables are the parameters
    check_plan(plan)
    sources = [index(path, "source", plan.source_data.layout, plan.source_data.pattern) for path in plan.source]
    check_sets(sources, None, plan)
    trained, _ = original_model_of(plan, sources, resolve_compute(plan.machine))
    return locate(state_licence(trained, plan))
