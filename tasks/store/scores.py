"""Readers of scores.parquet: means over the queries under their recorded metric names."""

from typing import Any

from pul_core.scoring.evaluation import Scores, Summary, Unscored, summarise
from tasks.store.artifacts import Artifact, column, locate, read_table

RANKS = (1, 5, 10, 20)


def read_summary(scores: Artifact, unscored: Unscored = "left_out") -> Summary:
    """Return the means over the queries of each split, averaged over the splits."""
    table = read_table(scores)
    return summarise(Scores(*(column(table, name) for name in Scores._fields)), column(table, "split"), unscored=unscored)


def read_metrics_and_cmc(scores: dict[str, Artifact], unscored: Unscored) -> dict[str, dict[str, Any]]:
    """Return, for each named table of scores, its metrics, its CMC curve (``cmc``) and the location of the table (``scores``)."""
    summaries = {name: read_summary(table, unscored) for name, table in scores.items()}
    return {
        name: {**metrics_of(summary), "cmc": summary.cmc.tolist(), "scores": locate(scores[name])} for name, summary in summaries.items()
    }


def metrics_of(summary: Summary) -> dict[str, float]:
    """Return the means over the queries under their recorded metric names, e.g. ``rank_1`` and ``mAP``."""
    metrics = {f"rank_{rank}": float(summary.cmc[rank - 1]) for rank in RANKS}
    metrics |= {"mAP": summary.mean_ap, "mAP_trapezoidal": summary.mean_ap_trapezoidal, "mINP": summary.mean_inp}
    return metrics | {"num_scored_queries": summary.num_scored, "num_unscored_queries": summary.num_unscored}
