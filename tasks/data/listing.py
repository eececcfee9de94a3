"""The record that every data set reader yields, and what the readers share: walking a folder, validating paths, parsing labels."""

import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pul_core.errors import DataError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SPLITS = {"train": "train", "query": "query", "probe": "query", "gallery": "gallery", "test": "gallery"}
# Paths that may be invalid: absolute, a URL, with "..", or not in normal form. Most paths match nothing and are not checked further.
SUSPICIOUS_PATH = re.compile(r"[\0\\~]|^/|//|:[/\\]|\.\.|%2e|(^|/)\./|/\.?$", re.IGNORECASE)


class ListedImage(NamedTuple):
    """An image as its file name, a list or a manifest describes it; a field is None if it is not stated."""

    path: str  # relative to the root of the data set, with forward slashes
    pid: int | str | None  # in a gallery, the integers 0 and -1 mean a distractor and junk
    camid: int | str | None
    split: str  # train, query or gallery
    timestamp: float | None = None  # seconds, from any origin


# Folders that systems make beside people's own. Files and folders whose names begin with a dot are hidden: a Mac writes ._a.jpg for a.jpg.
SYSTEM_FOLDERS = {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is left out of every listing: it is hidden, or made by a system."""
    return name[0] == "." or name.lower() in SYSTEM_FOLDERS


def is_image_name(name: str) -> bool:
    """Return whether a file's name is that of an image that is listed."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def folder_names(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        folders = (entry for entry in entries if not is_hidden(entry.name) and (entry.is_symlink() or entry.is_dir()))
        return sorted(entry.name for entry in folders if not entry.is_symlink() or Path(entry.path).is_dir())  # a link may be a loop


def iter_image_paths(root: Path, folder: str = "") -> Iterator[str]:
    """Yield the paths of the images below a folder, relative to the root and sorted as strings.

    Memory holds only the names in the folders on the current path. Hidden and system files are skipped; links to folders are not followed.

    Args:
        root: the root of the data set.
        folder: the folder to walk, relative to the root; empty or with a trailing slash.
    """
    with os.scandir(root / folder) as entries:
        # A folder name with a trailing slash sorts among its siblings exactly where the paths below it do.
        names = [entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries if not is_hidden(entry.name)]
    names.sort()
    for name in names:
        if name.endswith("/"):
            yield from iter_image_paths(root, folder + name)
        elif name.lower().endswith(IMAGE_SUFFIXES):
            yield folder + name


def validate_image_path(text: str, origin: str, root: Path | None) -> str:
    """Validate an image path from a list or manifest: it must stay below the root.

    Args:
        text: the path as written.
        origin: file and line, for error messages.
        root: the folder; None for a URL, where there are no links.

    Returns:
        The path with forward slashes, in normal form.

    Raises:
        DataError: the path is empty, absolute, a URL, or leads out of the root by `..` or by a link.
    """
    path = text if text and SUSPICIOUS_PATH.search(text) is None else _normalise_path(text, origin)
    if root is not None:
        base = str(root)
        is_link = os.path.islink(f"{base}/{path}")  # noqa: PTH114 Path is too slow for a million calls
        if not _is_inside(base, path.rpartition("/")[0]) or (is_link and not _is_inside(base, path)):
            raise DataError(f"{origin}: {text!r} is a link that leads out of the folder: replace the link with the image itself")
    return path


def _normalise_path(text: str, origin: str) -> str:
    if not text or "\0" in text:
        raise DataError(f"{origin}: the image path is empty or contains a null character: name an image on every line")
    if text[0] in "/\\~" or "://" in text or re.match(r"[A-Za-z]:[/\\]", text):
        raise DataError(f"{origin}: {text!r} is absolute: write image paths relative to the folder of this file")
    if ".." in re.split(r"[/\\]|%2f|%5c", re.sub("%2e", ".", text, flags=re.IGNORECASE), flags=re.IGNORECASE):
        raise DataError(f"{origin}: {text!r} leads out of the folder: write image paths below it, without '..'")
    return PurePosixPath(text).as_posix()


@lru_cache(maxsize=4096)
def _is_inside(root: str, path: str) -> bool:
    return Path(root, path).resolve().is_relative_to(Path(root).resolve())


def parse_pid(text: str, split: str, origin: str) -> int | str | None:
    """Parse an identity from a user's file: the text itself, except for -1 and 0, which have the meaning they have in Market-1501.

    In a gallery they are junk and a distractor. In a training split -1 is an image without an identity, and 0 an ordinary identity. A
    query must have neither.

    Args:
        text: the identity as written; empty if there is none.
        split: train, query or gallery.
        origin: file and line, for error messages.

    Raises:
        DataError: a query is marked as junk or as a distractor.

    Example:
        >>> parse_pid("Ana", "train", ""), parse_pid("0000", "gallery", ""), parse_pid("-1", "train", ""), parse_pid("0", "train", "")
        ('Ana', 0, None, '0')
    """
    special = JUNK_PID if text == "-1" else DISTRACTOR_PID if re.fullmatch("0+", text) else None
    if text == "" or (split == "train" and special == JUNK_PID):
        return None
    if special is None or split == "train":
        return text
    if split == "query":
        raise DataError(
            f"{origin}: a query cannot have identity {text}, which marks junk (-1) or a distractor (0) in a gallery: "
            "number identities from 1"
        )
    return special


def parse_image(path: str, fields: Mapping[str, str | None], origin: str) -> ListedImage:
    """Parse the description of an image in a user's file.

    Args:
        path: relative to the root of the data set.
        fields: identity, camera, split and timestamp as written; missing, None or empty if not stated. An image without a split is train.
        origin: file and line, for error messages.

    Raises:
        DataError: the split is not a key of `SPLITS`, or the identity or the timestamp is not valid.
    """
    text = fields.get("split") or "train"
    split = SPLITS.get(text.lower())
    if split is None:
        raise DataError(f"{origin}: {text!r} is not a split: write train, query or gallery")
    pid = parse_pid(fields.get("identity") or "", split, origin)
    return ListedImage(path, pid, fields.get("camera") or None, split, parse_timestamp(fields.get("timestamp") or "", origin))


def parse_timestamp(text: str, origin: str) -> float | None:
    """Parse a time from a user's file: a number of seconds, or an ISO 8601 date and time (in UTC unless it has an offset).

    Returns:
        Seconds; None for an empty text.

    Raises:
        DataError: the text is neither.

    Example:
        >>> parse_timestamp("2.5", ""), parse_timestamp("1970-01-01T00:01:00", "")
        (2.5, 60.0)
    """
    if text == "":
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = utc_seconds(datetime.fromisoformat(text))
        except ValueError:
            seconds = float("nan")
    if not abs(seconds) < float("inf"):
        raise DataError(f"{origin}: {text!r} is not a time: write seconds, or a date and time such as 2026-01-31T12:00:05")
    return seconds


def utc_seconds(moment: datetime) -> float:
    """Return a date and time as Unix time in seconds; without an offset it is taken to be UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
