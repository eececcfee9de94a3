"""Readers of scores.parquet: means over queries by the names they are recorded under."""

from typing import Any

from pul_core.scoring.evaluation import Scores, Summary, Unscored, summarise
from tasks.store.artifacts import Artifact, column, locate, read_table

RANKS = (1, 5, 10, 20)


def read_summary(scores: Artifact, unscored: Unscored = "left_out") -> Summary:
    """Return the means over the queries of each split."""
    table = read_table(scores)
    return summarise(Scores(*(column(table, name) for name in Scores._fields)), column(table, "split"), unscored=unscored)


def read_figures(scores: Artifact, unscored: Unscored = "left_out") -> dict[str, float]:
    """Return the means by the names they are recorded under."""
    summary = read_summary(scores, unscored)
    figures = {f"rank_{rank}": float(summary.cmc[rank - 1]) for rank in RANKS}
    figures |= {"mAP": summary.mean_ap, "mAP_trapezoidal": summary.mean_ap_trapezoidal, "mINP": summary.mean_inp}
    return figures | {"num_scored_queries": summary.num_scored, "num_unscored_queries": summary.num_unscored}


def report(scores: dict[str, Artifact], unscored: Unscored) -> dict[str, dict[str, Any]]:
    """Return for each named table of scores its figures, its whole CMC curve and where the table lies."""
    return {
        name: {**read_figures(table, unscored), "cmc": read_summary(table, unscored).cmc.tolist(), "scores": locate(table)}
        for name, table in scores.items()
    }
