"""Readers of people's own folders: crops at any depth, a folder an identity, and names told by a pattern. Nothing is opened."""

import re
from collections.abc import Iterator
from pathlib import Path

from pul_core.errors import DataError
from tasks.data.listing import Listed, image_files, own_pid, own_split, own_timestamp

GROUPS = ("identity", "camera", "split", "timestamp")


def folder(root: Path) -> Iterator[Listed]:
    """List crops at any depth: no identities, no cameras, all to learn from."""
    for path in image_files(root):
        yield Listed(path, None, None, "train")


def folder_per_identity(root: Path) -> Iterator[Listed]:
    """List crops whose first folder is their identity; above it there may be folders train, query and gallery.

    Raises:
        DataError: an image lies in no identity's folder.
    """
    tops = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    depth = 1 if tops and tops <= {"train", "query", "gallery"} else 0
    for path in image_files(root):
        *folders, _ = path.split("/")
        if len(folders) <= depth:
            raise DataError(f"{root / path} lies in no identity's folder: layout folder-per-identity wants IDENTITY/image.jpg")
        split = folders[0] if depth else "train"
        yield Listed(path, own_pid(folders[depth], split, str(root / path)), None, split)


def by_pattern(root: Path, pattern: str) -> Iterator[Listed]:
    """List images whose paths, relative to the root, a regular expression with named groups explains.

    Args:
        root: the folder.
        pattern: searched for in each path; its groups are some of `GROUPS`. A group that took no part in the match tells nothing.

    Raises:
        DataError: the pattern is none, or an image does not match.
    """
    expression = _compiled(pattern)
    for path in image_files(root):
        match = expression.search(path)
        where = str(root / path)
        if match is None:
            raise DataError(f"{where} does not match the pattern {pattern!r}: mend it, or give a folder that has no other images")
        told = {name: value or "" for name, value in match.groupdict().items()}
        split = own_split(told.get("split", ""), where)
        pid, time = own_pid(told.get("identity", ""), split, where), own_timestamp(told.get("timestamp", ""), where)
        yield Listed(path, pid, told.get("camera") or None, split, time)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"the pattern {pattern!r} is no regular expression: {error}") from error
    if not expression.groupindex or not set(expression.groupindex) <= set(GROUPS):
        raise DataError(f"the pattern {pattern!r} wants named groups such as (?P<camera>...), and none but {', '.join(GROUPS)}")
    return expression
