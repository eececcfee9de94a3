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
from pydantic import Field

from pul_core.identities import DISTRACTOR_PID, JUNK_PID, NO_CAMERA, separate_unknown_cameras
from tasks.data import plausibility
from tasks.store.artifacts import column, read_table
from tasks.store.readers import camids
from tasks.store.references import ImageSet, Reference

EXAMPLES = 5
SINCE_1970 = 500_000_000  # seconds; smaller times are not counted from 1970
SPREADSHEET_DAYS = (40_000, 60_000)  # 2009 to 2064
Severity = Literal["info", "warning", "error"]
Verdict = Literal["sound", "usable", "unusable"]

# The values of column `problem` in images.parquet: the files that no step can use.
FILE_PROBLEMS = ("missing", "unreadable", "zero_bytes", "too_large", "truncated", "undecodable")
ADVICE = {
    "missing": "these files are listed but do not exist, and are skipped: correct their names in the list, or ignore this",
    "unreadable": "these files cannot be opened and are skipped: check their permissions and links",
    "zero_bytes": "these files are empty, usually after an interrupted copy, and are skipped: copy them again, or delete them",
    "too_large": "these images have more than 50 million pixels or 200 MB and are skipped: give crops of people, not whole pictures",
    "truncated": "these images are cut off, usually by an interrupted copy, and are skipped: copy them again, or delete them",
    "undecodable": "these files are damaged or not images, and are skipped: save them again, or delete them",
    "greyscale": "these images have no colour and are converted to RGB: expect worse features, and do not mix day and night images",
    "sixteen_bit": "these images are converted to 8 bits, and bright pixels are clipped to white: scale them to 8 bits yourself",
    "not_rgb": "these images (palette, CMYK, transparency, ...) are converted to RGB: check on a contact sheet that they look right",
    "animated": "these files have several frames, and only the first is used: save the other frames as separate files",
    "blank": "these images show a single colour: check the detector or the camera that made them",
    "duplicates": "these files have the same bytes as an earlier file, count twice in training and inflate scores: delete the copies",
    "test_images_in_train": "these query or gallery images have the same bytes as a training image: remove them from the training split",
    "listed_twice": "these paths are listed more than once, so their images count more than once: list each image once",
    "distractors": "these gallery images have identity 0: they are scored and never a correct match; number people from 1",
    "junk": "these gallery images have identity -1: they are left out of scoring",
    "unlabelled": "these images have no identity: they are neither used as labelled source images nor scored",
    "one_identity": "a source needs at least two identities: add people, or use the set as a target",
    "single_image_identities": "these identities have a single training image each: add images of them, or ignore this",
    "single_camera_identities": (
        "these identities are seen by a single camera, so nothing is learned across cameras: add images or check the camera numbers"
    ),
    "no_query": "there are gallery images but no query images, so nothing can be scored: add the query",
    "no_gallery": "there are query images but no gallery images, so nothing can be scored: add the gallery",
    "identities_in_train_and_test": (
        "these identities are in training and in query or gallery, so scores of a model trained here are too good: keep them in one"
    ),
    "unanswerable_queries": (
        "the gallery has no image of these identities from another camera, so these queries are not scored: check names and cameras"
    ),
    "single_camera": (
        "all query and gallery images are from one camera, and only images from another camera are matches, so nothing can be scored: "
        "give images from a second camera, or correct the camera numbers"
    ),
    "whole_frames": "these images are probably whole frames, not crops of people: leave them out, or crop the people (pul data crop)",
    "odd_shapes": "these images are wider than high, or very thin, unlike people: check that they show people, upright and uncut",
    "other_classes": "these images are filed under a class that is not a person: leave them out, or give the folder of the class person",
    "lone_images": (
        "each of these images is alone on its camera, so the cameras are probably file names or times, and methods that use cameras fail: "
        "use a --pattern in which the camera is the same for all images of a camera, or no pattern"
    ),
    "cameras_like_tracks": (
        "there are so many cameras, with few images each, that they are probably tracks or people, and methods that use cameras suffer: "
        "give the cameras by a --pattern or a manifest, or give none"
    ),
    "cameras_like_identities": (
        "each camera shows a single person, so the cameras are probably identities or tracks, and nothing can be scored or learned across "
        "cameras: check which number is the camera"
    ),
}


class Finding(Reference):
    """A problem or peculiarity of a data set: how many images or identities it concerns, examples of them, and what to do."""

    code: str
    severity: Severity = "warning"
    count: int = 1
    examples: list[str] = Field(default_factory=list)
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
    images: int = 0
    identities: int | None = None
    cameras: int | None = None
    splits: dict[str, int] = Field(default_factory=dict)
    sizes: dict[str, Spread] = Field(default_factory=dict)
    findings: list[Finding]
    verdict: Verdict


def check_set(images: ImageSet) -> Report:
    """Check an indexed data set, independently of what it will be used for."""
    table, labels = read_table(images.images), read_table(images.labels) if images.labels else None
    findings = [
        *listing_findings(images),
        *time_findings(table),
        *file_findings(table),
        *identity_findings(table, labels),
        *evaluation_findings(table, labels),
        *training_findings(table, labels),
        *crop_findings(table, images.root),
        *camera_findings(table),
    ]
    return Report(
        path=images.root,
        layout=images.layout,
        images=table.num_rows,
        identities=count_identities(column(labels, "pid")) if labels else None,
        cameras=len(np.setdiff1d(camids(table), NO_CAMERA)) or None,
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


def listing_findings(images: ImageSet) -> Iterator[Finding]:
    """Yield findings about what the listing states but was not read, or not as it is written."""
    for note, count in images.notes.items():
        yield Finding(code="not_as_written", count=count, advice=note)


def time_findings(table: pa.Table) -> Iterator[Finding]:
    """Yield a finding if times are counted from different origins, or look like days of a spreadsheet.

    Args:
        table: images.parquet.
    """
    if (times := table["timestamp"].drop_null()).length() == 0:
        return
    first, last = (round(value.as_py()) for value in pc.min_max(times).values())
    if first < SINCE_1970 <= last:
        advice = f"times reach from {first:,} to {last:,} seconds, so some count from 1970 and others do not: write all in one form"
        yield Finding(code="odd_times", count=int(pc.sum(pc.less(times, SINCE_1970)).as_py()), advice=advice)
    elif SPREADSHEET_DAYS[0] <= first and last < SPREADSHEET_DAYS[1]:
        advice = f"times from {first:,} to {last:,} look like a spreadsheet's days since 1900, but are read as seconds: write dates"
        yield Finding(code="odd_times", count=times.length(), advice=advice)


def file_findings(table: pa.Table) -> Iterator[Finding]:
    """Yield findings about image files: problems, colour modes, and duplicates.

    Args:
        table: images.parquet.
    """
    paths, mode, is_usable = table["path"], table["mode"], usable_mask(table)
    for code in FILE_PROBLEMS:
        yield from _image_finding(code, np.flatnonzero(_equals(table["problem"], code)), paths)
    greyscale = _as_mask(pc.is_in(mode, pa.array(["1", "L", "LA", "La"])))
    sixteen_bit = _as_mask(pc.starts_with(mode, "I")) | _equals(mode, "F")
    masks = {
        "greyscale": greyscale,
        "sixteen_bit": sixteen_bit,
        "not_rgb": ~(greyscale | sixteen_bit | _equals(mode, "RGB")),
        "animated": _as_mask(pc.greater(table["frames"], 1)),
        "blank": _equals(table["sharpness"], 0),
    }
    for code, mask in masks.items():
        yield from _image_finding(code, np.flatnonzero(is_usable & mask), paths, "info" if code == "blank" else "warning")
    yield from _duplicate_findings(table)


def _duplicate_findings(table: pa.Table) -> Iterator[Finding]:
    paths = table["path"].combine_chunks().dictionary_encode().indices.to_numpy()  # one number per path
    is_repeated = np.ones(len(paths), bool)
    is_repeated[np.unique(paths, return_index=True)[1]] = False
    yield from _image_finding("listed_twice", np.flatnonzero(is_repeated), table["path"])
    rows = np.flatnonzero(usable_mask(table) & ~is_repeated)
    content = table["sha256"].take(rows).combine_chunks().dictionary_encode().indices.to_numpy()  # one number per digest
    is_copy = np.ones(len(rows), bool)
    is_copy[np.unique(content, return_index=True)[1]] = False  # the first file with each content
    yield from _image_finding("duplicates", rows[is_copy], table["path"])
    in_train = _equals(table["split"], "train")[rows]
    yield from _image_finding("test_images_in_train", rows[~in_train & np.isin(content, content[in_train])], table["path"])


def identity_findings(table: pa.Table, labels: pa.Table | None) -> Iterator[Finding]:
    """Yield findings about the identities of the training split, and images without an identity.

    Args:
        table: images.parquet.
        labels: labels.parquet; None if the data set has no identities.
    """
    if labels is None:
        return
    has_identity = _as_mask(labels["identity"].is_valid())
    yield from _image_finding("unlabelled", np.flatnonzero(~has_identity), table["path"], "info")
    for code, pid in (("distractors", DISTRACTOR_PID), ("junk", JUNK_PID)):
        yield from _image_finding(code, np.flatnonzero(has_identity & (column(labels, "pid") == pid)), table["path"], "info")
    pids, rows = column(labels, "pid"), usable_rows(table, "train")
    rows = rows[pids[rows] > DISTRACTOR_PID]
    identities, counts = np.unique(pids[rows], return_counts=True)
    if len(identities) == 1:
        yield from _identity_finding("one_identity", identities, labels)
    yield from _identity_finding("single_image_identities", identities[counts == 1], labels)
    cameras = camids(table)[rows]
    is_known = cameras != NO_CAMERA
    if plausibility.are_identities(pids[rows][is_known], cameras[is_known]):
        yield from _identity_finding("cameras_like_identities", identities, labels)
    elif is_known.any():
        cameras = separate_unknown_cameras(cameras)
        pid_of_pair = np.unique(np.stack((pids[rows], cameras)), axis=1)[0]  # one entry for each pair of identity and camera
        num_cameras = np.unique(pid_of_pair, return_counts=True)[1]
        yield from _identity_finding("single_camera_identities", identities[(num_cameras == 1) & (counts > 1)], labels)


def evaluation_findings(table: pa.Table, labels: pa.Table | None) -> Iterator[Finding]:
    """Yield findings about query and gallery; they concern scores, not training.

    Args:
        table: images.parquet.
        labels: labels.parquet; None if the data set has no identities.
    """
    train, query, gallery = (usable_rows(table, split) for split in ("train", "query", "gallery"))
    if len(query) == 0 < len(gallery):
        yield Finding(code="no_query", advice=ADVICE["no_query"])
    if len(gallery) == 0 < len(query):
        yield Finding(code="no_gallery", advice=ADVICE["no_gallery"])
    if labels is None:
        return
    pids = column(labels, "pid")
    shared = np.intersect1d(pids[train], pids[np.concatenate((query, gallery))])
    yield from _identity_finding("identities_in_train_and_test", shared[shared > DISTRACTOR_PID], labels)
    if len(query) and len(gallery) and has_single_camera(camids(table)[np.concatenate((query, gallery))]):
        yield Finding(code="single_camera", count=len(query) + len(gallery), advice=ADVICE["single_camera"])
    elif len(query) and len(gallery):
        has_match = answerable_queries(table, labels)
        advice = "no query has a match in the gallery from another camera, so nothing can be scored: check names and cameras"
        yield from _image_finding("unanswerable_queries", query[~has_match], table["path"], advice=None if has_match.any() else advice)


def has_single_camera(cameras: npt.NDArray[np.int64]) -> bool:
    """Return whether all images (n,) are from the same known camera, so that no query has a match from another one."""
    return len(np.unique(separate_unknown_cameras(cameras))) == 1


def crop_findings(table: pa.Table, root: str) -> Iterator[Finding]:
    """Yield findings about images that are probably no crops of people: by their size, or by the names of their folders.

    Args:
        table: images.parquet.
        root: of the data set; its last folders may name a class, too.
    """
    rows, paths = np.flatnonzero(usable_mask(table)), table["path"]
    width, height = (table[name].take(pa.array(rows)).to_numpy() for name in ("width", "height"))
    is_frame = plausibility.find_whole_frames(width, height)
    is_odd = plausibility.find_odd_shapes(width, height) & ~is_frame
    yield from _image_finding("whole_frames", rows[is_frame], paths, "error" if is_frame.all() else "warning")
    yield from _image_finding(
        "odd_shapes", rows[is_odd], paths, "warning" if is_odd.sum() >= plausibility.ODD_SHARE * len(rows) else "info"
    )
    full_paths = pc.binary_join_element_wise("/".join(root.rsplit("/", 2)[-2:]), paths, "/")
    has_other_class = plausibility.find_other_classes(full_paths, pc.unique(table["camera"]).drop_null().to_pylist())
    yield from _image_finding("other_classes", np.flatnonzero(has_other_class), paths)


def camera_findings(table: pa.Table) -> Iterator[Finding]:
    """Yield a finding if the cameras are probably none: each image has its own, or there are very many with few images each.

    Args:
        table: images.parquet.
    """
    rows = np.flatnonzero(usable_mask(table) & (camids(table) != NO_CAMERA))
    cameras, first, sizes = np.unique(camids(table)[rows], return_index=True, return_counts=True)
    if plausibility.are_lone_images(len(rows), len(cameras)):
        yield from _image_finding("lone_images", rows, table["path"])
    elif plausibility.are_tracks(sizes):
        examples = table["path"].take(pa.array(rows[first[:EXAMPLES]])).to_pylist()
        yield Finding(code="cameras_like_tracks", count=len(cameras), examples=examples, advice=ADVICE["cameras_like_tracks"])


def training_findings(table: pa.Table, labels: pa.Table | None) -> Iterator[Finding]:
    """Yield a finding if there are no training images: a warning if the set can be scored, otherwise an error.

    Args:
        table: images.parquet.
        labels: labels.parquet; None if the data set has no identities.
    """
    if len(usable_rows(table, "train")):
        return
    if labels is not None and answerable_queries(table, labels).any():
        yield Finding(code="no_training_images", advice="the training split has no usable image: use the set for scoring only")
    else:
        advice = "the training split has no usable image, and nothing can be scored: see the other findings"
        yield Finding(code="no_training_images", severity="error", advice=advice)


def answerable_queries(table: pa.Table, labels: pa.Table) -> npt.NDArray[np.bool_]:
    """Return for each usable query image, in the order of the rows, whether it can be scored (q,).

    Args:
        table: images.parquet.
        labels: labels.parquet.
    """
    pids, cameras, query, gallery = column(labels, "pid"), camids(table), usable_rows(table, "query"), usable_rows(table, "gallery")
    return answerable(pids[query], cameras[query], pids[gallery], cameras[gallery])


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


def usable_mask(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Return for each row of images.parquet whether the image can be decoded (n,)."""
    return _as_mask(pc.is_null(table["problem"]))


def usable_rows(table: pa.Table, split: str) -> npt.NDArray[np.int64]:
    """Return the rows of images.parquet whose images belong to a split and can be decoded (m,), ascending."""
    return np.flatnonzero(usable_mask(table) & _equals(table["split"], split))


def count_identities(pids: npt.NDArray[np.int64]) -> int:
    """Return the number of different identities, not counting distractors and junk."""
    return len(np.unique(pids[pids > DISTRACTOR_PID]))


def _equals(values: pa.ChunkedArray, value: str | float) -> npt.NDArray[np.bool_]:
    return _as_mask(pc.equal(values, value))


def _as_mask(values: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(values, False))


def _spread(values: pa.ChunkedArray) -> Spread | None:
    numbers = values.drop_null().to_numpy()
    return Spread(min=int(numbers.min()), median=float(np.median(numbers)), max=int(numbers.max())) if len(numbers) else None


def _identity_finding(code: str, identities: npt.NDArray[np.int64], labels: pa.Table) -> Iterator[Finding]:
    """Yield a warning with the names of the first identities, if there are any."""
    if len(identities):
        rows = [np.argmax(column(labels, "pid") == pid) for pid in identities[:EXAMPLES]]
        names = [str(name) for name in labels["identity"].take(pa.array(rows)).to_pylist()]
        yield Finding(code=code, count=len(identities), examples=names, advice=ADVICE[code])


def _image_finding(
    code: str, rows: npt.NDArray[np.int64], paths: pa.ChunkedArray, severity: Severity = "warning", advice: str | None = None
) -> Iterator[Finding]:
    """Yield a finding with the paths of the first images, if there are any."""
    if len(rows):
        examples = paths.take(pa.array(rows[:EXAMPLES])).to_pylist()
        yield Finding(code=code, severity=severity, count=len(rows), examples=examples, advice=advice or ADVICE[code])
