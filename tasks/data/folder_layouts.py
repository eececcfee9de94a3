"""Readers of users' own folders: a plain folder of crops, one folder per identity, and file names parsed by a pattern.

Images are listed, not opened.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pul_core.errors import DataError
from tasks.data.listing import ListedImage, iter_image_paths, parse_image, parse_pid

PATTERN_GROUPS = ("identity", "camera", "split", "timestamp")


def list_folder(root: Path) -> Iterator[ListedImage]:
    """List the crops of a plain folder, at any depth: no identities, no cameras, all in the training split."""
    for path in iter_image_paths(root):
        yield ListedImage(path, None, None, "train")


def list_folder_per_identity(root: Path) -> Iterator[ListedImage]:
    """List the crops of a folder with one sub-folder per identity, optionally inside folders named train, query and gallery.

    Raises:
        DataError: an image is not in the folder of an identity.
    """
    subfolders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    depth = 1 if subfolders and subfolders <= {"train", "query", "gallery"} else 0
    for path in iter_image_paths(root):
        *folders, _ = path.split("/")
        if len(folders) <= depth:
            raise DataError(f"{root / path} is not in the folder of an identity: move it to IDENTITY/image.jpg, or choose another layout")
        split = folders[0] if depth else "train"
        yield ListedImage(path, parse_pid(folders[depth], split), None, split)


def list_by_pattern(root: Path, pattern: str) -> Iterator[ListedImage]:
    """List the images of a folder, with identity, camera, split and timestamp extracted from each path by a regular expression.

    Args:
        root: the folder.
        pattern: searched for in each path relative to the root; its named groups are some of `PATTERN_GROUPS`. Optional groups may remain
            unmatched.

    Raises:
        DataError: the pattern is not valid, or an image does not match it.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"the pattern {pattern!r} is not a valid regular expression ({error}): correct it") from error
    if not expression.groupindex or not set(expression.groupindex) <= set(PATTERN_GROUPS):
        groups = ", ".join(PATTERN_GROUPS)
        raise DataError(f"the pattern {pattern!r} must have named groups, and only these: {groups}; for example (?P<camera>[^/]+)")
    for path in iter_image_paths(root):
        match = expression.search(path)
        if match is None:
            raise DataError(
                f"{root / path} does not match the pattern {pattern!r}: correct the pattern, or give a folder without other images"
            )
        yield parse_image(path, match.groupdict(), str(root / path))
