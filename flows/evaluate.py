"""Scoring a model on a data set as a flow: index, decode, extract, evaluate. The steps of the loop, so their results are reused."""

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from pul_core.errors import DataError
from pul_core.scoring.evaluation import Unscored
from pul_core.scoring.protocols import ProtocolName
from pul_core.scoring.ranks import Ties
from pul_core.seeds import derive_seed
from pul_core.settings import Machine
from tasks.decode import decode
from tasks.engine.compute import resolve_compute
from tasks.evaluate import evaluate
from tasks.extract import extract_features
from tasks.index import index
from tasks.models import import_model
from tasks.store.artifacts import Artifact
from tasks.store.config import Overrides, override
from tasks.store.model_file import model_size
from tasks.store.references import Compute, ImageSet
from tasks.store.scores import read_metrics_and_cmc

ModelReference = Annotated[str, Field(description="A model file, the name of an earlier run, RUN/iteration=N, or an MLflow model URI.")]
Layout = Annotated[str | None, Field(description="Layout of the data set on disk (docs/data.md). Empty: detected.")]
Pattern = Annotated[str | None, Field(description="A regular expression for image paths, for layout pattern.")]
Backbone = Annotated[str, Field(description="A timm name, for a model file that does not name its backbone.")]
Pixels = Annotated[int, Field(ge=1, le=4096, description="Input size in pixels, for a model file that does not state it.")]


def split_features(model: Artifact, images: ImageSet, split: str, machine: Machine, compute: Compute) -> Artifact:
    """Decode a split at the input size of the model and extract its features."""
    pixels = decode(images, split=split, **model_size(model))
    return extract_features(model, pixels, batch_size=machine.extraction_batch_size, compute=compute, iteration=0, split=split)


@flow(name="evaluate", validate_parameters=True)
def evaluate_model(
    model: ModelReference,
    data: str = Field(description="The labelled images: any data set with queries and a gallery."),
    layout: Layout = None,
    pattern: Pattern = None,
    protocol: ProtocolName = Field("market1501", description="See docs/protocols.md."),
    ties: Ties = Field("pessimistic", description="How gallery images at equal distances are ranked."),
    unscored: Unscored = Field("left_out", description="How queries without a correct match are counted."),
    rerank: bool = Field(False, description="Report k-reciprocal re-ranking beside the plain scores."),
    backbone: Backbone = "resnet50",
    height: Pixels = 256,
    width: Pixels = 128,
    machine: Overrides[Machine] = Overrides[Machine](),
    seed: int = Field(0, ge=0, description="Seed of the splits of a protocol that draws them."),
) -> dict[str, Any]:
    """Score a model on a data set and return its scores, plain and, on request, re-ranked."""
    hardware = override(Machine(), machine)
    compute = resolve_compute(hardware)
    images = index(data, "target", layout, pattern)
    if not images.scorable or images.labels is None:
        raise DataError(f"{data} has no queries and gallery with identities: give a data set that has both")
    imported = import_model(model, backbone=backbone, height=height, width=width)
    query, gallery = (split_features(imported, images, split, hardware, compute.inference) for split in ("query", "gallery"))
    options: dict[str, Any] = {"protocol": protocol, "ties": ties, "seed": derive_seed(seed, "evaluate"), "compute": compute.host}
    scores = {
        name: evaluate(query, gallery, images, images.labels, iteration=0, rerank=name == "reranked", **options)
        for name in (("plain", "reranked") if rerank else ("plain",))
    }
    return {
        "model": model,
        "data": data,
        "protocol": protocol,
        "ties": ties,
        "unscored": unscored,
        **read_metrics_and_cmc(scores, unscored),
    }
