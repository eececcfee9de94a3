"""One-row summary of a run: its last iteration, direct transfer, and the best iteration, which can be chosen with test labels only."""

from collections.abc import Mapping, Sequence

from pul_core.errors import UserError

Metrics = Mapping[str, float | None]

LAST_ITERATION_METRICS = (
    "rank_1",
    "mAP",
    "reliable_set_size",
    "num_clusters",
    "reliable_overlap",
    "reliable_agreement_ari",
    "oracle_reliable_purity",
)


def summarise_run(iterations: Sequence[Metrics]) -> dict[str, float | None]:
    """Summarise a run in one row.

    The result of a run is its last iteration. The best iteration is the one with the highest mAP on the test set (the earliest, if several
    are equal), including iteration 0. It is an oracle, because choosing it requires test labels.

    Args:
        iterations: metrics of iteration 0 (direct transfer), 1, 2, ... under their recorded names; scores are fractions.

    Returns:
        ``stop_iteration`` and that iteration's `LAST_ITERATION_METRICS`; ``direct_*``, ``gain_*`` and ``oracle_best_*`` of rank_1 and mAP,
        with ``oracle_best_iteration``; ``num_images_seen``, the target images used in training, counted once per epoch; ``seconds`` of all
        steps after the original model. A value that is not known is None.

    Raises:
        UserError: ``iterations`` is empty.

    Example:
        >>> row = summarise_run([{"rank_1": 0.5, "mAP": 0.4}, {"rank_1": 0.7, "mAP": 0.6}, {"rank_1": 0.6, "mAP": 0.5}])
        >>> row["stop_iteration"], row["mAP"], round(row["gain_mAP"], 3), row["oracle_best_iteration"], row["oracle_best_mAP"]
        (2, 0.5, 0.1, 1, 0.6)
    """
    if not iterations:
        raise UserError("the run has no iterations to summarise: wait until iteration 0 is scored")
    first, last = iterations[0], iterations[-1]
    scored = [(metrics["mAP"], -number) for number, metrics in enumerate(iterations) if metrics.get("mAP") is not None]
    best = -max(scored)[1] if scored else None
    row: dict[str, float | None] = {"stop_iteration": len(iterations) - 1} | {name: last.get(name) for name in LAST_ITERATION_METRICS}
    for name in ("rank_1", "mAP"):
        before, after = first.get(name), last.get(name)
        row[f"direct_{name}"] = before
        row[f"gain_{name}"] = None if before is None or after is None else after - before
        row[f"oracle_best_{name}"] = None if best is None else iterations[best].get(name)
    return row | {
        "oracle_best_iteration": best,
        "num_images_seen": sum(metrics.get("num_images_seen") or 0 for metrics in iterations),
        "seconds": sum(_seconds(metrics) for metrics in iterations),
    }


def _seconds(metrics: Metrics) -> float:
    return sum(value or 0 for name, value in metrics.items() if name.startswith("seconds_") and name != "seconds_original_model")
