"""Step *index*: lists and inspects the images of a data set and writes images.parquet, which every step reads, and labels.parquet.

labels.parquet is a separate file, so that no step that trains on a target can read its identities. The step is not cached, because the
folder may have changed. Its artifacts are named by their content, so all later steps of an unchanged data set come from the cache, even if
it was moved. Memory grows with the number of identities, and by a few bytes per image for the labels.
"""

import contextlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc

from pul_core.errors import DataError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID, identity_in_split
from pul_core.synthetic.people import GENERATOR_VERSION, Domain
from tasks.data.cells import compact
from tasks.data.layouts import read_layout
from tasks.data.listing import ListedImage, missing_advice
from tasks.data.locations import dataset_name, image_root, is_url, validate_location
from tasks.data.manifests import unread_tables
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
NOT_THERE = {False: ["missing"], True: ["unreadable"]}  # problems of a listed file that does not exist, on disk and at a URL
# Names that people write for all unknown identities or cameras, as `compact` returns them.
UNKNOWN_NAME = re.compile(
    "unknown|unk|unlabell?ed|notlabell?ed|nolabel|noid|noname|undefined|unidentified|unassigned|missing|distractors?|junk|background|ignored?|others?"
)
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
        DataError: the data set cannot be read, none of its images exists, or it changes while it is indexed.
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
    notes = dict(summary.notes) | _unread_table_notes(root, layout_name)
    return ImageSet(name=name, root=root, layout=layout_name, images=images, labels=labels, splits=splits, notes=notes)


def dataset_root(path: str) -> str:
    """Return the folder, manifest or URL of a data set for `read_layout`; a synthetic data set is drawn first if it does not exist.

    Raises:
        DataError: the path names a synthetic domain that does not exist, or a URL that may not be opened; or it is empty.
    """
    if "\0" in path or not path.strip():
        raise DataError(f"{path!r} is not the path of a data set: give a folder, a manifest or a list")
    if is_url(path):
        return validate_location(path)
    if not path.startswith("synthetic:"):
        return str(user_path(path).resolve())
    match = SYNTHETIC.fullmatch(path)
    if match is None:
        raise DataError(f"{path} is not a synthetic domain: write synthetic:SEED/source or synthetic:SEED/target, e.g. synthetic:0/target")
    seed, domain = int(match[1]), cast(Domain, match[2])
    root = home() / "synthetic" / f"v{GENERATOR_VERSION}-seed-{seed}"
    with contextlib.ExitStack() as drawing:
        progress_bar: Progress | None = None

        def report(done: int, total: int) -> None:  # never called if the domain was drawn before
            nonlocal progress_bar
            progress_bar = progress_bar or drawing.enter_context(progress(f"draw {path}", total))
            progress_bar.advance(done - progress_bar.done)

        return str(synthesize_domain(root, domain, seed=seed, on_progress=report))


class ListingSummary(NamedTuple):
    """The result of a first pass over a listing: the number of images per split, and the numbers of all identities and cameras."""

    splits: Counter[str]
    labelled: bool  # whether an image has an identity
    pids: dict[int | str | None, int | None]  # number of each identity as `identity_in_split` returns it
    camids: dict[int | str | None, int | None]  # number of each camera as it is listed
    notes: Counter[str]  # number of images with each note


def _summarise(listing: Iterable[ListedImage]) -> ListingSummary:
    splits, notes = Counter[str](), Counter[str]()
    pids: dict[str, set[int | str | None]] = {split: set() for split in SPLITS}
    camids = set[int | str | None]()
    for image in listing:
        splits[image.split] += 1
        pids[image.split].add(identity_in_split(image.pid, image.split))
        camids.add(image.camid)
        if image.notes:
            notes.update(image.notes)
    all_pids = set[int | str | None]().union(*pids.values())
    number_of_pid = _number(all_pids - {DISTRACTOR_PID, JUNK_PID})
    # Where a query has identity 0, people are numbered from 0, and identity 0 in the gallery is that person.
    zero_of_split = {split: next(filter(_is_zero, map(str, pids[split])), None) for split in ("train", "query")}
    distractor = number_of_pid[zero_of_split["query"]] if zero_of_split["query"] else DISTRACTOR_PID
    if DISTRACTOR_PID in pids["gallery"] and zero_of_split["train"] and not zero_of_split["query"]:
        notes["identity 0 is a person in train and a distractor in the gallery: number people from 1, or write 0 only for distractors"] = 1
    for kind, names in (("identities", all_pids), ("cameras", camids)):
        notes.update(_name_notes(kind, [name for name in names if isinstance(name, str)]))
    number_of_pid |= {DISTRACTOR_PID: distractor, JUNK_PID: JUNK_PID, None: JUNK_PID}  # images without an identity are not scored
    return ListingSummary(splits, all_pids != {None}, number_of_pid, _number(camids) | {None: None}, notes)


def _is_zero(identity: str) -> bool:
    return re.fullmatch("0+", identity) is not None


def _name_notes(kind: str, names: list[str]) -> Iterator[str]:
    """Yield notes on names that differ only in their case, in leading zeros or in the width of digits, and on names that mean unknown."""
    first: dict[str, str] = {}
    for name in sorted(names):
        other = first.setdefault(unicodedata.normalize("NFKC", name).casefold().lstrip("0") or "0", name)
        if other != name:
            yield f"{kind} {other!r} and {name!r} are read as different ones: write them in the same way if they are the same"
            break
    if unknown := min((name for name in names if UNKNOWN_NAME.fullmatch(compact(name)) or re.fullmatch(r"-\d+", name)), default=None):
        advice = f"leave out the name, or write -1, if it is unknown{', and 0 for a distractor' if kind == 'identities' else ''}"
        yield f"{kind} such as {unknown!r} are read like all others: {advice}"


def _unread_table_notes(root: str, layout: str) -> dict[str, int]:
    if layout not in ("folder", "folder-per-identity", "pattern"):
        return {}
    names = unread_tables(Path(root))
    return {f"{name} in the folder is not read: give {Path(root, name)} itself if it lists the images": 1 for name in names}


def _number(names: Iterable[int | str | None]) -> dict[int | str | None, int | None]:
    """Map integers to themselves, and texts to the numbers that follow the largest integer, in their order; None is left out.

    A text that writes one of the integers has its number.
    """
    integers = {name for name in names if isinstance(name, int)}
    texts = sorted({name for name in names if isinstance(name, str)} - set(map(str, integers)))
    number_of_text = {text: number for number, text in enumerate(texts, max(integers, default=0) + 1)}
    number_of_text |= {str(integer): integer for integer in integers}
    return {name: name if isinstance(name, int) else number_of_text[name] for name in names if name is not None}


def _batches(
    root: str, listing: Iterable[ListedImage], summary: ListingSummary, label_batches: list[pa.RecordBatch], progress_bar: Progress
) -> Iterator[pa.RecordBatch]:
    """Yield images.parquet in batches of rows, and append those of labels.parquet, a few bytes per image, to `label_batches`."""
    batches, batches_to_scan = itertools.tee(_split_into_batches(listing))  # only one batch is held in memory
    row, first_path, any_exists = 0, "", False
    for batch, scanned in zip(batches, scan(root, (_paths(root, batch) for batch in batches_to_scan)), strict=True):
        rows = pa.array(range(row, row + len(batch)), pa.int64())
        row += len(batch)
        try:
            listed_pids = [identity_in_split(image.pid, image.split) for image in batch]
            pids, camids = [summary.pids[pid] for pid in listed_pids], [summary.camids[image.camid] for image in batch]
        except KeyError as error:
            raise _changed_error(root) from error
        if summary.labelled:
            identities = pa.array([None if pid is None else str(pid) for pid in listed_pids], pa.string())
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
        first_path = first_path or batch[0].path
        any_exists = any_exists or not pc.all(pc.is_in(scanned["problem"], pa.array(NOT_THERE[is_url(root)]))).as_py()
        progress_bar.advance(len(batch))
    if row != summary.splits.total():
        raise _changed_error(root)
    if not any_exists:
        raise DataError(f"none of the {row:,} listed images exists, the first is {root}/{first_path}: {missing_advice(root, first_path)}")


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
