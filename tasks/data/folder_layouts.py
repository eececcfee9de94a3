"""Readers of users' own folders: a plain folder of crops, one folder per identity, and file names parsed by a pattern.

Images are listed, not opened.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pul_core.errors import DataError
from tasks.data.cells import COLUMN_OF_HEADING, SPLITS, compact, split_of_name
from tasks.data.detection import CAMERA_FOLDER, SET_NAME, looks_like_camera, unused_folder_notes, unused_name_notes
from tasks.data.listing import ListedImage, folder_names, is_image_name, iter_image_paths, parse_image, parse_pid

PATTERN_GROUPS = ("identity", "camera", "split", "timestamp")
NAME_NOTE = (
    "file names look like a published set's 0002_c1s1_000451_03.jpg, but their identities and cameras are not read: give the folder above "
    r"this one, or a pattern such as --pattern '(?P<identity>-?\d+)_c(?P<camera>\d+)'"
)
# Folders with all training images, beside folders with the same images in two parts.
TRAIN_UNIONS = ("trainall", "trainval")
NAME_CAMERA = re.compile(r"(-?\d+)_(?:s\d+_)?[cC](\d+)|(\d{4})C(\d+)T")  # in the names of published sets, after the identity
FOLDERS_IN_CACHE = 1024


def list_folder(root: Path) -> Iterator[ListedImage]:
    """List the crops of a plain folder, at any depth: no identities, no cameras, all in the training split.

    Names that look like splits, cameras or a published set are noted.
    """
    texts = dict[str, str]()
    folder_notes = lru_cache(FOLDERS_IN_CACHE)(lambda folder: _first_of_each_kind(unused_folder_notes(folder), texts))
    set_notes = unused_name_notes(root)
    for path in iter_image_paths(root):
        folder, _, name = path.rpartition("/")
        notes = folder_notes(folder) + set_notes
        yield ListedImage(path, None, None, "train", notes=(*notes, NAME_NOTE) if SET_NAME.match(name) else notes)
        set_notes = ()


def _first_of_each_kind(notes: Iterable[tuple[str, str]], texts: dict[str, str]) -> tuple[str, ...]:
    """Return notes with the text that their kind had first, so that a set has few different notes, whose images are counted.

    Args:
        notes: kind and text.
        texts: the first text of each kind; new kinds are added.
    """
    return tuple(texts.setdefault(kind, text) for kind, text in notes)


class LeftOut(NamedTuple):
    """An image that a reader finds and does not list."""

    path: str
    reason: str  # a sentence about "it", and what to do


class Place(NamedTuple):
    """What the folders of an image say about it."""

    identity: str
    camera: str | None
    split: str
    copies: str | None  # where the image is if it is listed there, too: a folder relative to the root, with a trailing slash
    notes: tuple[str, ...]


def list_folder_per_identity(root: Path) -> Iterator[ListedImage]:
    """List the crops of a folder with one sub-folder per identity, which may be inside or around folders of splits and cameras.

    Folders with the names in `SPLITS` are splits, folders named like cam1 are cameras, and the first other folder is the identity. A camera
    is also read from a file name such as 0002_c1s1_000451_03.jpg that begins with the folder's identity. An image that is both in train_all
    and in train or val is listed once; folders beside those of splits are left out. In test, query and gallery may follow; images in other
    splits inside a split are left out.

    Raises:
        DataError: an image is not in the folder of an identity.
    """
    return _note_left_out(root, _list_places(root))


def _list_places(root: Path) -> Iterator[ListedImage | LeftOut]:
    texts = dict[str, str]()
    siblings = lru_cache(FOLDERS_IN_CACHE)(lambda parent: folder_names(root / parent))
    place_of = lru_cache(FOLDERS_IN_CACHE)(lambda folder: _place(root, folder, siblings, texts))
    for path in iter_image_paths(root):
        folder, _, name = path.rpartition("/")
        place = place_of(folder)
        if isinstance(place, str):
            yield LeftOut(path, place)
        elif place is None:
            split = next((f" ({name} is read as a split)" for name in folder.split("/") if compact(name) in SPLITS), "")
            raise DataError(f"{root / path} is not in the folder of an identity{split}: move it to IDENTITY/image.jpg, or change --layout")
        elif place.copies and os.path.lexists(f"{root}/{place.copies}{name}"):
            yield LeftOut(path, "it is in the folder of all training images, too")
        else:
            camera = place.camera or _camera_in_name(name, place.identity)
            yield ListedImage(path, parse_pid(_minus_one(place.identity), place.split), camera, place.split, notes=place.notes)


def _place(root: Path, folder: str, siblings: Callable[[str], list[str]], texts: dict[str, str]) -> Place | str | None:
    """Return what an image's folders mean, why the image is left out, or None if there is no folder of an identity."""
    names = folder.split("/") if folder else []
    is_split = [compact(name) in SPLITS for name in names]
    if True not in is_split:
        first, last, split = 0, len(names), None
        for depth in range(len(names) - 1):
            if splits := [name for name in siblings("/".join(names[:depth])) if compact(name) in SPLITS]:
                return f"it is beside the folders {', '.join(splits)}; move it into one of these if it belongs there"
    else:
        split = is_split.index(True)
        if True in is_split[split + 1 : -1]:  # the last folder is of an identity, who may be called Val
            outer, split = split, is_split.index(True, split + 1)
            if SPLITS[compact(names[outer])] != "gallery" or SPLITS[compact(names[split])] == "train":
                return f"it is in the folders of two splits, {names[outer]} and {names[split]}; rename one of them"
        first, last = (split + 1, len(names)) if split + 1 < len(names) else (0, split)  # the identities are below or above the split
    if first == last:
        return None
    cameras = [number for number, name in enumerate(names) if number != split and CAMERA_FOLDER.fullmatch(name)]
    below_then_above = (*range(first, last), *reversed(range(first - 1)))
    person = next((number for number in below_then_above if number not in cameras), last - 1)
    copies = None
    if split is not None and SPLITS[compact(names[split])] == "train":
        union = next((name for name in siblings("/".join(names[:split])) if compact(name) in TRAIN_UNIONS), names[split])
        copies = "/".join([*names[:split], union, *names[split + 1 :], ""]) if union != names[split] else None
    return Place(
        identity=names[person],
        camera=next((names[number] for number in cameras if number != person), None),
        split="train" if split is None else SPLITS[compact(names[split])],
        copies=copies,
        notes=_first_of_each_kind(_place_notes(root, names, person, cameras, first), texts),
    )


def _place_notes(root: Path, names: list[str], person: int, cameras: list[int], first: int) -> Iterator[tuple[str, str]]:
    """Yield what is doubtful about the folder that is read as the identity: a kind, and the note.

    Args:
        root: of the data set.
        names: of the image's folders.
        person: the position of the identity among them.
        cameras: the positions of the cameras.
        first: the position of the first folder below the split; 0 if the split is not above the identities.
    """
    identity, folder = names[person], root.joinpath(*names[: person + 1])
    for number in range(first - 1):
        if (
            number not in (person, *cameras)
            and compact(names[number]) not in SPLITS
            and len(folder_names(root.joinpath(*names[:number]))) > 1
        ):
            yield "above", f"folders such as {names[number]!r} above the splits are not used: give a --pattern if they mean something"
    if looks_like_camera(identity):
        yield (
            "camera",
            f"folders such as {identity!r} are read as identities, but look like cameras: give --pattern '(?P<camera>[^/]+)/'",
        )
    elif split_of_name(identity):
        yield "split", f"folders such as {identity!r} are read as identities, but look like splits: rename them train, query or gallery"
    below = [name for number, name in enumerate(names) if number > person and number not in cameras and compact(name) not in SPLITS]
    if below and len(folder_names(folder)) > 1 and not any(is_image_name(file.name) for file in folder.iterdir()):
        yield (
            "below",
            f"folders such as {identity!r} are read as identities, but their images are in several folders such as {below[0]!r}: if these "
            "are the identities, give the folder that holds them, or a pattern such as --pattern '(?P<identity>[^/]+)/[^/]+$'",
        )


def _minus_one(identity: str) -> str:
    """Return an identity, and -1 for MARS's 00-1."""
    return "-1" if identity.lstrip("0") == "-1" else identity


def _camera_in_name(name: str, identity: str) -> str | None:
    """Return the camera in a file name as published sets have it, if the name begins with the identity; else None.

    Example:
        >>> _camera_in_name("0002_c1s1_000451_03.jpg", "0002"), _camera_in_name("0002_c1.jpg", "Ana"), _camera_in_name("0007C3T1.jpg", "7")
        ('1', None, '3')
    """
    match = NAME_CAMERA.match(name)
    if match is None or (match[1] or match[3]).lstrip("0") != identity.lstrip("0"):
        return None
    return match[2] or match[4]


def _note_left_out(root: Path, images: Iterator[ListedImage | LeftOut]) -> Iterator[ListedImage]:
    """Yield the listed images, the last of them with notes on those that are left out.

    Raises:
        DataError: all images are left out.
    """
    counts, examples = Counter[str](), dict[str, str]()
    last: ListedImage | None = None
    for image in images:
        if isinstance(image, LeftOut):
            counts[image.reason] += 1
            examples.setdefault(image.reason, image.path)
        else:
            if last is not None:
                yield last
            last = image
    notes = tuple(f"images not read: {number:,}, the first is {examples[reason]}: {reason}" for reason, number in counts.items())
    if last is None:
        if notes:
            raise DataError(f"{root} has no image that can be read; {'; '.join(notes)}")
        return
    yield last._replace(notes=last.notes + notes)


def list_by_pattern(root: Path, pattern: str) -> Iterator[ListedImage]:
    """List the images of a folder, with identity, camera, split and timestamp extracted from each path by a regular expression.

    Images that do not match are left out and counted.

    Args:
        root: the folder.
        pattern: searched for in each path relative to the root, with forward slashes; its named groups are some of `PATTERN_GROUPS`.
            Optional groups may remain unmatched.

    Raises:
        DataError: the pattern is not valid, or no image matches it.
    """
    return _note_left_out(root, _list_matches(root, _compile(pattern)))


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"the pattern '{pattern}' is not a valid regular expression ({error}): correct it") from error
    if not expression.groupindex or not set(expression.groupindex) <= set(PATTERN_GROUPS):
        columns = {name: COLUMN_OF_HEADING.get(compact(name)) for name in expression.groupindex if name not in PATTERN_GROUPS}
        advice = "".join(f"; call {name} {column}" for name, column in columns.items() if column in PATTERN_GROUPS)
        groups = ", ".join(PATTERN_GROUPS)
        raise DataError(f"the pattern '{pattern}' must have named groups, and only these: {groups}; for example (?P<camera>[^/]+){advice}")
    return expression


def _list_matches(root: Path, expression: re.Pattern[str]) -> Iterator[ListedImage | LeftOut]:
    reason = f"it does not match the pattern '{expression.pattern}'; correct the pattern if it is needed"
    if "\\\\" in expression.pattern:
        reason += " (paths are matched with forward slashes, not backslashes)"
    has_split = "split" in expression.groupindex
    texts = dict[str, str]()
    folder_notes = lru_cache(FOLDERS_IN_CACHE)(lambda folder: _first_of_each_kind(unused_folder_notes(folder, cameras=False), texts))
    for path in iter_image_paths(root):
        match = expression.search(path)
        if match is None:
            yield LeftOut(path, reason)
            continue
        fields = match.groupdict()
        image = parse_image(path, fields | {"identity": _minus_one(fields.get("identity") or "")}, str(root / path))
        if not has_split:
            unused = "/".join(name for name in path.split("/")[:-1] if name not in fields.values())  # a person may be called Val
            image = image._replace(notes=image.notes + folder_notes(unused))
        yield image
