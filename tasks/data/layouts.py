"""How data sets lie on disk: names the layouts, tells which one a folder or file has, and lists it. The readers are elsewhere."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pul_core.errors import DataError
from tasks.data.listing import SUFFIXES, Listed, image_files
from tasks.data.manifests import SUFFIXES as MANIFEST_SUFFIXES
from tasks.data.manifests import manifest
from tasks.data.own_layouts import by_pattern, folder, folder_per_identity
from tasks.data.places import is_url
from tasks.data.published_layouts import CUHK01_NAME, READERS, VIPER_NAME

__all__ = ["LAYOUTS", "DataError", "Listed", "read_layout"]

LAYOUTS = ("folder", "folder-per-identity", "manifest", "pattern", *READERS)
LIST_SUFFIXES = (".list", ".txt")
MANIFEST_NAMES = tuple(f"manifest{suffix}" for suffix in MANIFEST_SUFFIXES)


def read_layout(root: str | Path, layout: str | None = None, pattern: str | None = None) -> tuple[str, Iterable[Listed]]:
    """List the images of a data set, one at a time and always in the same order, and name its layout.

    Images that lists and manifests name are listed whether they are there or not.

    Args:
        root: a folder, a manifest (.csv, .parquet; also at an fsspec URL), or a list (.list, .txt).
        layout: one of `LAYOUTS`; None looks at the folder. A folder is never taken for a folder an identity unasked.
        pattern: of layout ``pattern``: a regular expression with groups named identity, camera, split, timestamp.

    Raises:
        DataError: the place is missing, has no images, or its names fit no layout. What concerns a later image is raised when it comes.
    """
    place = str(root)
    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"there is no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    if pattern is not None and layout not in (None, "pattern"):
        raise DataError(f"a pattern is for layout pattern, not for layout {layout}: leave one of them out")
    if not is_url(place) and not Path(place).exists():
        raise DataError(f"{place} is not a folder: give the folder that holds the images, a manifest or a list")
    layout = layout or ("pattern" if pattern is not None else _detected(place))
    images = _read(place, layout, pattern)
    try:
        first = next(images, None)
    except FileNotFoundError as error:
        raise DataError(
            f"{place} has no {Path(error.filename).name}, which layout {layout} wants: give its folder, or another layout"
        ) from error
    if first is None:
        raise DataError(f"{place} holds no images ({', '.join(SUFFIXES)}): give the folder that holds them, at any depth")
    return layout, itertools.chain((first,), images)


def _read(place: str, layout: str, pattern: str | None) -> Iterator[Listed]:
    root = Path(place)
    if layout == "manifest":
        return manifest(_manifest_file(place))
    if is_url(place) or not (root.is_dir() or layout == "lists"):
        raise DataError(f"{place} is not a folder, which layout {layout} wants: give a folder, or a manifest (.csv, .parquet)")
    if layout == "pattern":
        if pattern is None:
            raise DataError("layout pattern wants a pattern, e.g. '(?P<camera>[^/]+)/(?P<identity>[^_]+)_'")
        return by_pattern(root, pattern)
    return (READERS | {"folder": folder, "folder-per-identity": folder_per_identity})[layout](root)


def _detected(place: str) -> str:
    """Say which layout lies there; refuse what holds images in a form that is not read."""
    root, suffix = Path(place), Path(place).suffix.lower()
    if suffix in MANIFEST_SUFFIXES and not root.is_dir():
        return "manifest"
    if suffix == ".mat" or (root / "cuhk-03.mat").is_file():
        raise DataError(f"{place} holds its images inside a MATLAB file: take them out once with `pul data extract`, see docs/data.md")
    if is_url(place):
        return "folder"
    if root.is_file():
        if suffix not in LIST_SUFFIXES:
            raise DataError(f"{place} is not a folder: give the folder that holds the images, a manifest or a list")
        return "lists"
    has = [name for name in ("detected", "labeled", "labelled") if (root / name / "bounding_box_train").is_dir()]
    if has:
        raise DataError(f"{place} holds CUHK03 with two kinds of boxes: give {' or '.join(str(root / name) for name in has)}")
    layouts = [name for name, marks in _marks(root).items() if marks]
    if len(layouts) > 1 and layouts[0].startswith("cuhk03"):
        raise DataError(f"{place} holds CUHK03 with two kinds of boxes: state the layout, {' or '.join(layouts[:2])}")
    return layouts[0] if layouts else "folder"


def _marks(root: Path) -> dict[str, bool]:
    """Say for each layout that shows itself whether it does, the surest first."""
    return {
        "manifest": any((root / name).is_file() for name in MANIFEST_NAMES),
        "market1501": (root / "bounding_box_train").is_dir() or (root / "bounding_box_test").is_dir(),
        "msmt17": (root / "list_train.txt").is_file() and (root / "list_query.txt").is_file(),
        "cuhk03-np-detected": (root / "images_detected").is_dir(),
        "cuhk03-np-labelled": (root / "images_labeled").is_dir(),
        "cuhk01": _first_fits(root, "campus", CUHK01_NAME, of_name=True),
        "viper": (root / "cam_b").is_dir() and _first_fits(root, "cam_a", VIPER_NAME),
        "lists": (root / "train.list").is_file(),
    }


def _first_fits(root: Path, below: str, name: re.Pattern[str], *, of_name: bool = False) -> bool:
    """Say whether the first image below a folder is named so: people call their own folders campus and cam_a, too."""
    first = next(image_files(root, f"{below}/"), None) if (root / below).is_dir() else None
    return first is not None and name.fullmatch(first.rsplit("/", 1)[1] if of_name else first) is not None


def _manifest_file(place: str) -> str:
    if is_url(place) or Path(place).is_file():
        if not place.lower().endswith(MANIFEST_SUFFIXES):
            raise DataError(f"{place} is no manifest: that is a .csv or a .parquet file")
        return place
    found = [name for name in MANIFEST_NAMES if (Path(place) / name).is_file()]
    if len(found) != 1:
        raise DataError(f"{place} has {len(found)} manifests ({', '.join(MANIFEST_NAMES)}): give the file itself")
    return str(Path(place) / found[0])
