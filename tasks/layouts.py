"""How data sets lie on disk: a layout turns a folder into a list of images with identity, camera and split. Nothing is opened here."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MARKET_NAME = re.compile(r"(-?\d+)_c(\d+)")
MARKET_SPLITS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


class Listed(NamedTuple):
    """An image as its name tells it; identity and camera are None where the layout knows none."""

    path: str  # relative to the set's root, with forward slashes
    pid: int | str | None
    camid: int | str | None
    split: str  # train, query or gallery
    timestamp: float | None = None  # seconds


class DataError(ValueError):
    """A data set that cannot be used, said in one sentence: what, where, what to do."""


def read_layout(root: Path, layout: str | None = None, pattern: str | None = None) -> tuple[str, Iterable[Listed]]:
    """List the images of a data set and name its layout.

    Raises:
        DataError: the folder is missing, has no images, or its names fit no layout.
    """
    if layout or pattern:
        raise DataError("a layout cannot be chosen: it is found out")
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder that holds the images")
    layout, listing = ("market1501", _market1501) if (root / "bounding_box_train").is_dir() else ("folder", _folder)
    images = sorted(listing(root))
    if not images:
        raise DataError(f"{root} holds no images ({', '.join(SUFFIXES)}): give the folder that holds them, at any depth")
    return layout, images


def _market1501(root: Path) -> Iterator[Listed]:
    for folder, split in MARKET_SPLITS.items():
        for path in _files(root / folder):
            match = MARKET_NAME.match(path.name)
            if match is None:
                raise DataError(f"{path} is not named like Market-1501's 0002_c1s1_000451_03.jpg: rename it, or give a plain folder")
            yield Listed(path.relative_to(root).as_posix(), int(match[1]), int(match[2]), split)


def _folder(root: Path) -> Iterator[Listed]:
    for path in _files(root):
        yield Listed(path.relative_to(root).as_posix(), None, None, "train")


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if name.lower().endswith(SUFFIXES) and not name.startswith("."))
