"""Runs side by side: one row per run, the parameters in which they differ, and their curves."""

from typing import Any

import pandas as pd

from pul_core.scoring.comparison import summarise_run
from tasks.report.charts import line_chart
from tasks.report.formats import count, duration, percent, points
from tasks.report.run_data import RunData
from tasks.report.trust import gain_of
from tasks.report.views import ChartView, SectionView, TableView
from tasks.store.config import flatten

CURVES = {"reliable_set_size": ("Size of the reliable set", "images"), "mAP": ("mAP", "mAP"), "rank_1": ("Rank-1", "rank-1")}


def comparison_table(runs: list[RunData]) -> TableView:
    """Return one row per run."""
    titles = [
        "run",
        "recipe",
        "mAP",
        "gain",
        "95 % interval",
        "direct mAP",
        "rank-1",
        "reliable",
        "clusters",
        "iterations",
        "ended",
        "time",
    ]
    rows = []
    for run in runs:
        summary, gain = summarise_run(run.metrics), gain_of(run)
        rows.append(
            [
                run.id,
                run.recipe,
                percent(summary["mAP"]),
                points(summary["gain_mAP"]),
                f"{points(gain.low)} to {points(gain.high)}" if gain else "–",
                percent(summary["direct_mAP"]),
                percent(summary["rank_1"]),
                count(summary["reliable_set_size"]),
                count(summary["num_clusters"]),
                str(run.last),
                run.stop_reason or run.status,
                duration(summary["seconds"]),
            ]
        )
    return TableView(titles, rows, left=["run", "recipe", "ended"], title="Runs")


def differences_table(runs: list[RunData]) -> TableView:
    """Return the parameters, and the digests of the target, in which the runs differ: one row each, one column per run."""
    flat: list[dict[str, Any]] = [flatten(run.parameters) | {"target images": run.files["images"][7:19]} for run in runs]
    names = sorted(set().union(*flat))
    rows = [[name, *(str(each.get(name, "–")) for each in flat)] for name in names if len({repr(each.get(name)) for each in flat}) > 1]
    return TableView(["parameter", *(run.id for run in runs)], rows, left=["parameter"], title="Parameters that differ")


def comparability(runs: list[RunData]) -> str:
    """Return a sentence that says whether the scores of the runs may be compared."""
    if len({run.files["images"] for run in runs}) > 1:
        return "The runs have different targets, so their scores must not be compared with each other."
    if len({run.scored_centred for run in runs}) > 1:
        return "The runs have the same target. Only some are scored on features that are centred by camera, which alone changes scores."
    return "The runs have the same target, so their scores are of the same queries and gallery."


def compare(runs: list[RunData]) -> SectionView:
    """Show runs side by side."""
    charts = []
    for name, (title, y_title) in CURVES.items():
        values = [
            {"iteration": number, "series": run.id, "value": metrics[name]}
            for run in runs
            for number, metrics in enumerate(run.metrics)
            if name in metrics
        ]
        if values:
            frame = pd.DataFrame(values)
            is_score = name != "reliable_set_size"
            show = percent if is_score else count
            table = frame.pivot_table(index="iteration", columns="series", values="value")
            rows = [[str(at), *(show(row.get(run.id)) for run in runs)] for at, row in table.iterrows()]
            charts.append(
                ChartView(
                    f"compare-{name}",
                    title,
                    line_chart(frame, y_title=y_title, percent=is_score),
                    "One line per run.",
                    TableView(["iteration", *(run.id for run in runs)], rows),
                )
            )
    differences = differences_table(runs)
    notes = [] if differences.rows else ["The runs have the same parameters."]
    tables = [comparison_table(runs), *([differences] if differences.rows else [])]
    return SectionView(
        name="compare",
        title="Scores and parameters",
        lead=comparability(runs),
        charts=charts,
        tables=tables,
        tables_first=True,
        notes=notes,
    )
