"""The records of a sweep: the table ``$PUL_HOME/sweeps/NAME/children.parquet`` with one row per child run, and the tags of the MLflow runs.

The name of a sweep is a digest of its children's parameters and images, so that repeating a sweep continues its runs.
"""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pandas as pd
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from pul_core.errors import DataError, UserError
from pul_core.scoring.comparison import summarise_run
from tasks.engine.links import linked
from tasks.engine.progress import step_logger
from tasks.operations.lost_runs import is_lost
from tasks.operations.processes import JobResult
from tasks.store.config import Plan, parameters_of
from tasks.store.home import home
from tasks.store.references import ImageSet, Reference
from tasks.tracking.client import search_all_runs
from tasks.tracking.results import IS_RUN, run_id_of
from tasks.tracking.runs import RESUME, SWEEP

SCORES = ("rank_1", "mAP", "direct_rank_1", "direct_mAP", "gain_rank_1", "gain_mAP", "oracle_best_rank_1", "oracle_best_mAP")
MEANS = (*SCORES, "stop_iteration", "num_images_seen", "seconds")
MEANS_TITLES = {
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
CHILD_COLUMNS = ("child", "setting", "seed", "status", "stop_iteration", "stop_reason", "rank_1", "mAP", "gain_rank_1", "gain_mAP", "error")


class Child(Reference):
    """One run of a sweep.

    ``swept`` holds the parameters that the sweep varies, ``setting`` the same as text, and ``plan`` all parameters of the run.
    """

    number: int
    variant: str
    swept: dict[str, Any]
    setting: str
    seed: int
    plan: Plan

    @property
    def name(self) -> str:
        """Return the name of the child's job."""
        return f"child-{self.number}"


class OpenSweep(Reference):
    """A sweep's name, its folder, and the ids of the runs that an earlier call has started, by child number."""

    name: str
    folder: str
    started: dict[int, str]

    def log(self, name: str) -> Path:
        """Return the log file of a job."""
        return Path(self.folder, f"{name}.log")

    def environment(self, child: Child) -> dict[str, str]:
        """Return the environment variables of a child's process: its sweep, and the run to resume if there is one."""
        resumed = {RESUME: self.started[child.number]} if child.number in self.started else {}
        return {SWEEP: f"{self.name}/{child.number}", **resumed}


class SweepFailedError(UserError):
    """At least one child failed. The other children are finished; ``table`` is the path of children.parquet."""

    def __init__(self, message: str, table: str = "") -> None:
        super().__init__(message)
        self.table = table


@linked("open-sweep")
def open_sweep(children: list[Child], sets: list[ImageSet], parameters: dict[str, Any]) -> OpenSweep:
    """Create the sweep's folder and find the runs that an earlier call has started.

    Args:
        children: all runs of the sweep.
        sets: the data sets of all children.
        parameters: the parameters of the sweep, written to ``sweep.json``; `pul sweep --config` repeats the sweep from this file.

    Raises:
        DataError: the same sweep is running.
    """
    parts = [[parameters_of(child.plan) for child in children], sorted(images.cache_token() for images in sets)]
    name = f"sweep-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]}"
    runs = search_all_runs(f"tags.`pul.sweep` = '{name}' and {IS_RUN}")
    if running := [run for run in runs if run.info.status == "RUNNING" and not is_lost(run)]:
        raise DataError(f"{name} is already running (run {run_id_of(running[0])}): wait until it ends, or stop it")
    # MLflow returns the newest run first; reversed, the newest run of each child stays in the dictionary.
    started = {int(run.data.tags["pul.sweep_child"]): run_id_of(run) for run in reversed(runs)}
    folder = home() / "sweeps" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
    step_logger().info(
        "%s: %d children, %d of them already started; in MLflow: tags.`pul.sweep` = '%s'", name, len(children), len(started), name
    )
    return OpenSweep(name=name, folder=str(folder), started=started)


@linked("record-child-{child.number}")
def record_child(sweep: OpenSweep, child: Child, result: JobResult | None) -> dict[str, Any]:
    """Return a child's row in the table of the sweep.

    Args:
        sweep: the sweep of the child.
        child: the run that the row describes.
        result: how the child's run ended; None if it has not ended yet.
    """
    row: dict[str, Any] = {"sweep": sweep.name, "child": child.number, "setting": child.setting, "variant": child.variant}
    row |= {f"set.{name}": value for name, value in child.swept.items()} | {"recipe": child.plan.recipe, "seed": child.seed}
    if result is None:
        return row | {"status": "waiting", "error": None, "run": None}
    row |= {"status": "failed" if result.error else "finished", "error": result.error}
    runs = search_all_runs(f"tags.`pul.flow_run_id` = '{result.flow_run_id}' and {IS_RUN}")
    if not runs:
        return row | {"run": None}
    run = runs[0]
    row |= {"run": run_id_of(run), "mlflow_run_id": run.info.run_id}
    if result.error:
        return row
    table = pd.read_parquet(home() / "runs" / run_id_of(run) / "iterations.parquet")
    iterations = [{str(name): value for name, value in record.items() if pd.notna(value)} for record in table.to_dict("records")]
    return row | {"stop_reason": run.data.tags["pul.stop_reason"], **summarise_run(iterations)}


@linked("finish-sweep")
def finish_sweep(sweep: OpenSweep, rows: list[dict[str, Any]]) -> None:
    """Publish the sweep in Prefect: a table of the children, and the means and standard deviations over seeds.

    Raises:
        SweepFailedError: at least one child failed; the message names the first three with their errors.
    """
    path = write_children(sweep, rows)
    results = read_sweep(path)
    children = [{name: row.get(name) for name in CHILD_COLUMNS} for row in results["children"]]
    create_table_artifact(children, key="pul-sweep-children", description=f"Children of **{sweep.name}**, {path}")
    create_markdown_artifact(f"# {sweep.name}\n\n{markdown(results['means'])}\n", key="pul-sweep", description="Means over seeds")
    failed = [row for row in results["children"] if row["status"] == "failed"]
    step_logger().info("%s: %d of %d children finished; table %s", sweep.name, len(rows) - len(failed), len(rows), path)
    if failed:
        errors = "; ".join(
            f"child {row['child']} ({row['setting'] or 'no setting'}, seed {row['seed']}): {row['error']}" for row in failed[:3]
        )
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise SweepFailedError(f"{len(failed)} of {len(rows)} children failed: {errors}{more}", path)


def write_children(sweep: OpenSweep, rows: list[dict[str, Any]]) -> str:
    """Write the current rows of all children to children.parquet and return its path; the file is replaced atomically."""
    swept = sorted({name for row in rows for name in row if name.startswith("set.")})
    columns = ["sweep", "child", "setting", "variant", *swept, "recipe", "seed", "status", "error", "run", "mlflow_run_id", "stop_reason"]
    table = pd.DataFrame(rows).sort_values("child").reindex(columns=[*columns, *summarise_run([{}])])
    for name in swept:
        values = [value for value in table[name] if _is_set(value)]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):  # a Parquet column has one type
            table[name] = [json.dumps(value) if _is_set(value) and not isinstance(value, str) else value for value in table[name]]
    path = Path(sweep.folder, "children.parquet")
    partial = path.with_name(f".partial-{uuid.uuid4().hex}")
    table.to_parquet(partial, index=False)
    partial.replace(path)
    return str(path)


def read_sweep(path: str) -> dict[str, Any]:
    """Read children.parquet and return the rows of the children and the means over seeds as plain values; missing values are None."""
    records = pd.read_parquet(path).to_dict("records")
    children = [{str(name): _plain(value) for name, value in record.items()} for record in records]
    return {"sweep": children[0]["sweep"], "table": path, "children": children, "means": means_over_seeds(children)}


def means_over_seeds(children: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per setting: the number of finished and failed seeds, and the mean and standard deviation of each of `MEANS`.

    The standard deviation is that of a sample (n - 1) and None for one seed.
    """
    rows = []
    for setting, group in pd.DataFrame(children).groupby("setting", sort=False):
        finished = group[group["status"] == "finished"]
        row: dict[str, Any] = {"setting": setting, "seeds": len(finished), "failed": int((group["status"] == "failed").sum())}
        for name in MEANS:
            values = pd.to_numeric(finished[name]).dropna()
            row[name] = _plain(values.mean())
            row[f"{name}_std"] = _plain(values.std(ddof=1))
        rows.append(row)
    return rows


def format_mean(row: dict[str, Any], name: str) -> str:
    """Return a mean and its standard deviation as text; scores in percent.

    Example:
        >>> format_mean({"mAP": 0.512, "mAP_std": 0.031}, "mAP"), format_mean({"seconds": 90.0, "seconds_std": None}, "seconds")
        ('51.2 ± 3.1', '90')
    """
    mean, deviation = row[name], row[f"{name}_std"]
    if mean is None:
        return "-"
    scale, digits = (100, 1) if name in SCORES else (1, 1 if name == "stop_iteration" else 0)
    return f"{scale * mean:.{digits}f}" + (f" ± {scale * deviation:.{digits}f}" if deviation is not None else "")


def markdown(means: list[dict[str, Any]]) -> str:
    r"""Return the means over seeds as a Markdown table.

    Example:
        >>> row = {"setting": "a|b", "seeds": 1} | {name: None for title in MEANS_TITLES for name in (title, f"{title}_std")}
        >>> markdown([row | {"mAP": 0.5}]).splitlines()[2]
        '| a\\|b | 1 | - | - | - | 50.0 | - | - | - | - | - | - |'
    """
    header = ["setting", "seeds", *MEANS_TITLES.values()]
    rows = [[row["setting"] or "-", str(row["seeds"]), *(format_mean(row, name) for name in MEANS_TITLES)] for row in means]
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_set(value: Any) -> bool:
    return isinstance(value, list | dict) or bool(pd.notna(value))


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
