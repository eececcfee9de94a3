"""Check of an indexed data set: findings about its files, identities, and query and gallery, each with advice on what to do.

The check reads the tables of the index and opens no image. Whether the set suits a particular run (enough identities, enough images) is
checked in ``tasks.preflight``.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pul_core.identities import DISTRACTOR_PID, NO_CAMERA
from tasks.store.artifacts import column, read_table
from tasks.store.readers import camids
from tasks.store.references import ImageSet, Reference

EXAMPLES = 5
Severity = Literal["info", "warning", "error"]
Verdict = Literal["sound", "usable", "unusable"]

FILE_ADVICE = {
    "missing": "these files are listed but do not exist, and are skipped: correct their names in the list, or ignore this",
    "unreadable": "these files cannot be opened and are skipped: check their permissions and links",
    "zero_bytes": "these files are empty, usually after an interrupted copy, and are skipped: copy them again, or delete them",
    "too_large": "these images have more than 50 million pixels or 200 MB and are skipped: give crops of people, not whole pictures",
    "truncated": "these images are cut off, usually by an interrupted copy, and are skipped: copy them again, or delete them",
    "undecodable": "these files are damaged or not images, and are skipped: save them again, or delete them",
}
MODE_ADVICE = {
    "greyscale": "these images have no colour and are converted to RGB: expect worse features, and do not mix day and night images",
    "sixteen_bit": "these images are converted to 8 bits, and bright pixels are clipped to white: scale them to 8 bits yourself",
    "not_rgb": "these images (palette, CMYK, transparency, ...) are converted to RGB: check on a contact sheet that they look right",
}


class Finding(Reference):
    """A problem or peculiarity of a data set: how many images or identities it concerns, examples of them, and what to do."""

    code: str
    severity: Severity
    count: int
    examples: list[str]
    advice: str


class Spread(Reference):
    """The smallest, median and largest of some values."""

    min: int
    median: float
    max: int


class Report(Reference):
    """The contents of a data set and the findings about it. Identities and cameras are None if they are unknown."""

    path: str
    layout: str | None
    images: int
    identities: int | None
    cameras: int | None
    splits: dict[str, int]
    sizes: dict[str, Spread]
    findings: list[Finding]
    verdict: Verdict


def check_set(images: ImageSet) -> Report:
    """Check an indexed data set, independently of what it will be used for."""
    table, labels = read_table(images.images), read_table(images.labels) if images.labels else None
    pids = column(labels, "pid") if labels else None
    findings = [
        *file_findings(table),
        *identity_findings(table, labels),
        *evaluation_findings(table, labels),
        *training_findings(table, pids),
    ]
    return Report(
        path=images.root,
        layout=images.layout,
        images=table.num_rows,
        identities=len(np.unique(pids[pids > DISTRACTOR_PID])) if pids is not None else None,
        cameras=pc.count_distinct(table["camid"]).as_py() or None,
        splits=images.splits,
        sizes={name: spread for name in ("width", "height", "bytes") if (spread := _spread(table[name]))},
        findings=findings,
        verdict=verdict_of(findings),
    )


def verdict_of(findings: list[Finding]) -> Verdict:
    """Return unusable if a finding is an error, usable if one is a warning, and otherwise sound.

    Example:
        >>> verdict_of([])
        'sound'
    """
    severities = {finding.severity for finding in findings}
    return "unusable" if "error" in severities else "usable" if "warning" in severities else "sound"


def file_findings(table: pa.Table) -> Iterator[Finding]:
    """Yield findings about image files: problems, colour modes, and duplicates.

    Args:
        table: images.parquet.
    """
    paths, mode, is_usable = table["path"], table["mode"], usable(table)
    for code, advice in FILE_ADVICE.items():
        yield from _image_finding(code, _equals(table["problem"], code), paths, advice)
    greyscale = _as_mask(pc.is_in(mode, pa.array(["1", "L", "LA", "La"])))
    sixteen_bit = _as_mask(pc.starts_with(mode, "I")) | _equals(mode, "F")
    other = ~(greyscale | sixteen_bit | _equals(mode, "RGB"))
    for code, mask in (("greyscale", greyscale), ("sixteen_bit", sixteen_bit), ("not_rgb", other)):
        yield from _image_finding(code, is_usable & mask, paths, MODE_ADVICE[code])
    animated, blank = _as_mask(pc.greater(table["frames"], 1)), _equals(table["sharpness"], 0)
    advice = "these files have several frames, and only the first is used: save the other frames as separate files"
    yield from _image_finding("animated", is_usable & animated, paths, advice)
    advice = "these images show a single colour: check the detector or the camera that made them"
    yield from _image_finding("blank", is_usable & blank, paths, advice, "info")
    yield from _duplicate_findings(table, is_usable)


def _duplicate_findings(table: pa.Table, is_usable: npt.NDArray[np.bool_]) -> Iterator[Finding]:
    rows = np.flatnonzero(is_usable)
    content = column(pa.table({"code": table["sha256"].take(rows).combine_chunks().dictionary_encode().indices}), "code")
    is_copy = np.ones(len(rows), bool)
    is_copy[np.unique(content, return_index=True)[1]] = False  # the first file with each content
    advice = "these files have the same bytes as an earlier file, so they count twice in training and inflate scores: delete the copies"
    yield from _image_finding("duplicates", _row_mask(table, rows[is_copy]), table["path"], advice)
    in_train = _equals(table["split"], "train")[rows]
    leaked = _row_mask(table, rows[~in_train & np.isin(content, content[in_train])])
    advice = "these query or gallery images have the same bytes as a training image: remove them from the training split"
    yield from _image_finding("test_images_in_train", leaked, table["path"], advice)


def identity_findings(table: pa.Table, labels: pa.Table | None) -> Iterator[Finding]:
    """Yield findings about the identities of the training split, and images without an identity.

    Args:
        table: images.parquet.
        labels: labels.parquet; None if the data set has no identities.
    """
    if labels is None:
        return
    pids = column(labels, "pid")
    advice = "these images have no identity: they are neither used as labelled source images nor scored"
    yield from _image_finding("unlabelled", _as_mask(pc.is_null(labels["identity"])), table["path"], advice, "info")
    rows = np.flatnonzero(usable(table) & _equals(table["split"], "train") & (pids > DISTRACTOR_PID))
    identities, counts = np.unique(pids[rows], return_counts=True)
    if len(identities) == 1:
        advice = "a source needs at least two identities: add people, or use the set as a target"
        yield from _identity_finding("one_identity", identities, labels, pids, advice)
    single_image = identities[counts == 1]
    advice = "these identities have a single training image each: add images of them, or ignore this"
    yield from _identity_finding("single_image_identities", single_image, labels, pids, advice)
    cameras = camids(table)[rows]
    if (cameras != NO_CAMERA).any():
        pid_of_pair = np.unique(np.stack((pids[rows], cameras)), axis=1)[0]  # one entry for each pair of identity and camera
        seen, num_cameras = np.unique(pid_of_pair, return_counts=True)
        single_camera = np.setdiff1d(seen[num_cameras == 1], single_image)
        advice = (
            "these identities are seen by a single camera, so nothing is learned across cameras: add images or check the camera numbers"
        )
        yield from _identity_finding("single_camera_identities", single_camera, labels, pids, advice)


def evaluation_findings(table: pa.Table, labels: pa.Table | None) -> Iterator[Finding]:
    """Yield findings about query and gallery; they concern scores, not training.

    Args:
        table: images.parquet.
        labels: labels.parquet; None if the data set has no identities.
    """
    train, query, gallery = _usable_rows_by_split(table)
    for name, rows, missing, missing_rows in (("query", query, "gallery", gallery), ("gallery", gallery, "query", query)):
        if len(rows) and not len(missing_rows):
            advice = f"there are {name} images but no {missing} images, so nothing can be scored: add the {missing}"
            yield _finding("no_" + missing, "warning", 1, [], advice)
    if labels is None:
        return
    pids, cameras = column(labels, "pid"), camids(table)
    shared = np.intersect1d(pids[train], pids[np.concatenate((query, gallery))])
    advice = "these identities are in training and in query or gallery, so scores of a model trained here are too good: keep them in one"
    yield from _identity_finding("identities_in_train_and_test", shared[shared > DISTRACTOR_PID], labels, pids, advice)
    if len(query) and len(gallery):
        has_match = answerable(pids[query], cameras[query], pids[gallery], cameras[gallery])
        advice = (
            "the gallery has no image of these identities from another camera, so these queries are not scored: check names and cameras"
        )
        if not has_match.any():
            advice = "no query has a match in the gallery from another camera, so nothing can be scored: check names and cameras"
        yield from _image_finding("unanswerable_queries", _row_mask(table, query[~has_match]), table["path"], advice)


def training_findings(table: pa.Table, pids: npt.NDArray[np.int64] | None) -> Iterator[Finding]:
    """Yield a finding if there are no training images: a warning if the set can be scored, otherwise an error.

    Args:
        table: images.parquet.
        pids: (n,) identities of its rows; None if the data set has no identities.
    """
    train, query, gallery = _usable_rows_by_split(table)
    if len(train):
        return
    cameras = camids(table)
    if pids is not None and answerable(pids[query], cameras[query], pids[gallery], cameras[gallery]).any():
        advice = "the training split has no usable image: use the set for scoring only"
        yield _finding("no_training_images", "warning", 1, [], advice)
    else:
        advice = "the training split has no usable image, and nothing can be scored: see the other findings"
        yield _finding("no_training_images", "error", 1, [], advice)


def answerable(
    query_pids: npt.NDArray[np.int64],
    query_camids: npt.NDArray[np.int64],
    gallery_pids: npt.NDArray[np.int64],
    gallery_camids: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Return for each query whether the gallery has its identity from another camera; never true for distractors and junk.

    Args:
        query_pids: (q,) identities.
        query_camids: (q,) cameras; -1 if unknown, which differs from every camera.
        gallery_pids: (g,) identities.
        gallery_camids: (g,) cameras; -1 if unknown.

    Example:
        >>> answerable(np.array([7, 8, 0]), np.array([1, 1, 1]), np.array([7, 8, 0]), np.array([2, 1, 2])).tolist()
        [True, False, False]
    """
    same_pid = _count_columns(gallery_pids[None], query_pids[None])
    has_camera = gallery_camids != NO_CAMERA
    gallery_pairs = np.stack((gallery_pids[has_camera], gallery_camids[has_camera]))
    same_pid_and_camera = _count_columns(gallery_pairs, np.stack((query_pids, query_camids)))
    return (query_pids > DISTRACTOR_PID) & (same_pid > same_pid_and_camera)


def _count_columns(columns: npt.NDArray[np.int64], query_columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each column of `query_columns` how often it occurs in `columns`."""
    _, code = np.unique(np.concatenate((columns, query_columns), axis=1), axis=1, return_inverse=True)
    code = code.reshape(-1)
    return np.bincount(code[: columns.shape[1]], minlength=code.max(initial=0) + 1)[code[columns.shape[1] :]]


def usable(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Return for each row of images.parquet whether the image can be decoded."""
    return _as_mask(pc.is_null(table["problem"]))


def _usable_rows_by_split(table: pa.Table) -> list[npt.NDArray[np.int64]]:
    """Return the rows of the usable images in train, query and gallery."""
    is_usable = usable(table)
    return [np.flatnonzero(is_usable & _equals(table["split"], split)) for split in ("train", "query", "gallery")]


def _row_mask(table: pa.Table, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(table.num_rows, bool)
    mask[rows] = True
    return mask


def _equals(values: pa.ChunkedArray, value: str | float) -> npt.NDArray[np.bool_]:
    return _as_mask(pc.equal(values, value))


def _as_mask(values: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(values, False))


def _spread(values: pa.ChunkedArray) -> Spread | None:
    numbers = values.drop_null().to_numpy()
    return Spread(min=int(numbers.min()), median=float(np.median(numbers)), max=int(numbers.max())) if len(numbers) else None


def _identity_finding(
    code: str, identities: npt.NDArray[np.int64], labels: pa.Table, pids: npt.NDArray[np.int64], advice: str
) -> Iterator[Finding]:
    """Yield a warning with the names of some identities, if there are any."""
    if len(identities):
        rows = [int(np.argmax(pids == pid)) for pid in identities[:EXAMPLES]]
        names = [str(name) for name in labels["identity"].take(pa.array(rows, pa.int64())).to_pylist()]
        yield _finding(code, "warning", len(identities), names, advice)


def _image_finding(
    code: str, mask: npt.NDArray[np.bool_], paths: pa.ChunkedArray, advice: str, severity: Severity = "warning"
) -> Iterator[Finding]:
    """Yield a finding with the paths of some images of the mask, if there are any."""
    rows = np.flatnonzero(mask)
    if len(rows):
        yield _finding(code, severity, len(rows), paths.take(pa.array(rows[:EXAMPLES])).to_pylist(), advice)


def _finding(code: str, severity: Severity, count: int, examples: list[str], advice: str) -> Finding:
    return Finding(code=code, severity=severity, count=count, examples=examples, advice=advice)
