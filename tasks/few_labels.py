"""Step *reveal*: which target images may be trained on under their true identity. The only way from target labels to training."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pul_core.errors import DataError
from pul_core.few_labels import first_identities, num_unlabelled_clusters
from tasks.engine.links import linked
from tasks.engine.progress import step_logger
from tasks.store.artifacts import column, made_by, read_table, write_table
from tasks.store.references import ImageSet, Labelled

SCHEMA = pa.schema([("row", pa.int64()), ("class", pa.int64())])


@linked("reveal-labels")
def reveal(images: ImageSet, *, settings: dict[str, Any], num_clusters: int | None = None) -> Labelled | None:
    """Write down the labelled images of a target and their classes; None if no labels may be used.

    Args:
        images: the target.
        settings: one of ``identities`` (how many), ``share`` (of the identities) and ``file`` (a list) is set, or none.
        num_clusters: K, labelled identities included; None for the default. Checked here, before anything is trained.

    Raises:
        DataError: the labels asked for are not there.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if not given:
        return None
    if len(given) > 1:
        raise DataError(f"few_labels takes one of identities, share and file, not {' and '.join(given)}")
    table = read_table(images.images, ["row", "path", "split", "problem"])
    train = column(table, "row")[(column(table, "split") == "train") & np.asarray(table["problem"].is_null())]  # what can be decoded
    identities: npt.NDArray[Any]
    if "file" in given:
        rows, identities = _listed(Path(given["file"]).expanduser(), table.column("path").take(train).to_pylist(), train, images)
    else:
        rows, identities = _first(train, images, given)
    names, classes = np.unique(identities, return_inverse=True)
    if len(rows) == len(train):
        raise DataError(f"few_labels labels all {len(rows)} training images of {images.root}: nothing is left to cluster")
    if num_clusters is not None and num_unlabelled_clusters(num_clusters, len(names)) > len(train) - len(rows):
        raise DataError(f"num_clusters is {num_clusters}, but only {len(train) - len(rows)} training images are unlabelled: choose fewer")
    step_logger().info("few labels: %d identities, %d images", len(names), len(rows))
    with made_by("reveal", images=images.identity()):
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
    labelled = [(name, identity) for name, identity in lines if identity != "-1"]
    if not labelled:
        raise DataError(f"{file} labels no image: every line says -1")
    names = Counter(path.rsplit("/", 1)[-1] for path in paths)
    by_name = {path.rsplit("/", 1)[-1]: row for path, row in zip(paths, train.tolist(), strict=True)}
    by_name = {name: row for name, row in by_name.items() if names[name] == 1} | dict(zip(paths, train.tolist(), strict=True))
    if missing := next((name for name, _ in labelled if name not in by_name), None):
        why = "stands for several images: write its path" if names[missing] > 1 else "is no training image that can be used"
        raise DataError(f"{file} labels {missing}, which {why} ({images.root})")
    rows = np.array([by_name[name] for name, _ in labelled], np.int64)
    unique, first = np.unique(rows, return_index=True)
    if len(unique) < len(rows):
        twice = labelled[int(np.setdiff1d(np.arange(len(rows)), first)[0])][0]
        raise DataError(f"{file} labels {twice} twice: leave one of the lines")
    return unique, np.array([identity for _, identity in labelled])[first]


def _named(wanted: set[str], file: Path, train: npt.NDArray[np.int64], images: ImageSet) -> tuple[npt.NDArray[np.int64], Any]:
    if images.labels is None:
        raise DataError(f"{images.root} has no identities that {file} could name: write lines of file name and identity")
    labels = read_table(images.labels)
    names = labels.column("identity" if "identity" in labels.column_names else "pid").cast(pa.string()).take(train)
    pids = column(labels, "pid")[train]
    seen = {name for name, pid in zip(names.to_pylist(), pids, strict=True) if pid > 0}
    exact = {name if name in seen else name.lstrip("0") for name in wanted}  # 0007 may be written 7, where no 0007 is
    if unknown := sorted(exact - seen):
        raise DataError(f"{file} names identity {unknown[0]}, which is not seen in the training images of {images.root}")
    chosen = np.isin(np.array(names.to_pylist(), dtype=object).astype(str), sorted(exact)) & (pids > 0)
    return train[chosen], pids[chosen]
