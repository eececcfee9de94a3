"""Sections over iterations: the reliable set, the scores, and the time of each step."""

import pandas as pd

from pul_core.reporting.gain import paired_gain
from tasks.report.charts import bar_chart, line_chart
from tasks.report.formats import count, duration, percent, points
from tasks.report.run_data import RunData
from tasks.report.views import ChartView, SectionView, TableView
from tasks.store.artifacts import column

SCORES = {"rank_1": "rank-1", "rank_5": "rank-5", "rank_10": "rank-10", "mAP": "mAP", "mINP": "mINP"}
CURVES = ("rank_1", "mAP", "mINP")
ORACLES = {"oracle_nmi": "NMI", "oracle_reliable_purity": "purity of the reliable set"}
STEPS = {
    "seconds_original_model": "original model",
    "seconds_extract_features": "extract features",
    "seconds_cluster": "cluster",
    "seconds_select": "select",
    "seconds_fine_tune": "fine-tune",
    "seconds_statistics": "statistics",
    "seconds_group_by_style": "style groups",
    "seconds_evaluate": "evaluate",
}
STEP_COLOURS = (7, 5, 2, 8, 0, 4, 6, 3)


def reliable_set(run: RunData) -> SectionView:
    """Show the size of the reliable set, of the iterations that have one, and how it changed."""
    numbered = [(number, metrics) for number, metrics in enumerate(run.metrics) if "reliable_set_size" in metrics]
    section = SectionView(
        name="reliable",
        title="Reliable set",
        lead="The images that each iteration selected to train on. The loop stops by itself when their number is stable.",
    )
    if not numbered:
        section.notes = ["No iteration has selected images yet."]
        return section
    curves = {"reliable images": "reliable_set_size", "clusters": "num_clusters"}
    totals = [{"iteration": number, "series": "all images", "value": _num_images(metrics)} for number, metrics in numbered]
    frame = pd.DataFrame(
        [{"iteration": number, "series": title, "value": metrics[name]} for title, name in curves.items() for number, metrics in numbered]
        + totals
    )
    rows, before = [], None
    for number, metrics in numbered:
        size = metrics["reliable_set_size"]
        rows.append(
            [
                str(number),
                count(size),
                "–" if before is None else f"{100 * (size - before) / max(before, 1):+.1f} %",
                percent(metrics.get("reliable_fraction")),
                count(metrics["num_clusters"]),
                percent(metrics.get("reliable_overlap")),
                f"{metrics['reliable_agreement_ari']:.2f}" if "reliable_agreement_ari" in metrics else "–",
            ]
        )
        before = size
    table = TableView(
        ["iteration", "reliable", "change", "of all images", "clusters", "overlap", "agreement"],
        rows,
        note="Overlap: Jaccard index of the images selected in this iteration and the one before. Agreement: adjusted Rand index of their "
        "pseudo-labels.",
    )
    section.charts = [
        ChartView("reliable", "Size of the reliable set", line_chart(frame, y_title="images or clusters"), _size_sentence(rows), table)
    ]
    return section


def _num_images(metrics: dict[str, float]) -> float:
    share = metrics.get("reliable_fraction") or 0
    return round(metrics["reliable_set_size"] / share) if share else 0


def _size_sentence(rows: list[list[str]]) -> str:
    last = f"{rows[-1][1]} images are reliable in iteration {rows[-1][0]}, {rows[-1][3]} of all"
    return f"{last}; {rows[0][1]} were in iteration {rows[0][0]}." if len(rows) > 1 else f"{last}."


def scores(run: RunData) -> SectionView:
    """Show the scores of each iteration, the gain over direct transfer, and the diagnostics that need labels."""
    section = SectionView(
        name="scores",
        title="Scores",
        lead="Iteration 0 is direct transfer: the original model on the new cameras. Scores never influence the run.",
    )
    scored = [(number, metrics) for number, metrics in enumerate(run.metrics) if "mAP" in metrics]
    if not scored:
        section.notes = ["The target has no labelled queries and gallery, so nothing is scored."]
    else:
        frame = pd.DataFrame(
            [
                {"iteration": number, "series": SCORES[name], "value": metrics[name]}
                for name in CURVES
                for number, metrics in scored
                if name in metrics
            ]
        )
        rows = [[str(number), *(percent(metrics.get(name)) for name in SCORES)] for number, metrics in scored]
        last = scored[-1]
        text = f"rank-1 {percent(last[1]['rank_1'])} and mAP {percent(last[1]['mAP'])} in iteration {last[0]}."
        section.charts = [
            ChartView(
                "scores",
                "Scores by iteration",
                line_chart(frame, y_title="score", percent=True),
                text,
                TableView(["iteration", *SCORES.values()], rows),
            )
        ]
        section.tables = [gain] if (gain := _gain_table(run)) else []
        section.notes = _notes(run)
    oracle = [(number, metrics) for number, metrics in enumerate(run.metrics) if any(name in metrics for name in ORACLES)]
    if oracle:
        frame = pd.DataFrame(
            [
                {"iteration": number, "series": title, "value": metrics[name]}
                for name, title in ORACLES.items()
                for number, metrics in oracle
                if name in metrics
            ]
        )
        rows = [[str(number), *(percent(metrics.get(name)) for name in ORACLES)] for number, metrics in oracle]
        section.charts = [
            *section.charts,
            ChartView(
                "oracle",
                "Clusters against identities",
                line_chart(frame, y_title="share", percent=True, zero=False),
                "NMI of clusters and identities, and the share of reliable images whose person is the most frequent one of their class. "
                "Both need the true identities of the training images, which the run never sees.",
                TableView(["iteration", *ORACLES.values()], rows),
            ),
        ]
    return section


def _gain_table(run: RunData) -> TableView | None:
    """Compare the last model with direct transfer, query by query."""
    before, after = run.scores(0), run.scores(run.last)
    if run.last == 0 or before is None or after is None or run.pids is None or before.num_rows != after.num_rows:
        return None
    pids = run.pids[column(after, "row")]
    rows = []
    for title, values in (
        ("rank-1", [(column(table, "first_hit") == 1).astype(float) for table in (before, after)]),
        ("mAP", [column(table, "ap") for table in (before, after)]),
        ("mINP", [column(table, "inp") for table in (before, after)]),
    ):
        scored = column(before, "num_positives") > 0
        gain = paired_gain(values[0][scored], values[1][scored], pids[scored])
        if gain:
            means = [percent(float(value[scored].mean())) for value in values]
            rows.append([title, *means, points(gain.difference), f"{points(gain.low)} to {points(gain.high)}"])
    return TableView(
        ["score", "direct transfer", f"iteration {run.last}", "gain in points", "95 % interval"],
        rows,
        left=["score"],
        note="The interval compares the models query by query and describes the choice of test people. Another seed can differ by more.",
        title="Gain over direct transfer",
    )


def _notes(run: RunData) -> list[str]:
    notes = []
    values = [metrics.get("mAP") for metrics in run.metrics]
    best = max((value, -number) for number, value in enumerate(values) if value is not None)
    if -best[1] != run.last and values[run.last] is not None:
        notes.append(
            f"Iteration {-best[1]} has the highest mAP, {percent(best[0])}. Choosing it needs test labels, so it is not the run's result."
        )
    if statistics := run.metrics[0].get("mAP_statistics"):
        notes.append(
            f"With the statistics of the target and nothing trained, the original model has an mAP of {percent(statistics)}; the rest of "
            "the gain comes from training."
        )
    return notes


def times(run: RunData) -> SectionView:
    """Show the computing time of each step."""
    steps = [name for name in STEPS if any(name in metrics for metrics in run.metrics)]
    frame = pd.DataFrame(
        [
            {"x": str(number), "series": STEPS[name], "value": metrics.get(name, 0.0)}
            for number, metrics in enumerate(run.metrics)
            for name in steps
        ]
    )
    colours = [STEP_COLOURS[list(STEPS).index(name)] for name in steps]
    rows = [
        [str(number), *(duration(metrics.get(name)) for name in steps), duration(sum(metrics.get(name, 0) for name in steps))]
        for number, metrics in enumerate(run.metrics)
    ]
    total = sum(metrics.get(name, 0) for metrics in run.metrics for name in steps)
    spec = bar_chart(frame, x="iteration", y_title="seconds", series=[STEPS[name] for name in steps], colours=colours, value_format=",.1f")
    return SectionView(
        name="time",
        title="Time",
        lead=f"{duration(total)} of computing. A step that came from the cache counts with the time that it took originally.",
        charts=[
            ChartView(
                "time",
                "Time by step",
                spec,
                f"The {len(run.metrics)} iterations took {duration(total)} together.",
                TableView(["iteration", *(STEPS[name] for name in steps), "together"], rows),
            )
        ],
    )
