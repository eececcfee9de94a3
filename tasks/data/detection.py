"""Detection of the layout of a folder: a known data set in it or below it, and names that look like splits, cameras or sets.

Only names are read. Names that look like splits or sets but have no reader are reported, so that queries and gallery images are not
silently used as crops.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pul_core.errors import DataError
from tasks.data.cells import HELD_OUT_NAMES, compact, split_of_name, words_of
from tasks.data.listing import folder_names, is_hidden, is_image_name, iter_image_paths
from tasks.data.manifests import manifests_in
from tasks.data.mars import MARS_NAME
from tasks.data.published_layouts import CUHK01_NAME, GRID_NAME, LTCC_NAME, MARKET_PREFIX, VERI_NAME, VERI_PREFIX, VIPER_NAME

SEARCH_DEPTH = 6  # folders below the given one
MAX_FOLDERS = 300  # inspected at each depth: the folders above a data set are few, the folders of identities are many
LIST_FILE_SUFFIXES = (".txt", ".mat", ".json", ".xml", ".npy", ".pkl", ".list")
CAMERA_FOLDER = re.compile(
    r"(?:cam|camera|kamera|cctv|channel|ch|view|sensor)[-_. ]?(?:\d{1,4}|[a-z])|c\d{1,3}|\d{1,3}(?:\.\d{1,3}){3}", re.IGNORECASE
)
CAMERA_WORDS = {"cam", "camera", "kamera", "webcam", "cctv", "ch"}
SET_NAME = re.compile(r"-?\d+_(?:s\d+_|\d+_)?c\d+|(?:\d{4}|00-1)C\d+T\d", re.IGNORECASE)  # identity and camera in a file's name
UNREAD_SETS = {  # sets without a reader and without names of splits: some of their folders
    "PRID2011": {"single_shot", "multi_shot"},
    "PRID2011 or VIPeR": {"cam_a", "cam_b"},
    "Partial-REID, Occluded-REID or P-DukeMTMC-reID": {"occluded_body_images", "whole_body_images"},
    "Partial-REID": {"partial_body_images", "whole_body_images"},
    "RegDB": {"visible", "thermal"},
    "LLCM": {"nir", "vis"},
    "SYSU-MM01": {"cam1", "cam6", "exp"},
    "CUHK02": {"p1", "p2", "p3"},
    "CUHK-SYSU": {"image", "annotation"},
    "iLIDS-VID": {"i-lids-vid", "train-test people splits"},
    "PRCC": {"rgb", "sketch"},
}


def find_layout(root: Path) -> tuple[str, str]:
    """Return the folder of the only data set in a folder or below it, relative to it (with a trailing slash, or empty), and its layout.

    The layout is folder if there is no known set.

    Raises:
        DataError: several sets, a set beside other images, or folders that look like splits of an unknown set.
    """
    if layout := layout_of(root):
        return "", layout
    sets = sets_below(root)
    if not sets:
        _check_no_splits(root)
        return "", "folder"
    if len(sets) > 1:
        names = "; ".join(f"{root / folder} ({layout if isinstance(layout, str) else 'incomplete'})" for folder, layout in sets)
        raise DataError(f"{root} holds {len(sets)} data sets: give one of {names}")
    folder, layout_or_error = sets[0]
    if isinstance(layout_or_error, DataError):
        raise layout_or_error
    if other := _first_image_outside(root, folder):
        raise DataError(
            f"{root} holds a data set in {root / folder} (layout {layout_or_error}) beside other images such as {other}: give one of "
            "the two folders"
        )
    return folder, layout_or_error


def layout_of(root: Path) -> str | None:
    """Return the layout of the known data set that lies directly in a folder; None if there is none.

    Raises:
        DataError: the images are in a form that cannot be read directly, or the layout is ambiguous.
    """
    names = folder_names(root)
    folders = {name.lower() for name in names}
    if (root / "cuhk-03.mat").is_file():
        raise DataError(f"{root} has its images inside a MATLAB file: extract them once with `pul data extract`, see docs/data.md")
    boxes = [str(root / name) for name in ("detected", "labeled", "labelled") if (root / name / "bounding_box_train").is_dir()]
    if boxes:
        raise DataError(f"{root} holds CUHK03 with two kinds of boxes: give {' or '.join(boxes)}")
    is_layout = {  # the most specific layout first
        "manifest": bool(manifests_in(root)),
        "market1501": any(name.startswith(MARKET_PREFIX) for name in folders),
        "veri776": any(_first_image_matches(root, name, VERI_NAME) for name in names if name.lower().startswith(VERI_PREFIX)),
        "mars": any(_first_image_matches(root, name, MARS_NAME) for name in names if name.lower() in ("bbox_train", "bbox_test")),
        "msmt17": (root / "list_train.txt").is_file() and (root / "list_query.txt").is_file(),
        "cuhk03-np-detected": "images_detected" in folders,
        "cuhk03-np-labelled": "images_labeled" in folders,
        "cuhk01": "campus" in names and _first_image_matches(root, "campus", CUHK01_NAME),
        "viper": {"cam_a", "cam_b"} <= set(names) and _first_image_matches(root, "cam_a", VIPER_NAME),
        "ltcc": folders >= {"train", "query", "test"} and all(_first_image_matches(root, n, LTCC_NAME) for n in ("query", "test")),
        "grid": folders >= {"probe", "gallery"} and all(_first_image_matches(root, n, GRID_NAME) for n in ("probe", "gallery")),
        "lists": (root / "train.list").is_file(),
    }
    layouts = [name for name, matches in is_layout.items() if matches]
    if len(layouts) > 1 and layouts[0].startswith("cuhk03"):
        raise DataError(f"{root} holds CUHK03 with two kinds of boxes: state --layout {' or --layout '.join(layouts[:2])}")
    return layouts[0] if layouts else None


def sets_below(root: Path) -> list[tuple[str, str | DataError]]:
    """Return the known data sets below a folder, each with its folder relative to the root and its layout, or why it has none."""
    sets: list[tuple[str, str | DataError]] = []

    def is_set(folder: str) -> bool:
        try:
            layout: str | DataError | None = layout_of(root / folder)
        except DataError as error:
            layout = error
        if layout:
            sets.append((folder, layout))
        return layout is not None

    _visit_folders(root, is_set)
    return sets


def looks_like_camera(name: str) -> bool:
    """Return whether a folder's name looks like that of a camera: cam1, or one of several words is.

    Example:
        >>> [looks_like_camera(name) for name in ("cam1", "frames_cam1", "north-cam", "192.168.1.10", "Camera", "scamper")]
        [True, True, True, True, False, False]
    """
    words = words_of(name)
    return CAMERA_FOLDER.fullmatch(name) is not None or (len(words) > 1 and not CAMERA_WORDS.isdisjoint(words))


def unused_folder_notes(folder: str, cameras: bool = True) -> Iterator[tuple[str, str]]:
    """Yield what the names of an image's folders look like, where a layout does not use them, and what to do: a kind, and the note.

    Args:
        folder: relative to the root of the data set; empty for the root itself.
        cameras: whether names that look like cameras are noted, too.
    """
    for depth, name in enumerate(folder.split("/") if folder else ()):
        split = "validation" if compact(name) in HELD_OUT_NAMES else split_of_name(name)
        if split in ("query", "gallery", "validation"):
            yield (
                split,
                f"folders such as {name!r} look like {split} images, but are read as training images: give the folder of the training "
                "images, a --pattern with a group split, or a layout such as --layout folder-per-identity",
            )
        elif cameras and looks_like_camera(name):
            pattern = ("^" + "[^/]+/" * depth if depth else "") + "(?P<camera>[^/]+)/"
            yield "camera", f"folders such as {name!r} look like cameras, but are not used: give --pattern '{pattern}'"


def unused_name_notes(root: Path) -> tuple[str, ...]:
    """Return notes on files that look like lists of splits, and on a known set without a reader, for layout folder."""
    lists, sets = list[str](), list[str]()

    def inspect_folder(folder: str) -> bool:
        with os.scandir(root / folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.lower().endswith(LIST_FILE_SUFFIXES))
        lists.extend(folder + name for name in names if not is_hidden(name) and split_of_name(Path(name).stem))
        folders = {name.lower() for name in folder_names(root / folder)}
        sets.extend(f"{root / folder} looks like {name}" for name, markers in UNREAD_SETS.items() if markers <= folders)
        return False

    inspect_folder("")
    _visit_folders(root, inspect_folder)
    notes = [f"{name}, which has no layout here: give a --pattern or a manifest to use its labels" for name in sets[:1]]
    if lists:
        names = ", ".join(lists[:3]) + (", ..." if len(lists) > 3 else "")
        notes.append(
            f"{names} may list splits, but are not read: give a manifest with a column split, or choose a layout that reads them (--layout)"
        )
    return tuple(notes)


def _check_no_splits(root: Path) -> None:
    """Check that no folders look like the training, query and gallery images of a set whose layout is unknown.

    Raises:
        DataError: there are such folders; the message names them.
    """
    splits = dict[str, str]()

    def is_split(folder: str) -> bool:
        split = split_of_name(folder.rstrip("/").rpartition("/")[2])
        if split and next(iter_image_paths(root, folder), None):
            splits[folder.rstrip("/")] = split
        return split is not None

    _visit_folders(root, is_split)
    if len(set(splits.values())) > 1:
        training = next((folder for folder, split in splits.items() if split == "train"), None)
        advice = f"give the training images alone ({root / training}), or " if training else ""
        raise DataError(
            f"{root} has folders that look like splits of a set ({', '.join(list(splits)[:6])}), but its layout is unknown: {advice}state "
            "a --pattern, --layout folder-per-identity, or --layout folder to train on all images"
        )


def _visit_folders(root: Path, visit: Callable[[str], bool]) -> None:
    """Visit the folders below a folder, breadth first, to a depth of `SEARCH_DEPTH`; links are not followed.

    Args:
        root: the folder.
        visit: is called with a folder relative to the root, with a trailing slash; returns whether to leave out the folders below it.
    """
    level = [""]
    for _ in range(SEARCH_DEPTH):
        below = [f"{folder}{name}/" for folder in level for name in folder_names(root / folder)]
        level = [folder for folder in below[:MAX_FOLDERS] if not (root / folder[:-1]).is_symlink() and not visit(folder)]


def _first_image_outside(root: Path, folder: str) -> str | None:
    """Return the path of an image that is in the root but not in one of its folders; None if there is none."""
    return next(_images_outside(root, "", folder), None)


def _images_outside(root: Path, parent: str, folder: str) -> Iterator[str]:
    inner = folder[len(parent) :].partition("/")[0]
    yield from (parent + file.name for file in (root / parent).iterdir() if is_image_name(file.name))
    for name in folder_names(root / parent):
        if name != inner:
            yield from iter_image_paths(root, f"{parent}{name}/")
        elif f"{parent}{name}/" != folder:
            yield from _images_outside(root, f"{parent}{name}/", folder)


def _first_image_matches(root: Path, folder: str, pattern: re.Pattern[str]) -> bool:
    """Return whether the path of the first image below a folder matches: a user's own folder may be called campus or cam_a, too."""
    name = next((name for name in folder_names(root) if name.lower() == folder.lower()), folder)
    first = next(iter_image_paths(root, f"{name}/"), "") if (root / name).is_dir() else ""
    return pattern.fullmatch(first) is not None
