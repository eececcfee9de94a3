"""The table of the lab: means and standard deviations over seeds, and gains over a baseline at equal images."""

from typing import Any

import numpy as np

Record = dict[str, Any]
COLUMNS = {
    "experiment": "experiment",
    "source": "source",
    "target": "target",
    "iteration": "iteration",
    "seeds": "seeds",
    "rank_1": "rank-1",
    "rank_1_sd": "sd",
    "mAP": "mAP",
    "mAP_sd": "sd",
    "rank_1_gain": "gain in rank-1",
    "rank_1_gain_sd": "sd",
    "mAP_gain": "gain in mAP",
    "mAP_gain_sd": "sd",
    "images_seen": "images seen",
    "minutes": "minutes",
    "stop": "end",
}


def tabulate(records: list[Record], baseline: str | None, every_iteration: bool) -> list[Record]:
    """Return one row per experiment, pair of sets, and iteration: the first and the last one, or every one.

    Scores are percentages, the mean and the standard deviation over the seeds. A gain is the difference to the baseline on the same pair of
    sets and with the same seed: at iteration 0, or at equal images, which is the last iteration with at most the baseline's images. A loop
    that ended earlier than that of another seed counts with its last iteration.
    """
    runs: dict[tuple[str, ...], dict[int, list[Record]]] = {}
    for record in records:
        group = runs.setdefault(tuple(record[name] for name in ("experiment", "source", "target")), {})
        group.setdefault(record["seed"], []).append(record)
    rows = []
    for (name, *pair), seeds in runs.items():
        scored = {seed: [record for record in history if "mAP" in record] for seed, history in seeds.items()}
        base = runs.get((baseline or "", *pair), {})
        ends = ", ".join(sorted({history[-1]["stop"] or "unfinished" for history in seeds.values()}))
        last = max(map(len, scored.values())) - 1
        for t in range(last + 1) if every_iteration else sorted({0, last}):
            row = {"experiment": name, "source": pair[0], "target": pair[1], "iteration": "last" if t == last > 0 else str(t)}
            row |= {"seeds": len(seeds)} | ({"stop": ends} if t == last else {})
            row |= _means([history[: t + 1] for history in scored.values()])
            rows.append(row | (_gains(scored, base, t) if t in (0, last) else {}))
    return rows


def _means(histories: list[list[Record]]) -> Record:
    """Return the means over the seeds; a history ends with the record to report."""
    reported = [history[-1] for history in histories]
    row = _statistics("rank_1", [100 * record["rank_1"] for record in reported])
    row |= _statistics("mAP", [100 * record["mAP"] for record in reported])
    for name in ("images_seen", "reliable", "clusters", "oracle_purity", "oracle_nmi", "oracle_clusters_per_person"):
        values = [record[name] for record in reported if record.get(name) is not None]
        row[name] = float(np.mean(values)) if values else None
    steps = [[seconds for record in history for step, seconds in record["seconds"].items() if step != "pretrain"] for history in histories]
    return row | {"minutes": float(np.mean([sum(seconds) / 60 for seconds in steps]))}


def _gains(scored: dict[int, list[Record]], base: dict[int, list[Record]], t: int) -> Record:
    pairs = []
    for seed in scored.keys() & base.keys():
        reference = [record for record in base[seed] if "mAP" in record][-1 if t else 0]
        pairs.append(([record for record in scored[seed] if record["images_seen"] <= reference["images_seen"]][-1], reference))
    gains = {name: [100 * (record[name] - reference[name]) for record, reference in pairs] for name in ("rank_1", "mAP")}
    return _statistics("rank_1_gain", gains["rank_1"]) | _statistics("mAP_gain", gains["mAP"])


def _statistics(name: str, values: list[float]) -> Record:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {name: float(np.mean(values)) if values else None, f"{name}_sd": deviation}


def markdown(rows: list[Record]) -> str:
    """Return the rows as a Markdown table."""

    def cell(name: str, value: Any) -> str:
        if value is None:
            return ""
        return str(value) if isinstance(value, str | int) else f"{value:,.0f}" if name == "images_seen" else f"{value:.1f}"

    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *([cell(name, row.get(name)) for name in COLUMNS] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
