"""Flow `suggest`: suggests K and epsilon for a data set. It reads no labels; its steps are those of the loop."""

from typing import Any

from prefect import flow

from flows.evaluate import Pixels, features_of
from pul_core.recipes import MODERN
from pul_core.settings import Machine
from tasks.engine.compute import resolve_compute
from tasks.index import index
from tasks.models import import_model
from tasks.store.config import Overrides, override
from tasks.suggest import read_suggestion, suggest


@flow(name="suggest", validate_parameters=True)
def suggest_clusters(
    model: str,
    data: str,
    layout: str | None = None,
    pattern: str | None = None,
    backbone: str | None = None,
    height: Pixels | None = None,
    width: Pixels | None = None,
    machine: Overrides[Machine] = Overrides[Machine](),
) -> dict[str, Any]:
    """Count the clusters of a data set at a series of distances, and return the curve with the suggested epsilon and K.

    Args:
        model: A model file, the name of an earlier run, RUN/iteration=N, or an MLflow model URI.
        data: The images that a run would cluster: any data set; only its training images are used.
        layout: The layout of the data set (docs/data.md). Empty: detected.
        pattern: A regular expression with named groups for the image paths; implies layout pattern.
        backbone: A timm model name. Empty: that of the model file, or recognised by its tensors.
        height: Input size in pixels. Empty: that of the model file, or 256 if it states none.
        width: Input size in pixels. Empty: that of the model file, or 128 if it states none.
    """
    compute = resolve_compute(override(Machine(), machine))
    images = index(data, "target", layout, pattern)
    imported = import_model(model, backbone=backbone, height=height, width=width)
    features = features_of(imported, images, "train", compute.inference)
    curve = suggest(
        features,
        images.images,
        num_neighbours=MODERN.dbscan.num_neighbours,
        num_averaged=MODERN.dbscan.num_averaged,
        min_samples=MODERN.dbscan.min_samples,
        centre_cameras=MODERN.model.centre_cameras,
        compute=compute.analysis,
    )
    return {"model": model, "data": data, **read_suggestion(curve)}
