"""A suggestion of K and epsilon for a data set as a flow: index, decode, extract, count clusters. No label is read."""

from typing import Any

from prefect import flow
from pydantic import Field

from flows.evaluate import Backbone, Layout, ModelReference, Pattern, Pixels, split_features
from pul_core.recipes import MODERN
from pul_core.settings import Machine
from tasks.engine.compute import resolve_compute
from tasks.index import index
from tasks.models import import_model
from tasks.store.config import Overrides, override
from tasks.suggest import read_suggestion, suggest


@flow(name="suggest", validate_parameters=True)
def suggest_clusters(
    model: ModelReference,
    data: str = Field(description="The images that a run would cluster: any data set; only its training images are used."),
    layout: Layout = None,
    pattern: Pattern = None,
    backbone: Backbone = "resnet50",
    height: Pixels = 256,
    width: Pixels = 128,
    machine: Overrides[Machine] = Overrides[Machine](),
) -> dict[str, Any]:
    """Count the clusters of a data set at a series of distances, and return the curve with the suggested epsilon and K."""
    hardware = override(Machine(), machine)
    compute = resolve_compute(hardware)
    images = index(data, "target", layout, pattern)
    imported = import_model(model, backbone=backbone, height=height, width=width)
    features = split_features(imported, images, "train", hardware, compute.inference)
    curve = suggest(
        features,
        images.images,
        num_neighbours=MODERN.dbscan.num_neighbours,
        num_averaged=MODERN.dbscan.num_averaged,
        min_samples=MODERN.dbscan.min_samples,
        centre_cameras=MODERN.model.centre_cameras,
        compute=compute.host,
    )
    return {"model": model, "data": data, **read_suggestion(curve)}
