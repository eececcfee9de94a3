"""Step *reveal*: which target images may be trained on under their true identity. With *evaluate*, the only reader of target labels."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from prefect import task

from pul_core.few_labels import first_identities
from tasks.artifacts import column, read_table, write_table
from tasks.layouts import DataError
from tasks.progress import step_logger
from tasks.references import ImageSet, Labelled

SCHEMA = pa.schema([("row", pa.int64()), ("class", pa.int64())])


@task(name="reveal", task_run_name="reveal-labels")
def reveal(images: ImageSet, *, settings: dict[str, Any]) -> Labelled | None:
    """Write down the labelled images of a target and their classes; None if no labels may be used.

    Args:
        images: the target.
        settings: one of ``identities`` (how many), ``share`` (of the identities) and ``file`` (a list) is set, or none.

    Raises:
        DataError: the labels asked for are not there.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if not given:
        return None
    if len(given) > 1:
        raise DataError(f"few_labels takes one of identities, share and file, not {' and '.join(given)}")
    table = read_table(images.images, ["row", "path", "split"])
    train = column(table, "row")[column(table, "split") == "train"]
    identities: npt.NDArray[Any]
    if "file" in given:
        rows, identities = _listed(Path(given["file"]).expanduser(), table.column("path").take(train).to_pylist(), train, images)
    else:
        rows, identities = _first(train, images, given)
    names, classes = np.unique(identities, return_inverse=True)
    if len(rows) == len(train):
        raise DataError(f"few_labels labels all {len(rows)} training images of {images.root}: nothing is left to cluster")
    step_logger().info("few labels: %d identities, %d images", len(names), len(rows))
    return Labelled(labelled=write_table("labelled", pa.table([rows, classes], schema=SCHEMA)), num_identities=len(names))


def _first(train: npt.NDArray[np.int64], images: ImageSet, given: dict[str, Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    if images.labels is None:
        raise DataError(f"{images.root} has no identities to label {given}: give a list with few_labels.file")
    pids = column(read_table(images.labels), "pid")[train]
    chosen = np.isin(pids, first_identities(pids, count=given.get("identities"), share=given.get("share")))
    return train[chosen], pids[chosen]


def _listed(
    file: Path, paths: list[str], train: npt.NDArray[np.int64], images: ImageSet
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.str_]]:
    """Read a list: ``file-name identity`` a line (-1: unlabelled; the authors' form), or an identity a line."""
    if not file.is_file():
        raise DataError(f"there is no list of labels {file}")
    lines = [line.rsplit(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if all(len(line) == 1 for line in lines):
        return _named({line[0] for line in lines}, file, train, images)
    wrong = next((number for number, line in enumerate(lines, 1) if len(line) != 2), None)
    if wrong is not None:
        raise DataError(f"{file}, line {wrong}: write a file name and an identity (-1 if unknown), or an identity alone on every line")
    by_name = {path.rsplit("/", 1)[-1]: row for path, row in zip(paths, train.tolist(), strict=True)} | dict(
        zip(paths, train.tolist(), strict=True)
    )
    labelled = [(name, identity) for name, identity in lines if identity != "-1"]
    if missing := next((name for name, _ in labelled if name not in by_name), None):
        raise DataError(f"{file} labels {missing}, which is no training image of {images.root}")
    if not labelled:
        raise DataError(f"{file} labels no image: every line says -1")
    rows = np.array([by_name[name] for name, _ in labelled], np.int64)
    order = np.argsort(rows)
    return rows[order], np.array([identity for _, identity in labelled])[order]


def _named(wanted: set[str], file: Path, train: npt.NDArray[np.int64], images: ImageSet) -> tuple[npt.NDArray[np.int64], Any]:
    if images.labels is None:
        raise DataError(f"{images.root} has no identities that {file} could name: write lines of file name and identity")
    labels = read_table(images.labels)
    names = labels.column("identity" if "identity" in labels.column_names else "pid").cast(pa.string()).take(train)
    chosen = np.isin(np.array(names.to_pylist(), dtype=object).astype(str), sorted(wanted | {name.lstrip("0") for name in wanted}))
    pids = column(labels, "pid")[train]
    chosen &= pids > 0
    if not chosen.any():
        raise DataError(f"none of the identities in {file} is seen in the training images of {images.root}")
    return train[chosen], pids[chosen]
