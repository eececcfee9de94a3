"""Layouts of data sets on disk: their names, and the entry point that lists the images of a data set."""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pul_core.errors import DataError
from tasks.data.cells import compact
from tasks.data.detection import find_layout, layout_of, sets_below
from tasks.data.folder_layouts import list_by_pattern, list_folder, list_folder_per_identity
from tasks.data.listing import IMAGE_SUFFIXES, ListedImage, is_hidden
from tasks.data.locations import is_url
from tasks.data.manifests import MANIFEST_NAMES, MANIFEST_SUFFIXES, list_manifest, manifests_in
from tasks.data.published_layouts import NUM_HALVES, READERS

LAYOUTS = ("folder", "folder-per-identity", "manifest", "pattern", *READERS)
# Other names of layouts, without case and punctuation. Case and punctuation of the names themselves do not matter either.
OTHER_NAMES = {
    "market1501": "market market1501v150915 duke dukemtmc dukemtmcreid occludedduke cvat",
    "msmt17": "msmt msmt17v1 msmt17v2",
    "veri776": "veri",
    "grid": "qmulgrid undergroundreid",
    "ltcc": "ltccreid",
    "folder": "folders plain crops images",
    "folder-per-identity": "identityfolder identityfolders folderperperson folderperid identity identities imagefolder",
    "manifest": "csv tsv parquet table",
    "pattern": "regex regexp",
    "lists": "list pul",
    "cuhk03-np-labelled": "cuhk03nplabeled",
}
LAYOUT_OF_NAME = {compact(layout): layout for layout in LAYOUTS} | {
    name: layout for layout, names in OTHER_NAMES.items() for name in names.split()
}
LIST_SUFFIXES = (".list", ".txt")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z")


def read_layout(root: str | Path, layout: str | None = None, pattern: str | None = None) -> tuple[str, Iterable[ListedImage]]:
    """Return the name of a data set's layout and its images, listed one at a time and always in the same order.

    A known set that lies up to `SEARCH_DEPTH` folders deeper is found. Images named by lists and manifests are listed even if the files are
    missing.

    Args:
        root: a folder, a manifest (.csv, .tsv, .parquet; also at an fsspec URL), or a list (.list, .txt).
        layout: one of `LAYOUTS`, or another spelling of it; None detects it, but never detects folder-per-identity.
        pattern: for layout ``pattern`` only: a regular expression with groups named identity, camera, split, timestamp.

    Raises:
        DataError: the location is missing, has no images, or does not fit the layout. Errors in later images are raised when reached.
    """
    location = str(root)
    layout = layout if layout is None else _known_layout(layout)
    if pattern is not None and layout not in (None, "pattern"):
        raise DataError(f"--pattern can only be used with --layout pattern, got --layout {layout}: leave one of them out")
    if not is_url(location) and not Path(location).exists():
        raise DataError(f"{location} is not a folder or file: give the folder that holds the images, a manifest or a list")
    layout = layout or ("pattern" if pattern is not None else None)
    folder, layout = _find_set(location, layout)
    images = _list_images(f"{location}/{folder}" if folder else location, layout, pattern)
    try:
        first = next(images, None)
    except FileNotFoundError as error:
        raise DataError(
            f"{location} has no {Path(error.filename).name}, which layout {layout} requires: give the folder with it, or another --layout"
        ) from error
    if first is None:
        raise DataError(f"{location} holds no images ({', '.join(IMAGE_SUFFIXES)}): {_no_images_advice(Path(location), layout)}")
    images = itertools.chain((first,), images)
    return layout, (image._replace(path=folder + image.path) for image in images) if folder else images


def _known_layout(name: str) -> str:
    """Return the layout that a name means.

    Raises:
        DataError: there is no such layout; the message has the closest name.
    """
    if layout := LAYOUT_OF_NAME.get(compact(name)):
        return layout
    longer = [known for known in LAYOUT_OF_NAME if known.startswith(compact(name) or "-")]
    close = longer or difflib.get_close_matches(compact(name), LAYOUT_OF_NAME, n=1)
    advice = f"did you mean {LAYOUT_OF_NAME[close[0]]}? Choose" if close else "choose"
    halves = f"viper-1 to viper-{NUM_HALVES}, grid-1 to grid-{NUM_HALVES}"
    names = ", ".join(layout for layout in LAYOUTS if not re.search(r"-\d", layout))
    raise DataError(f"unknown layout {name!r}: {advice} one of {names}, {halves}")


def _find_set(location: str, layout: str | None) -> tuple[str, str]:
    """Return the folder of the data set relative to the location (empty, or with a trailing slash), and its layout.

    Raises:
        DataError: as for `find_layout`, or the location is a file in a form that cannot be read directly.
    """
    root, suffix = Path(location), Path(location).suffix.lower()
    if layout is None:
        if suffix in MANIFEST_SUFFIXES and not root.is_dir():
            return "", "manifest"
        if is_url(location):
            return "", "folder"
        if not root.is_file():
            return find_layout(root)
        if suffix in LIST_SUFFIXES:
            return "", "lists"
        if suffix == ".mat":
            raise DataError(f"{location} has its images inside a MATLAB file: extract them once with `pul data extract`, see docs/data.md")
        advice = "unpack it, and " if suffix in ARCHIVE_SUFFIXES else ""
        raise DataError(
            f"{location} is not a folder, a manifest or a list: {advice}give the folder that holds the images, a manifest or a list"
        )
    kind = re.sub(r"-\d+$", "", layout)  # viper-3 is a viper
    if kind not in READERS or not root.is_dir() or _layout_or_none(root) == kind:
        return "", layout
    folders = [folder for folder, other in sets_below(root) if other == kind]
    if len(folders) > 1:
        raise DataError(f"{location} holds {len(folders)} sets of layout {layout}: give one of {', '.join(str(root / f) for f in folders)}")
    return (folders[0] if folders else ""), layout


def _layout_or_none(root: Path) -> str | None:
    """Return the detected layout of a folder; None if it is unknown or ambiguous."""
    try:
        return layout_of(root)
    except DataError:
        return None


def _no_images_advice(root: Path, layout: str) -> str:
    """Return what to do about a data set without images."""
    if root.is_dir():
        if archive := next((file.name for file in sorted(root.iterdir()) if file.suffix.lower() in ARCHIVE_SUFFIXES), None):
            return f"unpack {archive} first"
        if layout in READERS and (found := _layout_or_none(root) or "folder") != layout:
            return f"layout {layout} does not fit this folder: give the folder of such a set, or --layout {found}"
        if link := next((file.name for file in root.iterdir() if file.is_symlink() and file.is_dir() and not is_hidden(file.name)), None):
            return f"links to folders such as {link} are not followed: give the folder that the link leads to"
    return "give a folder that holds images, at any depth"


def _list_images(location: str, layout: str, pattern: str | None) -> Iterator[ListedImage]:
    root = Path(location)
    if layout == "manifest":
        return list_manifest(_manifest_file(location))
    if is_url(location) or not (root.is_dir() or layout == "lists"):
        raise DataError(f"{location} is not a folder, which layout {layout} requires: give a folder, or a manifest (.csv, .parquet)")
    if layout == "pattern":
        if pattern is None:
            raise DataError("layout pattern requires a pattern: give one such as --pattern '(?P<camera>[^/]+)/(?P<identity>[^_]+)_'")
        return list_by_pattern(root, pattern)
    return (READERS | {"folder": list_folder, "folder-per-identity": list_folder_per_identity})[layout](root)


def _manifest_file(location: str) -> str:
    if is_url(location) or Path(location).is_file():
        if not location.lower().endswith(MANIFEST_SUFFIXES):
            raise DataError(f"{location} is not a manifest: give a .csv or .parquet file")
        return location
    names = manifests_in(Path(location))
    if len(names) != 1:
        raise DataError(f"{location} has {len(names)} manifests ({', '.join(MANIFEST_NAMES)}): give the file itself")
    return str(Path(location) / names[0])
