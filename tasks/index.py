"""Step *index*: lists and inspects the images of a data set and writes images.parquet, which every step reads, and labels.parquet.

labels.parquet is a separate file, so that no step that trains on a target can read its identities. The step is not cached, because the
folder may have changed. Its artifacts are named by their content, so all later steps of an unchanged data set come from the cache, even if
it was moved. Memory grows with the number of identities, and by a few bytes per image for the labels.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

import pyarrow as pa

from pul_core.errors import DataError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID
from pul_core.synthetic.people import GENERATOR_VERSION, Domain
from tasks.data.layouts import read_layout
from tasks.data.listing import ListedImage
from tasks.data.locations import dataset_name, image_root, is_url, validate_location
from tasks.data.scan import BATCH, SCANNED, scan
from tasks.data.synthesize import synthesize_domain
from tasks.engine.links import linked
from tasks.engine.progress import Progress, progress, step_logger
from tasks.store.artifacts import made_by, write_batches
from tasks.store.home import home, user_path
from tasks.store.references import ImageSet

IMAGES = pa.schema(
    [
        ("row", pa.int64()),
        ("path", pa.string()),
        ("camid", pa.int64()),
        ("camera", pa.string()),
        ("split", pa.string()),
        ("timestamp", pa.float64()),
        *SCANNED,
    ]
)
LABELS = pa.schema([("row", pa.int64()), ("pid", pa.int64()), ("identity", pa.string())])
SPLITS = ("train", "query", "gallery")
SYNTHETIC = re.compile(r"synthetic:(\d+)/(source|target)")


@linked("index-{role}")
def index(path: str, role: str, layout: str | None = None, pattern: str | None = None) -> ImageSet:
    """List the images of a data set with their digests and quality, and number their identities and cameras.

    Args:
        path: a folder, a manifest or its URL, or ``synthetic:SEED/source`` or ``synthetic:SEED/target`` for drawn people.
        role: source or target; part of the name of the task run.
        layout: one of `tasks.data.layouts.LAYOUTS`; None detects it.
        pattern: for layout ``pattern`` only: a regular expression for the image paths, with named groups.

    Returns:
        The indexed data set.

    Raises:
        DataError: the data set cannot be read, or changes while it is indexed.
    """
    location = dataset_root(path)
    root = image_root(location)
    layout_name, listing = read_layout(location, layout, pattern)
    summary = _summarise(listing)
    rows = summary.splits.total()
    label_batches: list[pa.RecordBatch] = []
    with made_by("index", layout=layout_name), progress(f"index {role}", rows) as progress_bar:
        listing = read_layout(location, layout, pattern)[1]  # again, because a listing can only be iterated once
        images = write_batches("images", IMAGES, _batches(root, listing, summary, label_batches, progress_bar), rows)
    with made_by("index", images=images.sha256):  # so that deleting the images also deletes their labels
        labels = write_batches("labels", LABELS, (batch.cast(LABELS) for batch in label_batches), rows) if summary.labelled else None
    splits = {split: summary.splits[split] for split in SPLITS if summary.splits[split]}
    step_logger().info("%s: layout %s, %s", location, layout_name, ", ".join(f"{count:,} {split}" for split, count in splits.items()))
    name = path.replace("synthetic:", "synthetic-").replace("/", "-") if path.startswith("synthetic:") else dataset_name(location)
    return ImageSet(name=name, root=root, layout=layout_name, images=images, labels=labels, splits=splits)


def dataset_root(path: str) -> str:
    """Return the folder, manifest or URL of a data set for `read_layout`; a synthetic data set is drawn first if it does not exist.

    Raises:
        DataError: the path names a synthetic domain that does not exist, or a URL that may not be opened.
    """
    if "\0" in path:
        raise DataError(f"{path!r} is not a path: remove the null character")
    if is_url(path):
        return validate_location(path)
    if not path.startswith("synthetic:"):
        return str(user_path(path).resolve())
    match = SYNTHETIC.fullmatch(path)
    if match is None:
        raise DataError(f"{path} is not a synthetic domain: write synthetic:SEED/source or synthetic:SEED/target, e.g. synthetic:0/target")
    seed, domain = int(match[1]), cast(Domain, match[2])
    with progress(f"draw {path}", 1) as progress_bar:

        def report(done: int, total: int) -> None:
            progress_bar.total = total
            progress_bar.advance(done - progress_bar.done)

        root = home() / "synthetic" / f"v{GENERATOR_VERSION}-seed-{seed}"
        return str(synthesize_domain(root, domain, seed=seed, on_progress=report))


class ListingSummary(NamedTuple):
    """The result of a first pass over a listing: the number of images per split, and the numbers of all identities and cameras."""

    splits: Counter[str]
    labelled: bool  # whether an image has an identity
    pids: dict[int | str | None, int | None]  # number of each identity as it is listed
    camids: dict[int | str | None, int | None]  # number of each camera as it is listed


def _summarise(listing: Iterable[ListedImage]) -> ListingSummary:
    splits: Counter[str] = Counter()
    pids, camids = set[int | str | None](), set[int | str | None]()
    for image in listing:
        splits[image.split] += 1
        pids.add(image.pid)
        camids.add(image.camid)
    pid_numbers = _number(pids, reserved=(DISTRACTOR_PID, JUNK_PID)) | {None: JUNK_PID}  # images without an identity are not scored
    return ListingSummary(splits, pids != {None}, pid_numbers, _number(camids) | {None: None})


def _number(names: Iterable[int | str | None], reserved: tuple[int, ...] = ()) -> dict[int | str | None, int | None]:
    """Map names to numbers: to themselves if all are integers, and otherwise to 1, 2, ... in the order of their text.

    Reserved integers always map to themselves. None is left out.
    """
    present = [name for name in names if name is not None]
    if all(isinstance(name, int) for name in present):
        return {name: int(name) for name in present}
    texts = sorted({str(name) for name in present if name not in reserved})
    number_of_text = {text: number for number, text in enumerate(texts, 1)}
    return {name: int(name) if name in reserved else number_of_text[str(name)] for name in present}


def _batches(
    root: str, listing: Iterable[ListedImage], summary: ListingSummary, label_batches: list[pa.RecordBatch], progress_bar: Progress
) -> Iterator[pa.RecordBatch]:
    """Yield images.parquet in batches of rows, and append those of labels.parquet, a few bytes per image, to `label_batches`."""
    batches, batches_to_scan = itertools.tee(_split_into_batches(listing))  # only one batch is held in memory
    row = 0
    for batch, scanned in zip(batches, scan(root, (_paths(root, batch) for batch in batches_to_scan)), strict=True):
        rows = pa.array(range(row, row + len(batch)), pa.int64())
        row += len(batch)
        try:
            pids, camids = [summary.pids[image.pid] for image in batch], [summary.camids[image.camid] for image in batch]
        except KeyError as error:
            raise _changed_error(root) from error
        if summary.labelled:
            identities = pa.array([None if image.pid is None else str(image.pid) for image in batch], pa.string())
            label_batches.append(pa.record_batch([rows, pa.array(pids, pa.int64()), identities.dictionary_encode()], LABELS.names))
        columns = {
            "row": rows,
            "path": [image.path for image in batch],
            "camid": camids,
            "camera": [image.camid if isinstance(image.camid, str) else None for image in batch],
            "split": [image.split for image in batch],
            "timestamp": [image.timestamp for image in batch],
        }
        columns |= {name: scanned[name].combine_chunks() for name in SCANNED.names}
        yield pa.record_batch(columns, schema=IMAGES)
        progress_bar.advance(len(batch))
    if row != summary.splits.total():
        raise _changed_error(root)


def _split_into_batches(listing: Iterable[ListedImage]) -> Iterator[list[ListedImage]]:
    images = iter(listing)
    while batch := list(itertools.islice(images, BATCH)):
        yield batch


def _paths(root: str, batch: list[ListedImage]) -> list[str]:
    """Return the paths of a batch.

    Raises:
        DataError: a path cannot be encoded in UTF-8.
    """
    paths = [image.path for image in batch]
    try:
        "".join(paths).encode()
    except UnicodeEncodeError as error:
        excerpt = ascii(error.object[max(error.start - 40, 0) : error.end + 10])
        raise DataError(f"{root} holds a file whose name is not valid UTF-8, near {excerpt}: rename it") from error
    return paths


def _changed_error(root: str) -> DataError:
    return DataError(f"{root} changed while it was being indexed: start again when nothing writes to it")
