"""What a sweep leaves: a row a child in ``$PUL_HOME/sweeps/NAME/children.parquet``, and every child's MLflow run under the sweep's tag.

A sweep's name follows from its children and their images, so the same sweep finds what it has already done, and another never does.
"""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pandas as pd
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from pul_core.errors import DataError
from pul_core.scoring.comparison import judge
from tasks.engine.links import linked
from tasks.engine.progress import step_logger
from tasks.operations.lost_runs import lost_runs
from tasks.operations.processes import Ended
from tasks.store.home import home
from tasks.store.references import ImageSet, Reference
from tasks.tracking.client import client
from tasks.tracking.runs import RESUME, SWEEP

MEASURES = ("rank_1", "mAP", "direct_rank_1", "direct_mAP", "gain_rank_1", "gain_mAP", "oracle_best_rank_1", "oracle_best_mAP")
MEANS = (*MEASURES, "stop_iteration", "num_images_seen", "seconds")
SHOWN = ("child", "setting", "seed", "status", "stop_iteration", "stop_reason", "rank_1", "mAP", "gain_rank_1", "gain_mAP", "error")


class Child(Reference):
    """A run of a sweep: what it sets, in words and as values, and all its parameters."""

    number: int
    variant: str
    swept: dict[str, Any]
    setting: str
    seed: int
    plan: dict[str, Any]

    @property
    def name(self) -> str:
        """Return what its process is called."""
        return f"child-{self.number}"


class OpenSweep(Reference):
    """Where a sweep is recorded, and the runs of children that were started before, by the child's number."""

    name: str
    folder: str
    started: dict[int, str]

    def log(self, name: str) -> Path:
        """Return the file that takes the output of a process."""
        return Path(self.folder, f"{name}.log")

    def environment(self, child: Child) -> dict[str, str]:
        """Return what tells a child's process whose child it is, and which run it goes on with."""
        resumed = {RESUME: self.started[child.number]} if child.number in self.started else {}
        return {SWEEP: f"{self.name}/{child.number}", **resumed}


class SweepFailedError(ValueError):
    """Some children failed. The others are done and stand in the table."""

    def __init__(self, message: str, table: str = "") -> None:
        super().__init__(message)
        self.table = table


@linked("open-sweep")
def open_sweep(children: list[Child], sets: list[ImageSet], asked: dict[str, Any]) -> OpenSweep:
    """Name the sweep, find what was done of it before, and write down what was asked for.

    Args:
        children: all of them.
        sets: all their images.
        asked: the sweep's own parameters; given back (`pul sweep --config`), they repeat it.

    Raises:
        DataError: the same sweep is running.
    """
    parts = [[child.plan for child in children], sorted(images.identity() for images in sets)]
    name = f"sweep-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]}"
    experiments = [experiment.experiment_id for experiment in client().search_experiments()]
    before = client().search_runs(experiments, f"tags.`pul.sweep` = '{name}' and tags.`pul.kind` = 'run'")
    lost = {run.info.run_id for run in lost_runs()}
    if running := [run for run in before if run.info.status == "RUNNING" and run.info.run_id not in lost]:
        raise DataError(f"{name} is running already: its run {running[0].info.run_name} is open; wait, or stop it first")
    started = {int(run.data.tags["pul.sweep_child"]): str(run.info.run_name) for run in reversed(before)}  # the newest of a child counts
    folder = home() / "sweeps" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
    step_logger().info(
        "%s: %d children, %d of them started before; MLflow: tags.`pul.sweep` = '%s'", name, len(children), len(started), name
    )
    return OpenSweep(name=name, folder=str(folder), started=started)


@linked("record-child-{child.number}")
def record_child(sweep: OpenSweep, child: Child, ended: Ended | None) -> dict[str, Any]:
    """Return a child's row: what it set, how it ended, and what it came to.

    Args:
        sweep: whose child it is.
        child: what it set.
        ended: how; None if it has not ended yet.
    """
    row: dict[str, Any] = {"sweep": sweep.name, "child": child.number, "setting": child.setting, "variant": child.variant}
    row |= {f"set.{name}": value for name, value in child.swept.items()} | {"recipe": child.plan["recipe"], "seed": child.seed}
    row |= {"status": "waiting" if ended is None else "failed" if ended.reason else "finished", "error": ended.reason if ended else None}
    run = _run_of(ended.flow_run_id) if ended and ended.flow_run_id else None
    if ended is None or run is None:
        return row | {"run": None}
    row |= {"run": run.info.run_name, "mlflow_run_id": run.info.run_id}
    if ended.reason:
        return row
    table = pd.read_parquet(home() / "runs" / run.info.run_name / "iterations.parquet")
    iterations = [{str(name): value for name, value in record.items() if pd.notna(value)} for record in table.to_dict("records")]
    return row | {"stop_reason": run.data.tags["pul.stop_reason"], **judge(iterations)}


def _run_of(flow_run_id: str) -> Any:
    experiments = [experiment.experiment_id for experiment in client().search_experiments()]
    found = client().search_runs(experiments, f"tags.`pul.flow_run_id` = '{flow_run_id}' and tags.`pul.kind` = 'run'")
    return found[0] if found else None


def write_children(sweep: OpenSweep, rows: list[dict[str, Any]]) -> str:
    """Write the table as far as it is known, a row a child, and return where it lies. It exists whole or not at all."""
    table = pd.DataFrame(rows).sort_values("child").reindex(columns=_columns(rows))
    for name in table.columns[[name.startswith("set.") for name in table.columns]]:
        values = [value for value in table[name] if _is_told(value)]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            table[name] = [json.dumps(value) if _is_told(value) and not isinstance(value, str) else value for value in table[name]]
    path = Path(sweep.folder, "children.parquet")
    partial = path.with_name(f".partial-{uuid.uuid4().hex}")
    table.to_parquet(partial, index=False)
    partial.replace(path)
    return str(path)


def _is_told(value: Any) -> bool:
    return isinstance(value, list | dict) or bool(pd.notna(value))


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    figures = list(judge([{}]))
    swept = sorted({name for row in rows for name in row if name.startswith("set.")})
    first = ["sweep", "child", "setting", "variant", *swept, "recipe", "seed", "status", "error", "run", "mlflow_run_id", "stop_reason"]
    return first + figures


@linked("finish-sweep")
def finish_sweep(sweep: OpenSweep, rows: list[dict[str, Any]]) -> None:
    """Show the sweep in Prefect: a table of its children, and means and spread over seeds.

    Raises:
        SweepFailedError: children failed; which, and why.
    """
    path = write_children(sweep, rows)
    found = read_sweep(path)
    shown = [{name: row.get(name) for name in SHOWN} for row in found["children"]]
    create_table_artifact(shown, key="pul-sweep-children", description=f"Children of **{sweep.name}**, {path}")
    create_markdown_artifact(f"# {sweep.name}\n\n{markdown(found['means'])}\n", key="pul-sweep", description="Means over seeds")
    failed = [row for row in found["children"] if row["status"] == "failed"]
    step_logger().info("%s: %d of %d children finished; %s", sweep.name, len(rows) - len(failed), len(rows), path)
    if failed:
        which = "; ".join(
            f"child {row['child']} ({row['setting'] or 'nothing set'}, seed {row['seed']}): {row['error']}" for row in failed[:3]
        )
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise SweepFailedError(f"{len(failed)} of {len(rows)} children failed: {which}{more}", path)


def means_over_seeds(children: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a setting: how many seeds finished, and mean and standard deviation (n - 1; None for one seed) of each figure."""
    table = pd.DataFrame(children)
    rows = []
    for setting, group in table.groupby("setting", sort=False):
        done = group[group["status"] == "finished"]
        row: dict[str, Any] = {"setting": setting, "seeds": len(done), "failed": int((group["status"] == "failed").sum())}
        for name in MEANS:
            values = pd.to_numeric(done[name]).dropna()
            row[name] = _plain(values.mean())
            row[f"{name}_std"] = _plain(values.std(ddof=1))
        rows.append(row)
    return rows


def read_sweep(path: str) -> dict[str, Any]:
    """Return a sweep's table and its means as plain values; what is not known is None."""
    records = pd.read_parquet(path).to_dict("records")
    children = [{str(name): _plain(value) for name, value in record.items()} for record in records]
    return {"sweep": children[0]["sweep"], "table": path, "children": children, "means": means_over_seeds(children)}


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def spread(row: dict[str, Any], name: str) -> str:
    """Return a mean and its standard deviation in words; scores in percent.

    Example:
        >>> spread({"mAP": 0.512, "mAP_std": 0.031}, "mAP"), spread({"seconds": 90.0, "seconds_std": None}, "seconds")
        ('51.2 ± 3.1', '90')
    """
    mean, deviation = row[name], row[f"{name}_std"]
    if mean is None:
        return "-"
    scale, digits = (100, 1) if name in MEASURES else (1, 1 if name == "stop_iteration" else 0)
    return f"{scale * mean:.{digits}f}" + (f" ± {scale * deviation:.{digits}f}" if deviation is not None else "")


def means_table(means: list[dict[str, Any]]) -> list[list[str]]:
    """Return heading and rows of the means, in words."""
    titles = {
        "direct_rank_1": "direct rank-1",
        "direct_mAP": "direct mAP",
        "rank_1": "rank-1",
        "mAP": "mAP",
        "gain_rank_1": "gain rank-1",
        "gain_mAP": "gain mAP",
        "oracle_best_mAP": "best mAP (oracle)",
        "stop_iteration": "stop",
        "num_images_seen": "images seen",
        "seconds": "seconds",
    }
    rows = [[row["setting"] or "-", str(row["seeds"]), *(spread(row, name) for name in titles)] for row in means]
    return [["setting", "seeds", *titles.values()], *rows]


def markdown(means: list[dict[str, Any]]) -> str:
    """Return the means as a Markdown table."""
    heading, *rows = means_table(means)
    lines = [heading, ["---"] * len(heading), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
