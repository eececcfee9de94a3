"""Step *index*: a data set on disk becomes images.parquet, for every step, and labels.parquet, for none that trains on a target.

It is no cached step: what lies in a folder today has to be looked at today. Its artifacts are named by their content, so an unchanged set
hits every cache behind it, wherever it was moved. Memory grows with the number of identities, and by a few bytes an image for the labels.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import pyarrow as pa

from pul_core.errors import DataError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID
from pul_core.synthetic.people import GENERATOR_VERSION, Domain
from tasks.data.layouts import Listed, read_layout
from tasks.data.places import checked_url, image_root, is_url, name_of
from tasks.data.scan import BATCH, QUALITY, scan
from tasks.data.synthesize import synthesize_domain
from tasks.engine.links import linked
from tasks.engine.progress import Progress, progress, step_logger
from tasks.store.artifacts import made_by, write_batches
from tasks.store.home import home
from tasks.store.references import ImageSet

_LISTED = [("camid", pa.int64()), ("camera", pa.string()), ("split", pa.string()), ("timestamp", pa.float64())]
IMAGES = pa.schema([("row", pa.int64()), ("path", pa.string()), *_LISTED, ("bytes", pa.int64()), *QUALITY])
LABELS = pa.schema([("row", pa.int64()), ("pid", pa.int64()), ("identity", pa.string())])
SPLITS = ("train", "query", "gallery")
SYNTHETIC = re.compile(r"synthetic:(\d+)/(source|target)")


@linked("index-{role}")
def index(path: str, role: str, layout: str | None = None, pattern: str | None = None) -> ImageSet:
    """List a data set's images with digest and quality.

    Args:
        path: a folder, a manifest or its URL, or ``synthetic:SEED/source`` and ``synthetic:SEED/target`` for drawn people.
        role: source or target; names the task run.
        layout: one of `tasks.data.layouts.LAYOUTS`; None looks at the folder.
        pattern: of layout ``pattern``.

    Raises:
        DataError: the folder cannot be used.
    """
    place = dataset_root(path)
    root = image_root(place)
    name, listing = read_layout(place, layout, pattern)
    survey = _survey(listing)
    rows = survey.splits.total()
    if rows == 0:
        raise DataError(f"{place} holds no images: give the folder that holds them, at any depth")
    labels: list[pa.RecordBatch] = []
    with made_by("index", layout=name), progress(f"index {role}", rows) as shown:
        listing = read_layout(place, layout, pattern)[1]  # again: the first one may be spent
        images = write_batches("images", IMAGES, _batches(root, listing, survey, labels, shown), rows)
    with made_by("index", images=images.sha256):  # so that whoever removes the images finds their labels
        known = write_batches("labels", LABELS, (batch.cast(LABELS) for batch in labels), rows) if survey.labelled else None
    counts = {split: survey.splits[split] for split in SPLITS if survey.splits[split]}
    step_logger().info("%s: layout %s, %s", place, name, ", ".join(f"{count:,} {split}" for split, count in counts.items()))
    set_name = path.replace("synthetic:", "synthetic-").replace("/", "-") if path.startswith("synthetic:") else name_of(place)
    return ImageSet(name=set_name, root=root, layout=name, images=images, labels=known, splits=counts)


def dataset_root(path: str) -> str:
    """Return the folder, manifest or URL of a data set as `read_layout` wants it; a synthetic one is drawn first if it is not there yet.

    Raises:
        DataError: the path asks for a synthetic domain that does not exist, or for a URL that may not be opened.
    """
    return checked_url(path) if is_url(path) else str(_drawn(path) or Path(path).expanduser().resolve())


class Survey(NamedTuple):
    """What one walk through a listing tells: how many images, and the number of every identity and camera that is named by text."""

    splits: Counter[str]
    labelled: bool
    pids: dict[int | str | None, int | None]
    camids: dict[int | str | None, int | None]


def _survey(listing: Iterable[Listed]) -> Survey:
    splits: Counter[str] = Counter()
    pids, camids = set[int | str | None](), set[int | str | None]()
    for image in listing:
        splits[image.split] += 1
        pids.add(image.pid)
        camids.add(image.camid)
    numbers = _numbers(pids, keep=(DISTRACTOR_PID, JUNK_PID)) | {None: JUNK_PID}  # nobody knows who it is: nothing may be scored by it
    return Survey(splits, pids != {None}, numbers, _numbers(camids) | {None: None})


def _numbers(names: Iterable[int | str | None], keep: tuple[int, ...] = ()) -> dict[int | str | None, int | None]:
    """Return a number for each name: itself if all are numbers; else 1, 2, ... in the order of their text, except for those to keep."""
    told = [name for name in names if name is not None]
    numbers = {name: name for name in told if isinstance(name, int)}
    if len(numbers) == len(told):
        return dict(numbers.items())
    kept = {name: name for name in numbers if name in keep}
    texts = sorted({str(name) for name in told if name not in kept})
    by_text = {text: position for position, text in enumerate(texts, 1)}
    return {name: kept[name] if name in kept else by_text[str(name)] for name in told}


def _batches(
    root: str, listing: Iterable[Listed], survey: Survey, labels: list[pa.RecordBatch], shown: Progress
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of images.parquet and put those of labels.parquet, a few bytes each, into a list."""
    ours, scans = itertools.tee(_in_batches(listing))  # the scan is never more than a batch behind
    row = 0
    for batch, scanned in zip(ours, scan(root, (_paths(root, batch) for batch in scans)), strict=True):
        rows = pa.array(range(row, row + len(batch)), pa.int64())
        row += len(batch)
        try:
            pids, camids = [survey.pids[image.pid] for image in batch], [survey.camids[image.camid] for image in batch]
        except KeyError as error:
            raise _changed(root) from error
        if survey.labelled:
            identities = pa.array([None if image.pid is None else str(image.pid) for image in batch], pa.string())
            labels.append(pa.record_batch([rows, pa.array(pids, pa.int64()), identities.dictionary_encode()], LABELS.names))
        listed = {
            "row": rows,
            "path": pa.array([image.path for image in batch]),
            "camid": pa.array(camids, pa.int64()),
            "camera": pa.array([image.camid if isinstance(image.camid, str) else None for image in batch], pa.string()),
            "split": pa.array([image.split for image in batch]),
            "timestamp": pa.array([image.timestamp for image in batch], pa.float64()),
        }
        columns = listed | {name: scanned[name].combine_chunks() for name in scanned.column_names}
        yield pa.record_batch([columns[name] for name in IMAGES.names], schema=IMAGES)
        shown.advance(len(batch))
    if row != survey.splits.total():
        raise _changed(root)


def _in_batches(listing: Iterable[Listed]) -> Iterator[list[Listed]]:
    rest = iter(listing)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def _paths(root: str, batch: list[Listed]) -> list[str]:
    paths = [image.path for image in batch]
    try:
        "".join(paths).encode()
    except UnicodeEncodeError as error:
        near = ascii(error.object[max(error.start - 40, 0) : error.end + 10])
        raise DataError(f"{root} holds a file whose name is no UTF-8 text, near {near}: rename it") from error
    return paths


def _changed(root: str) -> DataError:
    return DataError(f"{root} changed while it was being indexed: start again when nothing writes there")


def _drawn(path: str) -> Path | None:
    """Return the folder of a synthetic domain, drawn on first use; None if the path is an ordinary one."""
    if not path.startswith("synthetic:"):
        return None
    match = SYNTHETIC.fullmatch(path)
    if match is None:
        raise DataError(f"{path} is no synthetic domain: write synthetic:SEED/source or synthetic:SEED/target, e.g. synthetic:0/target")
    seed, domain = int(match[1]), cast(Domain, match[2])
    with progress(f"draw {path}", 1) as shown:

        def report(done: int, total: int) -> None:
            shown.total = total
            shown.advance(done - shown.done)

        return synthesize_domain(home() / "synthetic" / f"v{GENERATOR_VERSION}-seed-{seed}", domain, seed=seed, on_progress=report)
