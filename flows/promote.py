"""Flow `promote`: makes the model of a finished run the champion of its registered model, after a comparison on the same data."""

from typing import Any

from prefect import flow

from flows.evaluate import features_of
from pul_core.settings import Machine
from tasks.engine.compute import Resources, resolve_compute
from tasks.evaluate import evaluate
from tasks.index import index
from tasks.models import import_model
from tasks.store.config import Overrides, override
from tasks.store.references import ImageSet, TargetStatistics
from tasks.store.scores import metrics_of, read_summary
from tasks.tracking.registry import Registered, compare_with_champion, logged_statistics, promote


@flow(name="promote", validate_parameters=True)
def promote_model(run: str | None = None, reason: str | None = None, machine: Overrides[Machine] = Overrides[Machine]()) -> dict[str, Any]:
    """Give the model of a finished run the alias champion, and return both models' measures.

    If the target has changed since the champion's run, both models are scored again on its present images.

    Args:
        run: The id or unique name of a finished run. Empty: the newest finished one.
        reason: Why the model is promoted; required if its scores are lower than the champion's.
    """
    promotion = compare_with_champion(run)
    if promotion.needs_scores and promotion.champion is not None:
        candidate, champion = promotion.candidate, promotion.champion
        compute = resolve_compute(override(Machine(), machine))
        images = index(candidate.target, "target", candidate.layout, candidate.pattern)
        scores = {role: _score(model, images, compute) for role, model in (("candidate", candidate), ("champion", champion))}
        promotion = promotion.with_scores(scores["candidate"], scores["champion"], images.images.sha256)
    return promote(promotion, reason=reason)


def _score(model: Registered, images: ImageSet, compute: Resources) -> dict[str, float]:
    """Score a registered model on a data set, with its statistics and settings; empty without labelled queries and a gallery."""
    if not images.scorable or images.labels is None:
        return {}
    imported, logged = import_model(model.uri), logged_statistics(model.uri)
    statistics = TargetStatistics(statistics=logged, cameras=images.images) if logged else None
    query, gallery = (features_of(imported, images, split, compute.inference, statistics) for split in ("query", "gallery"))
    scores = evaluate(query, gallery, images, images.labels, compute=compute.analysis, iteration=0, centre_cameras=model.centre_cameras)
    return metrics_of(read_summary(scores))
