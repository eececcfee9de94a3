"""Layouts of data sets on disk: their names, detection of the layout of a folder or file, and the entry point that lists its images."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pul_core.errors import DataError
from tasks.data.folder_layouts import list_by_pattern, list_folder, list_folder_per_identity
from tasks.data.listing import IMAGE_SUFFIXES, ListedImage, iter_image_paths
from tasks.data.locations import is_url
from tasks.data.manifests import MANIFEST_NAMES, MANIFEST_SUFFIXES, list_manifest, manifests_in
from tasks.data.published_layouts import CUHK01_NAME, READERS, VIPER_NAME

LAYOUTS = ("folder", "folder-per-identity", "manifest", "pattern", *READERS)
LIST_SUFFIXES = (".list", ".txt")


def read_layout(root: str | Path, layout: str | None = None, pattern: str | None = None) -> tuple[str, Iterable[ListedImage]]:
    """Return the name of a data set's layout and its images, listed one at a time and always in the same order.

    Images named by lists and manifests are listed even if the files are missing.

    Args:
        root: a folder, a manifest (.csv, .parquet; also at an fsspec URL), or a list (.list, .txt).
        layout: one of `LAYOUTS`; None detects it, but never detects folder-per-identity.
        pattern: for layout ``pattern`` only: a regular expression with groups named identity, camera, split, timestamp.

    Raises:
        DataError: the location is missing, has no images, or does not fit the layout. Errors in later images are raised when reached.
    """
    location = str(root)
    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"unknown layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if pattern is not None and layout not in (None, "pattern"):
        raise DataError(f"a pattern can only be used with layout pattern, got layout {layout}: leave one of them out")
    if not is_url(location) and not Path(location).exists():
        raise DataError(f"{location} is not a folder or file: give the folder that holds the images, a manifest or a list")
    layout = layout or ("pattern" if pattern is not None else _detect_layout(location))
    images = _list_images(location, layout, pattern)
    try:
        first = next(images, None)
    except FileNotFoundError as error:
        raise DataError(
            f"{location} has no {Path(error.filename).name}, which layout {layout} requires: give the folder that has it, or another layout"
        ) from error
    if first is None:
        raise DataError(f"{location} holds no images ({', '.join(IMAGE_SUFFIXES)}): give a folder that holds images, at any depth")
    return layout, itertools.chain((first,), images)


def _list_images(location: str, layout: str, pattern: str | None) -> Iterator[ListedImage]:
    root = Path(location)
    if layout == "manifest":
        return list_manifest(_manifest_file(location))
    if is_url(location) or not (root.is_dir() or layout == "lists"):
        raise DataError(f"{location} is not a folder, which layout {layout} requires: give a folder, or a manifest (.csv, .parquet)")
    if layout == "pattern":
        if pattern is None:
            raise DataError("layout pattern requires a pattern: give one such as '(?P<camera>[^/]+)/(?P<identity>[^_]+)_'")
        return list_by_pattern(root, pattern)
    return (READERS | {"folder": list_folder, "folder-per-identity": list_folder_per_identity})[layout](root)


def _detect_layout(location: str) -> str:
    """Return the name of the layout of a folder, file or URL.

    Raises:
        DataError: the images are in a form that cannot be read directly, or the layout is ambiguous.
    """
    root, suffix = Path(location), Path(location).suffix.lower()
    if suffix in MANIFEST_SUFFIXES and not root.is_dir():
        return "manifest"
    if suffix == ".mat" or (root / "cuhk-03.mat").is_file():
        raise DataError(f"{location} has its images inside a MATLAB file: extract them once with `pul data extract`, see docs/data.md")
    if is_url(location):
        return "folder"
    if root.is_file():
        if suffix not in LIST_SUFFIXES:
            raise DataError(
                f"{location} is not a folder, a manifest or a list: give the folder that holds the images, a manifest or a list"
            )
        return "lists"
    box_folders = [str(root / name) for name in ("detected", "labeled", "labelled") if (root / name / "bounding_box_train").is_dir()]
    if box_folders:
        raise DataError(f"{location} holds CUHK03 with two kinds of boxes: give {' or '.join(box_folders)}")
    is_layout = {  # the most specific layout first
        "manifest": bool(manifests_in(root)),
        "market1501": (root / "bounding_box_train").is_dir() or (root / "bounding_box_test").is_dir(),
        "msmt17": (root / "list_train.txt").is_file() and (root / "list_query.txt").is_file(),
        "cuhk03-np-detected": (root / "images_detected").is_dir(),
        "cuhk03-np-labelled": (root / "images_labeled").is_dir(),
        "cuhk01": _first_image_matches(root, "campus", CUHK01_NAME),
        "viper": (root / "cam_b").is_dir() and _first_image_matches(root, "cam_a", VIPER_NAME),
        "lists": (root / "train.list").is_file(),
    }
    layouts = [name for name, matches in is_layout.items() if matches]
    if len(layouts) > 1 and layouts[0].startswith("cuhk03"):
        raise DataError(f"{location} holds CUHK03 with two kinds of boxes: state the layout, {' or '.join(layouts[:2])}")
    return layouts[0] if layouts else "folder"


def _first_image_matches(root: Path, folder: str, pattern: re.Pattern[str]) -> bool:
    """Return whether the path of the first image below a folder matches: a user's own folder may be called campus or cam_a, too."""
    first = next(iter_image_paths(root, f"{folder}/"), "") if (root / folder).is_dir() else ""
    return pattern.fullmatch(first) is not None


def _manifest_file(location: str) -> str:
    if is_url(location) or Path(location).is_file():
        if not location.lower().endswith(MANIFEST_SUFFIXES):
            raise DataError(f"{location} is not a manifest: give a .csv or .parquet file")
        return location
    names = manifests_in(Path(location))
    if len(names) != 1:
        raise DataError(f"{location} has {len(names)} manifests ({', '.join(MANIFEST_NAMES)}): give the file itself")
    return str(Path(location) / names[0])
