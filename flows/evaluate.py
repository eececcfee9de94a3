"""Scoring a model on a data set as a flow: index, decode, extract, evaluate. The same steps as in the loop, so their results are reused."""

from typing import Any, get_args

from prefect import flow
from pydantic import Field

from flows.config import Machine
from pul_core.errors import DataError, UserError
from pul_core.scoring.evaluation import Unscored
from pul_core.scoring.protocols import ProtocolName
from pul_core.scoring.ranks import Ties
from pul_core.seeds import derive_seed
from tasks.decode import decode
from tasks.engine.compute import resolve_compute
from tasks.evaluate import evaluate as evaluate_step
from tasks.extract import extract_features
from tasks.index import index
from tasks.models import import_model, model_file
from tasks.preflight import count_images
from tasks.store.artifacts import Artifact
from tasks.store.model_file import model_size
from tasks.store.references import Compute, ImageSet
from tasks.store.scores import report

CHOICES: dict[str, tuple[str, ...]] = {"protocol": get_args(ProtocolName), "ties": get_args(Ties), "unscored": get_args(Unscored)}


def look_first(model: str, data: str, layout: str | None = None, pattern: str | None = None, **policies: str) -> None:
    """Refuse what cannot work before anything is started.

    Raises:
        UserError: in one sentence, what to change.
    """
    for name, value in policies.items():
        if value not in CHOICES[name]:
            raise UserError(f"there is no {name} {value!r}; there are {', '.join(CHOICES[name])}")
    with model_file(model):
        pass
    splits = count_images(data, layout, pattern).splits
    if not (splits.get("query") and splits.get("gallery")):
        raise DataError(f"{data} has no queries and gallery with identities: nothing can be scored on it")


def features_of(model: Artifact, images: ImageSet, split: str, machine: Machine, compute: Compute) -> Artifact:
    """Decode a split at the size the model wants and extract its features."""
    pixels = decode(images, split=split, **model_size(model))
    return extract_features(model, pixels, batch_size=machine.extraction_batch_size, compute=compute, iteration=0, split=split)


@flow(name="evaluate", validate_parameters=True)
def evaluate(
    model: str = Field(description="A model file, an earlier run's name, RUN/iteration=N, or an MLflow model URI."),
    data: str = Field(description="The labelled images: any data set with queries and a gallery."),
    layout: str | None = Field(None, description="How the data set lies, where its folder does not tell (docs/data.md)."),
    pattern: str | None = Field(None, description="What its file names tell, for layout pattern."),
    protocol: ProtocolName = Field("market1501", description="See docs/protocols.md."),
    ties: Ties = Field("pessimistic", description="How answers of equal distance are counted."),
    unscored: Unscored = Field("left_out", description="What becomes of queries without a right answer."),
    rerank: bool = Field(False, description="Report k-reciprocal re-ranking beside the plain figures."),
    backbone: str = Field("resnet50", description="Of a model file that does not say so itself: a timm name."),
    height: int = Field(256, ge=1, le=4096, description="Of its input, pixels."),
    width: int = Field(128, ge=1, le=4096, description="Of its input, pixels."),
    machine: Machine = Machine(),
    seed: int = Field(0, ge=0, description="Of the splits of a protocol that draws them."),
) -> dict[str, Any]:
    """Score a model on a data set and return its figures, plain and, if asked for, re-ranked."""
    compute = resolve_compute(machine.device, machine.threads)
    images = index(data, "target", layout, pattern)
    if not images.scorable or images.labels is None:
        raise DataError(f"{data} has no queries and gallery with identities: nothing can be scored on it")
    brought = import_model(model, backbone=backbone, height=height, width=width)
    query, gallery = (features_of(brought, images, split, machine, compute) for split in ("query", "gallery"))
    options: dict[str, Any] = {"protocol": protocol, "ties": ties, "seed": derive_seed(seed, "evaluate")}
    scores = {
        name: evaluate_step(query, gallery, images, images.labels, compute=compute, iteration=0, rerank=name == "reranked", **options)
        for name in (("plain", "reranked") if rerank else ("plain",))
    }
    return {"model": model, "data": data, "protocol": protocol, "ties": ties, "unscored": unscored, **report(scores, unscored)}
