"""What a run of the loop came to: where it stopped, beside direct transfer and the best iteration, which only test labels know."""

from collections.abc import Mapping, Sequence

from pul_core.errors import UserError

Metrics = Mapping[str, float | None]

KEPT = ("rank_1", "mAP", "reliable_set_size", "num_clusters", "reliable_overlap", "reliable_agreement_ari", "oracle_reliable_purity")


def judge(iterations: Sequence[Metrics]) -> dict[str, float | None]:
    """Sum a run up in one row.

    The loop is judged by the iteration it stopped at. The best iteration is the one of the highest mAP on the test set, the earliest of
    equals, iteration 0 included: an oracle, for nobody without test labels could have stopped there.

    Args:
        iterations: metrics of iteration 0 (direct transfer), 1, 2, ... by the names they are recorded under; scores as fractions.

    Returns:
        ``stop_iteration``; at it the metrics of `KEPT`; ``direct_*``, ``gain_*`` and ``oracle_best_*`` of rank_1 and mAP, with
        ``oracle_best_iteration``; ``num_images_seen``, images of the target in training, counted once an epoch; ``seconds`` of all steps
        after the original model. What cannot be told is None.

    Raises:
        UserError: no iteration is given.

    Example:
        >>> row = judge([{"rank_1": 0.5, "mAP": 0.4}, {"rank_1": 0.7, "mAP": 0.6}, {"rank_1": 0.6, "mAP": 0.5}])
        >>> row["stop_iteration"], row["mAP"], round(row["gain_mAP"], 3), row["oracle_best_iteration"], row["oracle_best_mAP"]
        (2, 0.5, 0.1, 1, 0.6)
    """
    if not iterations:
        raise UserError("a run without iterations cannot be judged")
    first, last = iterations[0], iterations[-1]
    scored = [(metrics["mAP"], -number) for number, metrics in enumerate(iterations) if metrics.get("mAP") is not None]
    best = -max(scored)[1] if scored else None
    row: dict[str, float | None] = {"stop_iteration": len(iterations) - 1} | {name: last.get(name) for name in KEPT}
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
