"""Suggesting K and epsilon for a data set as a flow: index, decode, extract, count clusters. The loop's own steps; no label is read."""

from typing import Any

from prefect import flow
from pydantic import Field

from flows.config import Machine
from flows.evaluate import features_of
from flows.recipes import RECIPES
from pul_core.clustering.suggestion import MIN_IMAGES
from pul_core.errors import DataError
from tasks.engine.compute import resolve_compute
from tasks.index import index
from tasks.models import import_model, model_file
from tasks.preflight import count_images
from tasks.suggest import report
from tasks.suggest import suggest as suggest_step

SPLIT = "train"  # what a run clusters
CLUSTERING = RECIPES["modern"]["clustering"].model_dump(include={"num_neighbours", "num_averaged", "min_samples"})


def look_first(model: str, data: str, layout: str | None = None, pattern: str | None = None) -> None:
    """Refuse what cannot work before anything is started.

    Raises:
        UserError: in one sentence, what to change.
    """
    with model_file(model):
        pass
    images = count_images(data, layout, pattern).splits.get(SPLIT, 0)
    if images < MIN_IMAGES:
        raise DataError(f"{data} has {images} training images, which are what a run clusters: {MIN_IMAGES} are the least to suggest from")


@flow(name="suggest", validate_parameters=True)
def suggest(
    model: str = Field(description="A model file, an earlier run's name, RUN/iteration=N, or an MLflow model URI."),
    data: str = Field(description="The images a run would cluster: any data set; only its training images are looked at."),
    layout: str | None = Field(None, description="How the data set lies, where its folder does not tell (docs/data.md)."),
    pattern: str | None = Field(None, description="What its file names tell, for layout pattern."),
    backbone: str = Field("resnet50", description="Of a model file that does not say so itself: a timm name."),
    height: int = Field(256, ge=1, le=4096, description="Of its input, pixels."),
    width: int = Field(128, ge=1, le=4096, description="Of its input, pixels."),
    machine: Machine = Machine(),
) -> dict[str, Any]:
    """Count the clusters of a data set at a row of distances, and return the curve with the epsilon and the K that are read off it."""
    compute = resolve_compute(machine.device, machine.threads)
    images = index(data, "target", layout, pattern)
    brought = import_model(model, backbone=backbone, height=height, width=width)
    features = features_of(brought, images, SPLIT, machine, compute)
    centre = bool(RECIPES["modern"]["model"].model_dump()["centre_cameras"])
    curve = suggest_step(features, images.images, settings=CLUSTERING, centre_cameras=centre, compute=compute)
    return {"model": model, "data": data, **report(curve)}
