"""Step *reveal*: writes the target images whose identities training may use. No other step passes target labels to training."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pul_core.arrays import Ints
from pul_core.errors import DataError
from pul_core.few_labels import first_identities, num_unlabelled_clusters
from pul_core.identities import DISTRACTOR_PID
from pul_core.settings import Algorithm, FewLabels, KMeans
from tasks.data.check import usable_rows
from tasks.engine.links import linked
from tasks.engine.progress import step_logger
from tasks.store.artifacts import column, made_by, read_table, write_table
from tasks.store.home import user_path
from tasks.store.references import ImageSet, Labelled

SCHEMA = pa.schema([("row", pa.int64()), ("class", pa.int64())])


@linked("reveal-labels")
def reveal(images: ImageSet, *, settings: FewLabels, algorithm: Algorithm) -> Labelled | None:
    """Write the labelled images of a target and their classes; None if no labels may be used.

    Args:
        images: the target.
        settings: at most one of ``identities``, ``share`` and ``file`` is set.
        algorithm: K of k-means, labelled identities included, is checked here, before any training; DBSCAN has none.

    Raises:
        DataError: the requested labels do not exist.
    """
    requested = {name: value for name, value in asdict(settings).items() if value is not None}
    if not requested:
        return None
    if len(requested) > 1:
        raise DataError(f"few_labels takes one of identities, share and file, got {' and '.join(requested)}: leave the others out")
    table = read_table(images.images, ["path", "split", "problem"])
    train = usable_rows(table, "train")
    if settings.file is not None:
        rows, identities = _read_list(user_path(settings.file), table["path"].take(train).to_pylist(), train, images)
    elif images.labels is None:
        raise DataError(f"{images.root} has no identities, which few_labels requires: give a list of labels with few_labels.file")
    else:
        pids = column(read_table(images.labels), "pid")[train]
        is_labelled = np.isin(pids, first_identities(pids, count=settings.identities, share=settings.share))
        rows, identities = train[is_labelled], pids[is_labelled]
    names, classes = np.unique(identities, return_inverse=True)
    if len(rows) == len(train):
        raise DataError(f"few_labels labels all {len(rows)} training images of {images.root}: leave some of them unlabelled")
    num_clusters = algorithm.num_clusters if isinstance(algorithm, KMeans) else 0
    if num_clusters and num_unlabelled_clusters(num_clusters, len(names)) > len(train) - len(rows):
        raise DataError(f"num_clusters is {num_clusters}, but only {len(train) - len(rows)} training images are unlabelled: choose fewer")
    step_logger().info("few labels: %d identities, %d images", len(names), len(rows))
    with made_by("reveal", images=images.cache_token()):
        return Labelled(labelled=write_table("labelled", pa.table([rows, classes], schema=SCHEMA)), num_identities=len(names))


def _read_list(file: Path, paths: list[str], train: Ints, images: ImageSet) -> tuple[Ints, npt.NDArray[Any]]:
    """Read a list of labels and return the rows of the labelled images and their identities.

    Each line is ``file-name identity`` (the authors' format; -1 for an unlabelled image), or each line is an identity. A file name may be a
    path.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist: give a list of labels, with a file name and an identity on each line")
    lines = [line.rsplit(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if all(len(line) == 1 for line in lines):
        return _rows_of_identities({line[0] for line in lines}, file, train, images)
    malformed = next((number for number, line in enumerate(lines, 1) if len(line) != 2), None)
    if malformed is not None:
        raise DataError(f"{file}, line {malformed}: write a file name and an identity (-1 if unknown), or only an identity on every line")
    labels = [(name, identity) for name, identity in lines if identity != "-1"]
    if not labels:
        raise DataError(f"{file} labels no image, every identity is -1: write the identity of at least one image")
    file_names = [path.rsplit("/", 1)[-1] for path in paths]
    counts = Counter(file_names)
    row_of = {name: row for name, row in zip(file_names, train.tolist(), strict=True) if counts[name] == 1}
    row_of |= dict(zip(paths, train.tolist(), strict=True))
    if missing := next((name for name, _ in labels if name not in row_of), None):
        reason = "is the name of several images: write its path" if counts[missing] > 1 else "is not a decodable training image: remove it"
        raise DataError(f"{file} labels {missing} in {images.root}, which {reason}")
    rows = np.array([row_of[name] for name, _ in labels], np.int64)
    unique_rows, first = np.unique(rows, return_index=True)
    if len(unique_rows) < len(rows):
        duplicate = labels[int(np.setdiff1d(np.arange(len(rows)), first)[0])][0]
        raise DataError(f"{file} labels {duplicate} twice: remove one of the lines")
    return unique_rows, np.array([identity for _, identity in labels])[first]


def _rows_of_identities(identities: set[str], file: Path, train: Ints, images: ImageSet) -> tuple[Ints, npt.NDArray[Any]]:
    """Return the rows of all training images of the identities, and their identities."""
    if images.labels is None:
        raise DataError(f"{images.root} has no identities that {file} could name: write a file name and an identity on each line")
    labels = read_table(images.labels).take(train)
    labels = labels.filter(pc.greater(labels["pid"], DISTRACTOR_PID))
    present = set(labels["identity"].to_pylist())
    requested = {name if name in present else name.lstrip("0") for name in identities}  # 0007 also means identity 7 if there is no 0007
    if unknown := sorted(requested - present):
        raise DataError(f"{file} names identity {unknown[0]}, which has no training image in {images.root}: remove it")
    labels = labels.filter(pc.is_in(labels["identity"], pa.array(sorted(requested))))
    return column(labels, "row"), column(labels, "pid")
