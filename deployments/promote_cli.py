"""`pul promote`: makes the model of a run the champion of its registered model, and prints both models' measures."""

import json
from typing import Annotated, Any

import typer

from deployments.arguments import Device, Threads, Verbose
from deployments.display import display
from deployments.errors import quieten
from deployments.servers import prepare_flow_run
from deployments.tables import format_metric, render_table
from tasks.engine.status import activity

TITLES = {
    "rank_1": "rank-1",
    "mAP": "mAP",
    "mINP": "mINP",
    "reliable_fraction": "reliable fraction",
    "reliable_overlap": "reliable overlap",
    "reliable_set_size": "reliable images",
    "num_clusters": "clusters",
}


def promote_command(
    run: Annotated[str | None, typer.Argument(help="The id or unique name of a finished run; default the newest finished one.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why; required if the scores are lower than those of the champion.")] = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: both models' measures, scores as fractions.")] = False,
    verbose: Verbose = False,
) -> None:
    """Make a run's model the champion, the model in use.

    Moves the alias champion of MLflow's registered model. Both models are compared on the same images; a model with lower scores requires
    a reason. Nothing is trained, and nothing is done if the model is the champion already.

    \b
    pul promote amber-fox
    pul promote amber-fox --reason "the old model does not know the new cameras"
    """  # noqa: D301 \b keeps the lines of the examples
    parameters: dict[str, Any] = {"run": run, "reason": reason, "machine": {"device": device, "threads": threads}}
    with display("promote", verbose=verbose) as screen:
        with activity("find the champion"):
            from tasks.tracking.registry import compare_with_champion

            quieten()
            known = compare_with_champion(run)
        if known.is_champion:
            promotion = known.facts(reason)
        else:
            with activity("start Prefect and MLflow"):
                from flows.promote import promote_model

                prepare_flow_run(only_warnings=not (verbose or screen.log))
            promotion = promote_model(**parameters)
    typer.echo(json.dumps(promotion, indent=2) if as_json else _promotion_text(promotion))


def _promotion_text(promotion: dict[str, Any]) -> str:
    candidate, champion = promotion["candidate"], promotion["champion_before"]
    if not promotion["promoted"]:
        return (
            f"run {candidate['run']} is already the champion of {promotion['model']}, version {candidate['version']}: nothing was changed"
        )
    models = [model for model in (candidate, champion) if model]
    rows = [
        [title, *(format_metric(name, model[name]) for model in models)]
        for name, title in TITLES.items()
        if any(model[name] is not None for model in models)
    ]
    rows.append(["stopped", *(str(model["stop_reason"]) for model in models)])
    titles = ["", f"run {candidate['run']}", *([f"champion, run {champion['run']}"] if champion else [])]
    lines = [render_table(titles, rows, left=[""])]
    if candidate["rank_1"] is None:
        lines.append("the target has no labels: accuracy is not known, and the other measures do not rank models")
    lines += [f"against it: {objection}" for objection in promotion["against"]]
    return "\n".join([*lines, f"version {candidate['version']} of {promotion['model']} is now the champion"])
