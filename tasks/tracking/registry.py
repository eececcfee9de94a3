"""The registry of MLflow: aliases `candidate` and `champion` of a registered model, its card, and the promotion of a run's model.

`candidate` is the model of the newest finished run and is moved by the run. `champion` is the model in use and is moved by a person only.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pul_core.errors import DataError, UserError
from pul_core.promotion import reasons_against
from tasks.engine.links import linked
from tasks.engine.progress import step_logger
from tasks.store.artifacts import Artifact
from tasks.store.licences import Licence
from tasks.store.references import Reference
from tasks.store.statistics_file import deployed_statistics, write_statistics
from tasks.tracking.client import client
from tasks.tracking.model_card import card_text, datasets_of, is_scored_centred, model_card
from tasks.tracking.models import RUN_TAG
from tasks.tracking.results import IS_RUN, degeneration_of, find_run, newest_run, read_results, run_id_of

CANDIDATE, CHAMPION = "candidate", "champion"
REASON_TAG = "pul.promotion_reason"  # tag of a version: why a person promoted it
REPLACED_TAG = "pul.replaced_version"  # tag of a version: the version that was the champion before it
SCORES = ("rank_1", "mAP", "mINP")
WITHOUT_LABELS = ("reliable_set_size", "reliable_fraction", "reliable_overlap", "num_clusters")


class Registered(Reference):
    """A version of a registered model with the measures of its run's last iteration, scores as fractions; None is unknown."""

    uri: str  # of MLflow
    version: str
    run: str
    target: str
    layout: str | None
    pattern: str | None
    target_digest: str  # the first 32 digits of that of images.parquet
    centre_cameras: bool
    stop_reason: str | None
    degenerate: str | None  # how its reliable set is
    measures: dict[str, float | None]

    def facts(self) -> dict[str, Any]:
        """Return version, run, reason to stop, degeneration and measures as plain values."""
        return {"version": self.version, "run": self.run, "stop_reason": self.stop_reason, "degenerate": self.degenerate, **self.measures}


class Promotion(Reference):
    """The model of a run, and the champion that it would replace."""

    name: str  # of the registered model
    candidate: Registered
    champion: Registered | None

    @property
    def is_champion(self) -> bool:
        """Return whether the model is the champion already."""
        return self.champion is not None and self.champion.version == self.candidate.version

    @property
    def needs_scores(self) -> bool:
        """Return whether the recorded scores are on different images."""
        return self.champion is not None and self.champion.target_digest != self.candidate.target_digest

    @property
    def against(self) -> list[str]:
        """Return what speaks against the promotion."""
        if self.champion is None or self.is_champion:
            return []
        return reasons_against(self.candidate.facts(), self.champion.facts(), same_data=not self.needs_scores)

    def facts(self, reason: str | None = None) -> dict[str, Any]:
        """Return the comparison as plain values, with the reason that the user states."""
        return {
            "model": self.name,
            "candidate": self.candidate.facts(),
            "champion_before": self.champion.facts() if self.champion else None,
            "against": self.against,
            "reason": reason,
            "promoted": not self.is_champion,
        }

    def with_scores(self, candidate: Mapping[str, float], champion: Mapping[str, float], digest: str) -> "Promotion":
        """Return the comparison with scores of both models on other images, which have this digest."""
        assert self.champion is not None
        models = (self.candidate, candidate), (self.champion, champion)
        scored = [
            model.model_copy(update={"target_digest": digest, "measures": model.measures | {name: scores.get(name) for name in SCORES}})
            for model, scores in models
        ]
        return self.model_copy(update={"candidate": scored[0], "champion": scored[1]})


def set_candidate(name: str, version: str, run: Run, *, licence: Licence) -> None:
    """Give a version the alias `candidate` and its model card, and describe the registered model.

    Args:
        name: of the registered model.
        version: of the run's last iteration.
        run: the MLflow run of the run.
        licence: licences of the model.
    """
    iteration = int(client().get_run(str(client().get_model_version(name, version).run_id)).data.tags["pul.iteration"])
    client().update_model_version(name, version, card_text(model_card(run, iteration, licence=licence)))
    client().set_registered_model_alias(name, CANDIDATE, version)
    describe(name)


def describe(name: str) -> None:
    """Set the description of a registered model: the versions with an alias, and the card of the champion, or else of the candidate."""
    versions = {alias: version_of(name, alias) for alias in (CHAMPION, CANDIDATE)}
    known = {alias: version for alias, version in versions.items() if version is not None}
    lines = [f"- `{alias}`: version {version.version}, run {version.tags.get(RUN_TAG)}" for alias, version in known.items()]
    card = next(iter(known.values())).description or "" if known else ""
    client().update_registered_model(name, "\n".join([*lines, "", card]))


def version_of(name: str, alias: str) -> ModelVersion | None:
    """Return the version of a registered model with an alias; None if there is none."""
    try:
        return client().get_model_version_by_alias(name, alias)
    except MlflowException:
        return None


def compare_with_champion(reference: str | None) -> Promotion:
    """Compare the model of a finished run with the champion of its registered model.

    Args:
        reference: the run, see `find_run`; None: the newest finished one.

    Raises:
        DataError: the run is unknown, or is not finished.
    """
    run = find_run(reference) if reference else newest_run(f"{IS_RUN} and attributes.status = 'FINISHED'")
    run_id = run_id_of(run)
    versions = list(client().search_model_versions(f"tags.`{RUN_TAG}` = '{run_id}'"))
    if not versions:
        raise DataError(f"run {run_id} has no registered model, which a run gets when it is finished: pul resume {run_id} finishes it")
    version = max(versions, key=lambda item: int(item.version))
    current = version_of(version.name, CHAMPION)
    champion = _registered(find_run(current.tags[RUN_TAG]), current) if current else None
    return Promotion(name=version.name, candidate=_registered(run, version), champion=champion)


def logged_statistics(uri: str) -> Artifact | None:
    """Return the statistics by camera that are logged with a model; None if it has none."""
    with tempfile.TemporaryDirectory() as folder:
        files = list(Path(download_artifacts(artifact_uri=uri, dst_path=folder)).rglob("statistics.parquet"))
        return write_statistics(deployed_statistics(files[0])) if files else None


@linked("promote")
def promote(promotion: Promotion, *, reason: str | None = None) -> dict[str, Any]:
    """Move the alias `champion` to the model of a run, and record the reason.

    Args:
        promotion: see `compare_with_champion`.
        reason: why; required if something speaks against it.

    Returns:
        The comparison as plain values.

    Raises:
        UserError: something speaks against it and no reason is stated.
    """
    name, candidate, champion, against = promotion.name, promotion.candidate, promotion.champion, promotion.against
    if against and not (reason or "").strip():
        raise UserError(f"run {candidate.run} is not promoted: {'; '.join(against)}; state why it is better with --reason")
    if not promotion.is_champion:
        client().set_model_version_tag(name, candidate.version, REASON_TAG, reason or "")
        client().set_model_version_tag(name, candidate.version, REPLACED_TAG, champion.version if champion else "")
        client().set_registered_model_alias(name, CHAMPION, candidate.version)
        describe(name)
        step_logger().info("%s: version %s of run %s is the champion", name, candidate.version, candidate.run)
    return promotion.facts(reason)


def _registered(run: Run, version: ModelVersion) -> Registered:
    """Return a version with the measures of its run's last iteration."""
    last = read_results(run_id_of(run))["iterations"][-1]
    targets = datasets_of(run, "target")
    params = run.data.params
    layout, pattern = (
        None if params.get(name) in (None, "None") else params[name] for name in ("target_data.layout", "target_data.pattern")
    )
    return Registered(
        uri=f"models:/{version.name}/{version.version}",
        version=str(version.version),
        run=run_id_of(run),
        target=params["target"],
        layout=layout,
        pattern=pattern,
        target_digest=targets[0]["digest"] if targets else "",
        centre_cameras=is_scored_centred(params),
        stop_reason=run.data.tags.get("pul.stop_reason"),
        degenerate=degeneration_of(last, params["clustering.algorithm"]),
        measures={name: last.get(name) for name in (*SCORES, *WITHOUT_LABELS)},
    )
