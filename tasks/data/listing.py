"""What every reader of a data set yields, and the little that readers share: the walk over a folder and the guard on written paths."""

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pul_core.errors import DataError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SPLITS = {"train": "train", "query": "query", "probe": "query", "gallery": "gallery", "test": "gallery"}
ODD = re.compile(r"[\0\\~]|^/|//|:[/\\]|\.\.|%2e|(^|/)\./|/\.?$", re.IGNORECASE)  # what may be wrong or needless in a written path


class Listed(NamedTuple):
    """An image as its name or a list tells it; what is not told is None. Identities and cameras are numbers or strings."""

    path: str  # relative to the set's root, with forward slashes
    pid: int | str | None  # the integers 0 (distractor) and -1 (junk) have their meaning in a gallery
    camid: int | str | None
    split: str  # train, query or gallery
    timestamp: float | None = None  # seconds, from whatever beginning


def image_files(root: Path, below: str = "") -> Iterator[str]:
    """Yield the images below a folder as paths relative to the root, in the order of these strings.

    A folder's names are held while it is walked, nothing more. Hidden names are left out, links to folders are not followed.
    """
    with os.scandir(root / below) as entries:
        # With its slash a folder sorts among its siblings exactly where the paths below it do.
        names = [entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries if entry.name[0] != "."]
    names.sort()
    for name in names:
        if name.endswith("/"):
            yield from image_files(root, below + name)
        elif name.lower().endswith(SUFFIXES):
            yield below + name


def written_path(text: str, where: str, root: Path | None) -> str:
    """Check a path that stands in somebody's file: it must stay below the root the file speaks for.

    Args:
        text: the path as written.
        where: file and line, for the sentence of refusal.
        root: the folder; None if it lies at a URL, where nothing can be linked.

    Returns:
        The path with forward slashes and without needless dots.

    Raises:
        DataError: it is empty, absolute, a URL, or leads out of the root by `..` or by a link.
    """
    path = text if text and ODD.search(text) is None else _mended(text, where)
    if root is not None:
        base = str(root)
        inside = _leads_inside(base, path.rpartition("/")[0])
        if inside and os.path.islink(f"{base}/{path}"):  # noqa: PTH114 a million times: Path is too slow
            inside = _leads_inside(base, path)
        if not inside:
            raise DataError(f"{where}: {text!r} is a link that leads out of the folder: put the image itself there")
    return path


def _mended(text: str, where: str) -> str:
    if not text or "\0" in text:
        raise DataError(f"{where}: a path is missing or no text: every line names an image")
    if text[0] in "/\\~" or "://" in text or re.match(r"[A-Za-z]:[/\\]", text):
        raise DataError(f"{where}: {text!r} is absolute: write image paths relative to the file's folder")
    if ".." in re.split(r"[/\\]|%2f|%5c", re.sub("%2e", ".", text, flags=re.IGNORECASE), flags=re.IGNORECASE):
        raise DataError(f"{where}: {text!r} leads out of the folder: write image paths below it, without '..'")
    return PurePosixPath(text).as_posix()


@lru_cache(maxsize=4096)
def _leads_inside(root: str, path: str) -> bool:
    return Path(root, path).resolve().is_relative_to(Path(root).resolve())


def own_pid(text: str, split: str, where: str) -> int | str | None:
    """Return an identity that a user wrote: the text itself, but -1 and 0 as Market-1501 has them.

    In a gallery they are junk and a distractor. In a training set -1 is an image without identity, 0 a person like any other; a query
    can be neither.

    Raises:
        DataError: a query is junk or a distractor.

    Example:
        >>> own_pid("Ana", "train", ""), own_pid("0000", "gallery", ""), own_pid("-1", "train", ""), own_pid("0", "train", "")
        ('Ana', 0, None, '0')
    """
    special = JUNK_PID if text == "-1" else DISTRACTOR_PID if re.fullmatch("0+", text) else None
    if text == "" or (split == "train" and special == JUNK_PID):
        return None
    if special is None or split == "train":
        return text
    if split == "query":
        raise DataError(f"{where}: a query cannot have identity {text}, which means a gallery's junk (-1) or distractor (0): number from 1")
    return special


def own_split(text: str, where: str) -> str:
    """Return the split a user wrote; nothing written is train.

    Raises:
        DataError: it is none of `SPLITS`.
    """
    split = SPLITS.get(text.lower() or "train")
    if split is None:
        raise DataError(f"{where}: {text!r} is no split: write train, query or gallery")
    return split


def own_timestamp(text: str, where: str) -> float | None:
    """Return seconds from a number, or from a date and time as ISO 8601 writes it (UTC where it does not say).

    Raises:
        DataError: it is neither.

    Example:
        >>> own_timestamp("2.5", ""), own_timestamp("1970-01-01T00:01:00", "")
        (2.5, 60.0)
    """
    if text == "":
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise DataError(f"{where}: {text!r} is no time: write seconds, or a date and time like 2026-01-31T12:00:05") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not abs(seconds) < float("inf"):
        raise DataError(f"{where}: {text!r} is no time: write seconds, or a date and time like 2026-01-31T12:00:05")
    return seconds
