"""Flow `evaluate`: scores a model on a data set. Its steps are those of the loop, so cached results are reused."""

from dataclasses import replace
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from pul_core.scoring.evaluation import Unscored
from pul_core.scoring.protocols import ProtocolName
from pul_core.scoring.ranks import Ties
from pul_core.seeds import derive_seed
from pul_core.settings import Machine, Statistics
from tasks.cameras import cameras_of
from tasks.decode import decode
from tasks.engine.compute import resolve_compute
from tasks.evaluate import evaluate
from tasks.extract import extract_features
from tasks.index import index
from tasks.models import import_model
from tasks.preflight import check_evaluation
from tasks.statistics import settings_of, statistics_of
from tasks.store.artifacts import Artifact
from tasks.store.config import Overrides, override
from tasks.store.model_file import model_size
from tasks.store.references import Compute, ImageSet, TargetStatistics
from tasks.store.scores import read_metrics_and_cmc

Pixels = Annotated[int, Field(ge=1, le=4096)]


def features_of(model: Artifact, images: ImageSet, split: str, compute: Compute, statistics: TargetStatistics | None = None) -> Artifact:
    """Decode a split at the input size of the model and extract its features."""
    pixels = decode(images, split=split, **model_size(model))
    return extract_features(model, pixels, statistics, compute=compute, iteration=0, split=split)


def statistics_on(model: Artifact, images: ImageSet, settings: Statistics, compute: Compute, seed: int) -> TargetStatistics | None:
    """Estimate the statistics of a model on the training images of a data set; style groups are those of this model."""
    pixels = decode(images, split="train", **model_size(model))
    cameras = cameras_of(model, pixels, images, settings=settings, seed=derive_seed(seed, "style"), compute=compute)
    return statistics_of(model, pixels, cameras, settings=settings, seed=derive_seed(seed, "statistics"), compute=compute, iteration=0)


@flow(name="evaluate", validate_parameters=True)
def evaluate_model(
    model: str,
    data: str,
    layout: str | None = None,
    pattern: str | None = None,
    protocol: ProtocolName = "market1501",
    ties: Ties = "pessimistic",
    unscored: Unscored = "left_out",
    rerank: bool = False,
    statistics: Overrides[Statistics] = Overrides[Statistics](),
    backbone: str | None = None,
    height: Pixels | None = None,
    width: Pixels | None = None,
    machine: Overrides[Machine] = Overrides[Machine](),
    seed: Annotated[int, Field(ge=0)] = 0,
) -> dict[str, Any]:
    """Score a model on a data set and return its plain scores and, on request, its re-ranked scores.

    Args:
        model: A model file, the name of an earlier run, RUN/iteration=N, or an MLflow model URI.
        data: The labelled images: any data set with queries and a gallery.
        layout: The layout of the data set (docs/data.md). Empty: detected.
        pattern: A regular expression with named groups for the image paths; implies layout pattern.
        protocol: See docs/protocols.md.
        ties: How gallery images at equal distances are ranked.
        unscored: How queries without a correct match are counted.
        rerank: Also report the scores after k-reciprocal re-ranking.
        statistics: Used if by_camera is set; what is left empty is as in the model's run, or as in modern.
        backbone: A timm model name. Empty: that of the model file, or recognised by its tensors.
        height: Input size in pixels. Empty: that of the model file, or 256 if it states none.
        width: Input size in pixels. Empty: that of the model file, or 128 if it states none.
        seed: The seed of the random splits of cuhk03_old and viper, and of the images that statistics are estimated from.
    """
    compute = resolve_compute(override(Machine(), machine))
    settings = override(replace(settings_of(model), by_camera=False), statistics)
    images = index(data, "target", layout, pattern)
    labels = check_evaluation(images, data, settings)
    imported = import_model(model, backbone=backbone, height=height, width=width)
    by_camera = statistics_on(imported, images, settings, compute.analysis, seed) if settings.by_camera else None
    query, gallery = (features_of(imported, images, split, compute.inference, by_camera) for split in ("query", "gallery"))
    scores = {
        ranking: evaluate(
            query,
            gallery,
            images,
            labels,
            compute=compute.analysis,
            iteration=0,
            rerank=ranking == "reranked",
            protocol=protocol,
            ties=ties,
            seed=derive_seed(seed, "evaluate"),
        )
        for ranking in (("plain", "reranked") if rerank else ("plain",))
    }
    return {
        "model": model,
        "data": data,
        "protocol": protocol,
        "ties": ties,
        "unscored": unscored,
        **read_metrics_and_cmc(scores, unscored),
    }
