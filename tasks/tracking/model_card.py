"""The model card: where a model comes from, its scores, its limits, and its conditions of use; as plain values and as Markdown."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mlflow.entities import Run

from pul_core.stopping import EXPLANATIONS
from tasks.store.licences import Licence
from tasks.tracking.client import client, search_runs
from tasks.tracking.results import run_id_of

SCORES = {"rank_1": "rank-1", "rank_5": "rank-5", "mAP": "mAP", "mINP": "mINP"}
WITHOUT_LABELS = {
    "reliable_set_size": "images in the reliable set",
    "reliable_fraction": "share of the target's training images that is reliable",
    "reliable_overlap": "overlap with the reliable set of the iteration before",
    "num_clusters": "clusters",
    "num_single_image_clusters": "clusters of a single image",
}
LIMITS = (
    "The model is made for the cameras of its target. On other cameras, expect less: measure before use.",
    "It maps a crop of one upright person to a feature. It neither detects nor tracks people. It recognises clothes and build, not faces; "
    "the same person in other clothes is usually missed.",
    "The nearest images are suggestions, never proof of an identity. Choose a threshold on images of your cameras, and let a person check.",
    "Scores are not reported by group of people. Source and target decide who is recognised well and who is not.",
)
LICENCES = {"weights": "initial weights", "source_data": "images of the source", "target_data": "images of the target", "code": "code"}
RESEARCH_ONLY = "Published data sets are mostly for research only, and so may be models that were trained on them."
RESPONSIBLE_USE = (
    "Person re-identification is surveillance technology. Use requires a lawful basis, a purpose, and a limit on how long images are kept; "
    "in many places it also requires an impact assessment. Do not use the model to decide about people without a person who checks and "
    "answers for the decision."
)


def model_card(run: Run, iteration: int, *, licence: Licence, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the card of the model of an iteration.

    Args:
        run: the MLflow run of the run.
        iteration: whose model it is.
        licence: licences of the model, see `tasks.models.licence_of`.
        digests: more digests, by name.
    """
    nested = _iterations(run)
    model, direct = nested[iteration], nested.get(0)
    inputs = {role: datasets_of(run, role) for role in ("source", "target")}
    params, tags = run.data.params, run.data.tags
    origins = [data["name"] for data in inputs["source"]] or [params.get("original_model", "unknown")]
    targets = ", ".join(data["name"] for data in inputs["target"])
    last = max(nested)
    reason = tags.get("pul.stop_reason") if iteration == last else None
    return {
        "title": f"Person re-identification: {' + '.join(origins)} to {targets}, run {run_id_of(run)}, iteration {iteration}",
        "run": run_id_of(run),
        "iteration": iteration,
        "created": datetime.fromtimestamp(run.info.start_time / 1000, UTC).date().isoformat(),
        "backbone": params.get("model.backbone", "unknown"),
        "input": f"{params.get('model.height')} x {params.get('model.width')} pixels",
        "source": inputs["source"] or [{"name": origins[0]}],
        "target": inputs["target"],
        "recipe": tags.get("pul.recipe", "unknown"),
        "seed": params.get("seed", "unknown"),
        "statistics_by_camera": iteration > 0 and params.get("statistics.by_camera") == "True",
        "whitened": iteration > 0 and params.get("statistics.by_camera") == "True" and float(params.get("statistics.whitening", 0)) > 0,
        "centre_cameras": is_scored_centred(params),
        "flip": params.get("model.flip") == "True",
        "digests": {
            "model (first 16 digits of SHA-256)": model.data.tags.get("pul.results", "").partition(" ")[0] or "unknown",
            "code (git commit)": tags.get("mlflow.source.git.commit", "unknown"),
            **(digests or {}),
        },
        "scores": _select(model, SCORES),
        "scores_of_direct_transfer": _select(direct, SCORES) if direct and iteration else {},
        "without_labels": _select(model, WITHOUT_LABELS),
        "stop_reason": f"{reason}: {EXPLANATIONS.get(reason, '')}" if reason else "",  # type: ignore[call-overload]
        "limits": list(LIMITS),
        "licences": {**licence.model_dump(), "code": "Apache-2.0"},
        "responsible_use": RESPONSIBLE_USE,
    }


def is_scored_centred(params: Mapping[str, str]) -> bool:
    """Return whether a run with these MLflow parameters scores features that are centred by camera (`Recipe.centre_scores`)."""
    return params.get("model.centre_cameras") == "True" and params.get("statistics.ignore_cameras") != "True"


def card_text(card: Mapping[str, Any]) -> str:
    """Return a card as Markdown.

    Example:
        >>> card = {"title": "T", "source": [{"name": "a"}], "target": [{"name": "b", "digest": "12"}], "scores": {"mAP": 0.5}}
        >>> text = card_text(card | {"scores_of_direct_transfer": {"mAP": 0.3}, "limits": ["One."], "digests": {"model": "ab"}})
        >>> print(text.split("## Limits")[0].replace(chr(10) * 2, chr(10)).rstrip())
        ## T
        | | |
        |---|---|
        | source | a |
        | target | b (12) |
        | digest: model | ab |
        ## Scores
        On the labelled queries and gallery of the target, which took no part in training.
        | | direct transfer | this model |
        |---|---|---|
        | mAP | 30.0 % | 50.0 % |
    """
    facts = {name: card[name] for name in ("run", "iteration", "created", "backbone", "input", "recipe", "seed") if name in card}
    facts |= {role: "; ".join(_dataset_text(data) for data in card.get(role, [])) for role in ("source", "target")}
    if card.get("statistics_by_camera"):
        facts["BatchNorm statistics"] = "estimated on the target"
    if card.get("whitened"):
        facts["whitening"] = "by the covariance of the features of the target"
    if card.get("flip"):
        facts["features"] = "the mean of those of an image and of its mirror image"
    if card.get("centre_cameras"):
        facts["scored with"] = "the mean feature of each camera subtracted"
    if card.get("stop_reason"):
        facts["stopped"] = card["stop_reason"]
    facts |= {f"digest: {name}": digest for name, digest in card.get("digests", {}).items()}
    lines = [f"## {card['title']}", "", *_table(["", ""], facts.items())]
    direct = card.get("scores_of_direct_transfer", {})
    if scores := card.get("scores"):
        lines += ["", "## Scores", "", "On the labelled queries and gallery of the target, which took no part in training.", ""]
        rows = [[SCORES[name], *([_percent(direct.get(name))] if direct else []), _percent(value)] for name, value in scores.items()]
        lines += _table(["", *(["direct transfer"] if direct else []), "this model"], rows)
    else:
        lines += ["", "## Scores", "", "None: the target has no labelled queries and gallery."]
    if measures := card.get("without_labels"):
        lines += ["", "## Measures without labels", ""]
        lines += _table(["", ""], ([WITHOUT_LABELS[name], f"{value:,.4g}"] for name, value in measures.items()))
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in card.get("limits", []))]
    licences = card.get("licences", {})
    lines += ["", "## Licences", "", *_table(["", ""], ([LICENCES[name], licences[name]] for name in LICENCES if name in licences))]
    lines += ["", RESEARCH_ONLY]
    return "\n".join([*lines, "", "## Responsible use", "", card.get("responsible_use", "")]).rstrip() + "\n"


def _iterations(run: Run) -> dict[int, Run]:
    nested = search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    return {int(item.data.tags["pul.iteration"]): client().get_run(item.info.run_id) for item in nested}


def datasets_of(run: Run, role: str) -> list[dict[str, str]]:
    """Return name, digest and number of images of the data sets with a role."""
    found = []
    for item in run.inputs.dataset_inputs if run.inputs else []:
        if any(tag.value == role for tag in item.tags):
            splits = json.loads(item.dataset.profile or "{}").get("splits", {})
            images = ", ".join(f"{count:,} {split}" for split, count in splits.items())
            found.append({"name": item.dataset.name, "digest": item.dataset.digest, "images": images})
    return found


def _select(run: Run, names: Mapping[str, str]) -> dict[str, float]:
    return {name: run.data.metrics[name] for name in names if name in run.data.metrics}


def _dataset_text(data: Mapping[str, str]) -> str:
    details = ", ".join(data[name] for name in ("images", "digest") if data.get(name))
    return f"{data['name']} ({details})" if details else data["name"]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _table(titles: list[str], rows: Any) -> list[str]:
    """Return the lines of a Markdown table."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [titles, *rows]]
    head, *body = [f"| {' | '.join(row)} |" for row in cells]
    return [head.replace("|  |", "| |").replace("|  |", "| |"), "|" + "---|" * len(titles), *body]
