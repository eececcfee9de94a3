"""What is wrong with a data set, and what to do about it: findings over the tables of an indexed set. Nothing is opened here.

Whether a set can play its part in a certain run (enough identities, enough images) is judged in ``tasks.preflight``.
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
TESTED = ("query", "gallery")

FILE_ADVICE = {
    "missing": "the listing names them, but there is no such file: correct the names, or leave it; they are skipped",
    "unreadable": "they cannot be opened: see to their permissions and links; they are skipped",
    "zero_bytes": "they are empty, as an interrupted copy leaves them: copy them again, or delete them; they are skipped",
    "too_large": "they have more than 50 million pixels or 200 MB, so they are no crops of people: give crops; they are skipped",
    "truncated": "their end is missing, as an interrupted copy leaves it: copy them again, or delete them; they are skipped",
    "undecodable": "they are no images, or damaged ones: write them anew, or delete them; they are skipped",
}
MODE_ADVICE = {
    "greyscale": "they are converted to RGB, but have no colours to tell clothes by: expect worse features, and do not mix night with day",
    "sixteen_bit": "they are converted to 8 bits by cutting off what is brighter, so they turn white: scale them to 8 bits yourself",
    "not_rgb": "they are converted to RGB (palettes, CMYK; transparency is dropped): nothing to do if they look right on a contact sheet",
}


class Finding(Reference):
    """One thing that was noticed: how often, on which images or identities, and what to do."""

    code: str
    severity: Severity
    count: int
    examples: list[str]
    advice: str


class Spread(Reference):
    """Smallest, median and largest value."""

    min: int
    median: float
    max: int


class Report(Reference):
    """What a data set holds and what is wrong with it. Identities and cameras are None where nobody told them."""

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
    """Check an indexed set by itself, whatever it is going to be used for."""
    table, labels = read_table(images.images), read_table(images.labels) if images.labels else None
    pids = column(labels, "pid") if labels else None
    findings = [*file_findings(table), *identity_findings(table, labels), *evaluation_findings(table, labels), *use_findings(table, pids)]
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
    """Return sound, usable (there is a warning) or unusable (there is an error).

    Example:
        >>> verdict_of([])
        'sound'
    """
    severities = {finding.severity for finding in findings}
    return "unusable" if "error" in severities else "usable" if "warning" in severities else "sound"


def file_findings(table: pa.Table) -> Iterator[Finding]:
    """Yield what is wrong with files, whoever is on them.

    Args:
        table: images.parquet.
    """
    paths, problem, mode = table["path"], table["problem"], table["mode"]
    for code, advice in FILE_ADVICE.items():
        yield from _found(code, _true(pc.equal(problem, code)), paths, advice)
    good = usable(table)
    grey = _true(pc.is_in(mode, pa.array(["1", "L", "LA", "La"])))
    deep = _true(pc.starts_with(mode, "I")) | _true(pc.equal(mode, "F"))
    rgb = _true(pc.equal(mode, "RGB"))
    for code, chosen in (("greyscale", grey), ("sixteen_bit", deep), ("not_rgb", ~(grey | deep | rgb))):
        yield from _found(code, good & chosen, paths, MODE_ADVICE[code])
    yield from _found(
        "animated", good & _true(pc.greater(table["frames"], 1)), paths, "only the first frame is used: save the others apart"
    )
    blank = good & _true(pc.equal(table["sharpness"], 0))
    yield from _found("blank", blank, paths, "they show a single colour: see to the detector or the camera that made them", "info")
    yield from _duplicates(table, good)


def _duplicates(table: pa.Table, good: npt.NDArray[np.bool_]) -> Iterator[Finding]:
    rows = np.flatnonzero(good)
    content = column(pa.table({"code": table["sha256"].take(rows).combine_chunks().dictionary_encode().indices}), "code")
    first = np.unique(content, return_index=True)[1]
    copies = np.ones(len(rows), bool)
    copies[first] = False
    again = np.zeros(table.num_rows, bool)
    again[rows[copies]] = True
    advice = "an earlier file has the same bytes: delete the copies, they weigh double in training and score for free"
    yield from _found("duplicates", again, table["path"], advice)
    trained = _is(table["split"], "train")[rows]
    leaked = np.zeros(table.num_rows, bool)
    leaked[rows[~trained & np.isin(content, content[trained])]] = True
    yield from _found("test_images_in_train", leaked, table["path"], "a training image has the same bytes: take them out of training")


def identity_findings(table: pa.Table, labels: pa.Table | None) -> Iterator[Finding]:
    """Yield what is odd about the identities of the training split.

    Args:
        table: images.parquet.
        labels: labels.parquet, or None if nobody told identities.
    """
    if labels is None:
        return
    pids = column(labels, "pid")
    unlabelled = _true(pc.is_null(labels["identity"]))
    yield from _found(
        "unlabelled", unlabelled, table["path"], "nobody told who they are: neither trained on as a source nor scored", "info"
    )
    rows = np.flatnonzero(usable(table) & _is(table["split"], "train") & (pids > DISTRACTOR_PID))
    identities, counts = np.unique(pids[rows], return_counts=True)
    if len(identities) == 1:
        advice = "a source needs at least two identities to tell apart: add people, or use the set as a target"
        yield _finding("one_identity", "warning", 1, _names(labels, pids, identities), advice)
    single = identities[counts == 1]
    if len(single):
        advice = "training sees them in one view only: add images of them, or leave them"
        yield _finding("single_image_identities", "warning", len(single), _names(labels, pids, single), advice)
    cameras = camids(table)[rows]
    if (cameras != NO_CAMERA).any():
        pairs = np.unique(np.stack((pids[rows], cameras)), axis=1)[0]
        seen_by, num_cameras = np.unique(pairs, return_counts=True)
        lonely = np.setdiff1d(seen_by[num_cameras == 1], single)
        if len(lonely):
            advice = "training learns nothing across cameras from them: add images of another camera, or check the cameras' numbers"
            yield _finding("single_camera_identities", "warning", len(lonely), _names(labels, pids, lonely), advice)


def evaluation_findings(table: pa.Table, labels: pa.Table | None) -> Iterator[Finding]:
    """Yield what is odd about query and gallery: it changes what scores mean, and nothing else.

    Args:
        table: images.parquet.
        labels: labels.parquet, or None if nobody told identities.
    """
    good = usable(table)
    split = {name: np.flatnonzero(good & _is(table["split"], name)) for name in ("train", *TESTED)}
    for name, other in (TESTED, TESTED[::-1]):
        if len(split[name]) and not len(split[other]):
            yield _finding("no_" + other, "warning", 1, [], f"there are {name} images, but no {other}: without both nothing can be scored")
    if labels is None:
        return
    pids, cameras = column(labels, "pid"), camids(table)
    tested = np.concatenate([split[name] for name in TESTED])
    both = np.intersect1d(pids[split["train"]], pids[tested])
    both = both[both > DISTRACTOR_PID]
    if len(both):
        advice = "they are in training and in query or gallery, so scores of a model trained on this set are too good: take them out of one"
        yield _finding("identities_in_train_and_test", "warning", len(both), _names(labels, pids, both), advice)
    if len(split["query"]) and len(split["gallery"]):
        query, gallery = split["query"], split["gallery"]
        unanswerable = np.zeros(table.num_rows, bool)
        unanswerable[query] = ~answerable(pids[query], cameras[query], pids[gallery], cameras[gallery])
        advice = "the gallery has no image of the same identity from another camera: they are left out of scores, and counted"
        if unanswerable.sum() == len(query):
            advice = "no query has its identity in the gallery from another camera, so nothing can be scored: check names and cameras"
        yield from _found("unanswerable_queries", unanswerable, table["path"], advice)


def use_findings(table: pa.Table, pids: npt.NDArray[np.int64] | None) -> Iterator[Finding]:
    """Yield an error if the set is good for nothing, a warning if it is good for scoring only."""
    good = usable(table)
    train, query, gallery = (np.flatnonzero(good & _is(table["split"], name)) for name in ("train", *TESTED))
    cameras = camids(table)
    scorable = pids is not None and answerable(pids[query], cameras[query], pids[gallery], cameras[gallery]).any()
    if len(train) == 0:
        severity: Severity = "warning" if scorable else "error"
        advice = "a model can be scored here, but not trained" if scorable else "nothing can be trained or scored: see the other findings"
        yield _finding("no_training_images", severity, 1, [], f"no usable image belongs to training: {advice}")


def answerable(
    query_pids: npt.NDArray[np.int64],
    query_camids: npt.NDArray[np.int64],
    gallery_pids: npt.NDArray[np.int64],
    gallery_camids: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Say of each query whether the gallery has its identity from another camera; distractors and junk are nobody.

    Args:
        query_pids: (q,) identities.
        query_camids: (q,) cameras; -1 for an unknown one, which differs from every camera.
        gallery_pids: (g,) identities.
        gallery_camids: (g,) cameras.

    Example:
        >>> answerable(np.array([7, 8, 0]), np.array([1, 1, 1]), np.array([7, 8, 0]), np.array([2, 1, 2])).tolist()
        [True, False, False]
    """
    same = _counts(gallery_pids[None], query_pids[None])
    known = gallery_camids != NO_CAMERA
    left_out = _counts(np.stack((gallery_pids[known], gallery_camids[known])), np.stack((query_pids, query_camids)))
    return (query_pids > DISTRACTOR_PID) & (same > left_out)


def _counts(among: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how often each column of `wanted` is among the columns of `among`."""
    _, code = np.unique(np.concatenate((among, wanted), axis=1), axis=1, return_inverse=True)
    code = code.reshape(-1)
    return np.bincount(code[: among.shape[1]], minlength=code.max(initial=0) + 1)[code[among.shape[1] :]]


def usable(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Say of each image whether it can be decoded."""
    return _true(pc.is_null(table["problem"]))


def _is(values: pa.ChunkedArray, value: str) -> npt.NDArray[np.bool_]:
    return _true(pc.equal(values, value))


def _true(mask: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(mask, False))


def _spread(values: pa.ChunkedArray) -> Spread | None:
    known = values.drop_null().to_numpy()
    return Spread(min=int(known.min()), median=float(np.median(known)), max=int(known.max())) if len(known) else None


def _names(labels: pa.Table, pids: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64]) -> list[str]:
    """Return the names of the first few of these identities."""
    rows = [int(np.argmax(pids == pid)) for pid in chosen[:EXAMPLES]]
    return [str(name) for name in labels["identity"].take(pa.array(rows, pa.int64())).to_pylist()]


def _found(
    code: str, chosen: npt.NDArray[np.bool_], paths: pa.ChunkedArray, advice: str, severity: Severity = "warning"
) -> Iterator[Finding]:
    """Yield a finding if any image is chosen."""
    rows = np.flatnonzero(chosen)
    if len(rows):
        yield _finding(code, severity, len(rows), paths.take(pa.array(rows[:EXAMPLES])).to_pylist(), advice)


def _finding(code: str, severity: Severity, count: int, examples: list[str], advice: str) -> Finding:
    return Finding(code=code, severity=severity, count=count, examples=examples, advice=advice)
