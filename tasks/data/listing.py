"""The record that every data set reader yields, and what the readers share: walking a folder, finding listed files, parsing fields."""

import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from pul_core.errors import DataError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID, identity_in_split
from tasks.data.cells import HELD_OUT_NAMES, SPLITS, clean_cell, compact, parse_truth
from tasks.data.locations import is_url
from tasks.data.times import parse_timestamp

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Paths that may be invalid: absolute, a URL, with "..", or not in normal form. Most paths match nothing and are not checked further.
SUSPICIOUS_PATH = re.compile(r"[\0\\~]|^/|//|:[/\\]|\.\.|%2e|(^|/)\./|/\.?$", re.IGNORECASE)
MINUS_ONE = re.compile("-0*1")  # junk or an unknown identity, and an unknown camera; zeros where a program pads numbers
ABSOLUTE_PATH = re.compile(r"[/\\~]|[A-Za-z]:[/\\]|[^/]*://")


class ListedImage(NamedTuple):
    """An image as its file name, a list or a manifest describes it; a field is None if it is not stated."""

    path: str  # relative to the root of the data set, with forward slashes
    pid: int | str | None  # in a gallery, the integers 0 and -1 mean a distractor and junk
    camid: int | str | None
    split: str  # train, query or gallery
    timestamp: float | None = None  # seconds, from any origin
    notes: tuple[str, ...] = ()  # what was not read, or not as it is written, and what to do


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
    """Validate an image path from a list or manifest, which must stay below the root, and find the file that it means.

    Where there is no file of exactly this name, the path may have blanks around it, backslashes, percent signs for characters, another
    Unicode normal form, or a suffix in another case. An absolute path below the root is made relative.

    Args:
        text: the path as written.
        origin: file and line, for error messages.
        root: the folder; None for a URL, where there are no links and files are not looked for.

    Returns:
        The path of the file with forward slashes, in normal form; if there is no such file, the path as written.

    Raises:
        DataError: the path is empty, absolute, a URL, or leads out of the root by `..` or by a link.
    """
    path = text if text and SUSPICIOUS_PATH.search(text) is None else _normalise_path(text, origin, root)
    if root is None:
        return path.strip()
    base = str(root)
    try:
        mode = os.lstat(f"{base}/{path}").st_mode
    except OSError:
        path = _find_file(base, path)
        mode = _mode(f"{base}/{path}")
    if not _is_inside(base, path.rpartition("/")[0]) or (stat.S_ISLNK(mode) and not _is_inside(base, path)):
        raise DataError(f"{origin}: {text!r} is a link that leads out of the folder: replace the link with the image itself")
    return path


def _normalise_path(text: str, origin: str, root: Path | None) -> str:
    if not text.strip() or "\0" in text:
        raise DataError(f"{origin}: the image path is empty or contains a null character: name an image on every line")
    if ".." in re.split(r"[/\\]|%2f|%5c", re.sub("%2e", ".", text, flags=re.IGNORECASE), flags=re.IGNORECASE):
        raise DataError(f"{origin}: {text!r} leads out of the folder: write image paths below it, without '..'")
    if ABSOLUTE_PATH.match(text.strip()):
        return _relative_path(text.strip(), origin, root)
    if root is None or not os.path.lexists(f"{root}/{text}"):
        text = text.replace("\\", "/")
    return PurePosixPath(text).as_posix()


def _relative_path(text: str, origin: str, root: Path | None) -> str:
    """Return an absolute path relative to the root.

    Raises:
        DataError: it is not below the root; the message says what to remove where that is known.
    """
    path = re.sub(r"^file://(localhost)?(?=/)", "", text)
    if path != text:
        path = unquote(path)
    folder, _, name = path.rpartition("/")
    if root is not None and path.startswith("/") and name and (inner := _folder_below(str(root), folder)) is not None:
        return (PurePosixPath(inner) / name).as_posix()
    advice = _prefix_advice(str(root), path) if root is not None else ""
    raise DataError(f"{origin}: {text!r} is absolute: {advice or 'write image paths relative to the folder of this file'}")


@lru_cache(maxsize=4096)
def _folder_below(root: str, folder: str) -> str | None:
    """Return a folder relative to the root, also if one of them is given by a link; None if it is not below it."""
    for base, path in ((Path(root), Path(folder)), (Path(root).resolve(), Path(folder).resolve())):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return None


def _prefix_advice(root: str, path: str) -> str:
    """Return which beginning to remove from paths so that the files are found below the root; empty if that does not help."""
    parts = re.split(r"[/\\]+", path)
    for start in range(1, len(parts)):
        rest = "/".join(parts[start:])
        if rest and _mode(f"{root}/{_find_file(root, rest)}"):
            return f"remove {path[: len(path) - len(rest)]!r} from the paths, which must be relative to {root}"
    return ""


def missing_advice(root: str, path: str) -> str:
    """Return why an image may be missing and what to do.

    Args:
        root: folder or URL of the data set.
        path: of the image, relative to the root.
    """
    if is_url(root):
        return f"correct the paths, which must be relative to {root}, or check your access to it"
    if advice := _prefix_advice(root, path):
        return advice
    for parent in list(Path(root).parents)[:2]:
        if _mode(f"{parent}/{path}"):
            return f"{parent / path} exists: move the file that lists the images to {parent}"
    for suffix in IMAGE_SUFFIXES:
        if _mode(f"{root}/{path}{suffix}"):
            return f"{path}{suffix} exists: write the paths with their suffix"
        if _mode(f"{root}/{Path(path).with_suffix(suffix)}"):
            return f"{Path(path).with_suffix(suffix)} exists: correct the suffix of the paths"
    if same_name := next((found for found in iter_image_paths(Path(root)) if found.endswith(f"/{Path(path).name}")), None):
        return f"{same_name} has the same name: write the paths with their folders, relative to {root}"
    return f"correct the paths, which must be relative to {root}"


def _mode(path: str) -> int:
    """Return the mode of a file or link; 0 if there is none."""
    try:
        return os.lstat(path).st_mode
    except (OSError, ValueError):
        return 0


def _find_file(root: str, path: str) -> str:
    """Return the path of the file that another spelling of its path means; the path without blanks around it if there is none."""
    for spelling in dict.fromkeys((path, path.strip(), unquote(path.strip()))):
        if "\0" in spelling or ".." in spelling.split("/") or spelling.startswith("/"):
            continue
        *folders, name = spelling.split("/")
        folder = _find_folder(root, "/".join(folders))
        stem, dot, suffix = name.rpartition(".")
        names = [name, f"{stem}{dot}{suffix.lower()}", f"{stem}{dot}{suffix.upper()}"]
        found = next((form for form in _unicode_forms(*names) if _mode(f"{root}/{folder}{form}")), None)
        if found is not None:
            return folder + found
    return path.strip()


@lru_cache(maxsize=4096)
def _find_folder(root: str, folder: str) -> str:
    """Return a folder with a trailing slash, in the Unicode normal forms in which its parts exist; empty for the root itself."""
    if not folder:
        return ""
    parent, _, name = folder.rpartition("/")
    above = _find_folder(root, parent)
    return above + next((form for form in _unicode_forms(name) if _mode(f"{root}/{above}{form}")), name) + "/"


def _unicode_forms(*names: str) -> Iterator[str]:
    return iter(dict.fromkeys(form for name in names for form in (name, *(unicodedata.normalize(kind, name) for kind in ("NFC", "NFD")))))


@lru_cache(maxsize=4096)
def _is_inside(root: str, path: str) -> bool:
    return Path(root, path).resolve().is_relative_to(Path(root).resolve())


def parse_pid(text: str, split: str) -> int | str | None:
    """Parse an identity from a user's file: the text itself, except for -1 and 0 in the split where they are special.

    Args:
        text: the identity as written; empty if there is none. 0 and -1 may be padded with zeros.
        split: train, query or gallery.

    Returns:
        As `identity_in_split`.

    Example:
        >>> parse_pid("Ana", "train"), parse_pid("0000", "gallery"), parse_pid("-1", "train"), parse_pid("0", "train")
        ('Ana', 0, None, '0')
    """
    text = clean_cell(text)
    if MINUS_ONE.fullmatch(text):
        return identity_in_split(JUNK_PID, split)
    if split == "gallery" and re.fullmatch("0+", text):
        return DISTRACTOR_PID
    return text or None


def parse_split(text: str, origin: str) -> str:
    """Return the split that a name means: train, query or gallery; train for an empty text.

    Raises:
        DataError: the name is none of `tasks.data.cells.SPLIT_NAMES`.

    Example:
        >>> parse_split(" Probe", ""), parse_split("bounding_box_test", ""), parse_split("", "")
        ('query', 'gallery', 'train')
    """
    split = SPLITS.get(text) or SPLITS.get(compact(text)) if text else "train"
    if split is None:
        raise DataError(f"{origin}: {text!r} is not a split: write train, query or gallery, or another of their names (docs/data.md)")
    return split


def parse_image(path: str, fields: Mapping[str, str | None], origin: str) -> ListedImage:
    """Parse the description of an image in a user's file.

    Args:
        path: relative to the root of the data set.
        fields: identity, camera, split, timestamp, is_query and is_gallery as written; missing, None or empty if not stated. An image
            without a split is train.
        origin: file and line, for error messages.

    Raises:
        DataError: a field is not valid, or the image is in two splits.
    """
    split_name = clean_cell(fields.get("split"))
    is_flagged = "is_query" in fields or "is_gallery" in fields
    split = (_flagged_split(fields, origin) if is_flagged else None) or parse_split(split_name, origin)
    camera = clean_cell(fields.get("camera"))
    notes: tuple[str, ...] = ()
    if split == "train" and split_name not in ("", "train") and compact(split_name) in HELD_OUT_NAMES:
        notes = (f"split {split_name!r} is read as train: call it train if that is right, and otherwise query and gallery",)
    return ListedImage(
        path,
        parse_pid(fields.get("identity") or "", split),
        None if camera == "" or MINUS_ONE.fullmatch(camera) else camera,
        split,
        parse_timestamp(clean_cell(fields.get("timestamp")), origin),
        notes,
    )


def _flagged_split(fields: Mapping[str, str | None], origin: str) -> str | None:
    """Return the split that is_query and is_gallery state; None if neither is true."""
    flags = [name for name in ("query", "gallery") if f"is_{name}" in fields and parse_truth(fields[f"is_{name}"], f"is_{name}", origin)]
    if len(flags) == 2:
        raise DataError(
            f"{origin}: an image with is_query and is_gallery would be searched for in itself: set one of them to False in every row"
        )
    if flags and SPLITS.get(compact(fields.get("split") or "")) == "train" and compact(fields["split"] or "") not in HELD_OUT_NAMES:
        raise DataError(f"{origin}: an image of split {fields['split']!r} has is_{flags[0]}: correct one of them")
    return flags[0] if flags else None
