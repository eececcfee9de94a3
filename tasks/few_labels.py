"""Step *reveal*: the target images whose identities training may use. No other step passes target labels to training."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pul_core.arrays import Ints
from pul_core.errors import DataError
from pul_core.few_labels import first_identities, num_unlabelled_clusters
from pul_core.settings import FewLabels
from tasks.engine.links import linked
from tasks.engine.progress import step_logger
from tasks.store.artifacts import column, made_by, read_table, write_table
from tasks.store.references import ImageSet, Labelled

SCHEMA = pa.schema([("row", pa.int64()), ("class", pa.int64())])


@linked("reveal-labels")
def reveal(images: ImageSet, *, settings: FewLabels, num_clusters: int = 0) -> Labelled | None:
    """Write the labelled images of a target and their classes; None if no labels may be used.

    Args:
        images: the target.
        settings: one of ``identities``, ``share`` and ``file`` is set, or none.
        num_clusters: K, which counts the labelled identities too; 0 for the default. It is checked here, before any training.

    Raises:
        DataError: the requested labels do not exist.
    """
    requested = {name: value for name, value in asdict(settings).items() if value is not None}
    if not requested:
        return None
    if len(requested) > 1:
        raise DataError(f"few_labels takes one of identities, share and file, got {' and '.join(requested)}")
    table = read_table(images.images, ["row", "path", "split", "problem"])
    train = column(table, "row")[(column(table, "split") == "train") & np.asarray(table["problem"].is_null())]  # decodable images
    identities: npt.NDArray[Any]
    if settings.file is not None:
        paths = table.column("path").take(train).to_pylist()
        rows, identities = _read_list(Path(settings.file).expanduser(), paths, train, images)
    else:
        rows, identities = _first_identities(train, images, settings)
    names, classes = np.unique(identities, return_inverse=True)
    if len(rows) == len(train):
        raise DataError(f"few_labels labels all {len(rows)} training images of {images.root}: leave some of them unlabelled")
    if num_clusters and num_unlabelled_clusters(num_clusters, len(names)) > len(train) - len(rows):
        raise DataError(f"num_clusters is {num_clusters}, but only {len(train) - len(rows)} training images are unlabelled: choose fewer")
    step_logger().info("few labels: %d identities, %d images", len(names), len(rows))
    with made_by("reveal", images=images.cache_token()):
        return Labelled(labelled=write_table("labelled", pa.table([rows, classes], schema=SCHEMA)), num_identities=len(names))


def _first_identities(train: Ints, images: ImageSet, settings: FewLabels) -> tuple[Ints, Ints]:
    if images.labels is None:
        raise DataError(f"{images.root} has no identities: give a list of labels with few_labels.file")
    pids = column(read_table(images.labels), "pid")[train]
    chosen = np.isin(pids, first_identities(pids, count=settings.identities, share=settings.share))
    return train[chosen], pids[chosen]


def _read_list(file: Path, paths: list[str], train: Ints, images: ImageSet) -> tuple[Ints, npt.NDArray[np.str_]]:
    """Read a list of labels: ``file-name identity`` per line (-1: unlabelled; the authors' format), or an identity per line."""
    if not file.is_file():
        raise DataError(f"{file} does not exist: give a list of labels")
    lines = [line.rsplit(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if all(len(line) == 1 for line in lines):
        return _rows_of_identities({line[0] for line in lines}, file, train, images)
    malformed = next((number for number, line in enumerate(lines, 1) if len(line) != 2), None)
    if malformed is not None:
        raise DataError(f"{file}, line {malformed}: write a file name and an identity (-1 if unknown), or only an identity on every line")
    labels = [(name, identity) for name, identity in lines if identity != "-1"]
    if not labels:
        raise DataError(f"{file} labels no image: every identity is -1")
    file_names = Counter(path.rsplit("/", 1)[-1] for path in paths)
    row_of = {path.rsplit("/", 1)[-1]: row for path, row in zip(paths, train.tolist(), strict=True)}
    row_of = {name: row for name, row in row_of.items() if file_names[name] == 1} | dict(zip(paths, train.tolist(), strict=True))
    if missing := next((name for name, _ in labels if name not in row_of), None):
        reason = "is the name of several images: write its path" if file_names[missing] > 1 else "is not a decodable training image"
        raise DataError(f"{file} labels {missing}, which {reason} ({images.root})")
    rows = np.array([row_of[name] for name, _ in labels], np.int64)
    unique, first = np.unique(rows, return_index=True)
    if len(unique) < len(rows):
        duplicate = labels[int(np.setdiff1d(np.arange(len(rows)), first)[0])][0]
        raise DataError(f"{file} labels {duplicate} twice: remove one of the lines")
    return unique, np.array([identity for _, identity in labels])[first]


def _rows_of_identities(identities: set[str], file: Path, train: Ints, images: ImageSet) -> tuple[Ints, Any]:
    if images.labels is None:
        raise DataError(f"{images.root} has no identities that {file} could name: write lines of file name and identity")
    labels = read_table(images.labels)
    names = labels.column("identity" if "identity" in labels.column_names else "pid").cast(pa.string()).take(train)
    pids = column(labels, "pid")[train]
    present = {name for name, pid in zip(names.to_pylist(), pids, strict=True) if pid > 0}
    requested = {name if name in present else name.lstrip("0") for name in identities}  # 0007 may be written 7 if there is no 0007
    if unknown := sorted(requested - present):
        raise DataError(f"{file} names identity {unknown[0]}, which has no training image in {images.root}")
    chosen = np.isin(np.array(names.to_pylist(), dtype=object).astype(str), sorted(requested)) & (pids > 0)
    return train[chosen], pids[chosen]
