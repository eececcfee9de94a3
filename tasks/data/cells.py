"""Headings, cells and names of splits as people and programs write them: one normal form, whatever format a table has."""

import itertools
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal

from pul_core.errors import DataError

# The columns of a manifest and the headings that mean them, without blanks, case and punctuation: "Camera ID" is cameraid.
HEADINGS = {
    "path": "path file filename filepath image imagefile imagefilename imagename imagepath img imgfile imgname imgpath relativepath",
    "identity": "identity identityid person personid personidentity personlabel pid pids label subject subjectid vehicleid",
    "camera": "camera cameraid cameraidx cameraname cameranumber cam camid camidx camname",
    "timestamp": "timestamp time datetime timestamps unixtime epochtime capturetime capturedat",
    "split": "split splits subset set partition splitname",
    "is_query": "isquery",
    "is_gallery": "isgallery",
}
COLUMN_OF_HEADING = {heading: column for column, headings in HEADINGS.items() for heading in headings.split()}
# Parts of headings that may mean a column. Such a column is not read, but named if nothing else is read for it.
RESEMBLES = {
    "camera": re.compile(r"cam|kamera|cámara|sensor|device|view|^cids?$|^channel|^location|^site|^zone|^station"),
    "timestamp": re.compile(r"time|date|second|epoch|^ts|^created|^captured"),
    "split": re.compile(r"split|subset|partition|train|valid|test|query|probe|gallery"),
    "identity": re.compile(
        r"ident|person|pid|label|subject|people|human|pedestrian|employee|vehicle|track|^ids?$|^name$|target|^class"
        r"|^(?!image|img|frame|file|crop|b?box|row|scene|video|clip|annotation|detection).*id$"
    ),
}
# What pandas reads as missing, and a few more signs.
MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN"),
    *("None", "n/a", "nan", "null", "none", "NaT", "NAN", "-", "--", "?"),
}
# Names of splits in lists and of folders, compared without case, blanks and punctuation. Validation images are people of the training part
# that were held out (as in MSMT17), so they are train.
HELD_OUT_NAMES = ("val", "valid", "validation", "dev")
SPLIT_NAMES = {
    "train": (
        *("train", "training", "trainval", "train_all", "train_set", "bounding_box_train", "bbox_train", "image_train"),
        *HELD_OUT_NAMES,
    ),
    "query": ("query", "queries", "probe", "probes", "query_set", "bounding_box_query", "bbox_query", "image_query"),
    "gallery": ("gallery", "galleries", "test", "testing", "test_set", "gallery_set", "bounding_box_test", "bbox_test", "image_test"),
}
OTHER_SPLIT_WORDS = {  # never read as a split, but named where they look like one
    "trn": "train",
    "tst": "gallery",
    "eval": "gallery",
    "evaluation": "gallery",
    "holdout": "gallery",
}
INVISIBLE = dict.fromkeys([*range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF])  # of no width: joiners, directions, marks
WHOLE_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)\.0*|-?\d(?:\.\d+)?[eE]\+\d{1,3}|-0")
TRUTH = {"true": True, "t": True, "yes": True, "y": True, "1": True, "false": False, "f": False, "no": False, "n": False, "0": False}


def compact(text: str) -> str:
    """Return a name without case, blanks, punctuation and byte order mark, to compare headings and names of splits.

    Example:
        >>> compact(' "Camera ID"'), compact("bounding_box_train")
        ('cameraid', 'boundingboxtrain')
    """
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


SPLITS = {compact(name): split for split, names in SPLIT_NAMES.items() for name in names}


def words_of(name: str) -> list[str]:
    """Return the words of a folder's or file's name, without numbers.

    Example:
        >>> words_of("maskTrain_v2"), words_of("frames-cam1")
        (['mask', 'train', 'v'], ['frames', 'cam'])
    """
    return [compact(word) for word in re.split(r"[\W_\d]+|(?<=[a-z])(?=[A-Z])", name) if word]


def split_of_name(name: str) -> str | None:
    """Return the split that a name looks like; None if it looks like none. A name may have other words beside that of the split.

    Example:
        >>> [split_of_name(name) for name in ("bbox_test", "test_probe", "mask_train_v2", "Val", "cam1_gallery", "contest", "monday")]
        ['gallery', 'query', 'train', 'train', 'gallery', None, None]
    """
    known = SPLITS | OTHER_SPLIT_WORDS
    splits = {known[word] for word in (compact(name), *words_of(name)) if word in known}
    return next((split for split in ("query", "gallery", "train") if split in splits), None)


def clean_cell(text: str | None) -> str:
    """Return a cell without surrounding blanks; empty if it means that the value is missing, and whole numbers without decimals.

    Example:
        >>> [clean_cell(text) for text in (" Ana", "7.0", "-1.0", "\N{MINUS SIGN}1", "1e+3", "007", "7.5", "NaN", None)]
        ['Ana', '7', '-1', '-1', '1000', '007', '7.5', '', '']
    """
    if text and not text.isascii():
        text = unicodedata.normalize("NFC", text.translate(INVISIBLE))
        text = re.sub(r"^\s*[\N{MINUS SIGN}\N{EN DASH}](?=\d)", "-", text)
    if not text or (text := text.strip()) in MISSING:
        return ""
    if not text.isalnum() and WHOLE_NUMBER.fullmatch(text) and (number := Decimal(text)) == number.to_integral_value():
        return str(int(number))
    return text


def parse_truth(text: str | None, column: str, origin: str) -> bool:
    """Parse a cell that is true or false; a missing value is false.

    Raises:
        DataError: the text is neither.
    """
    value = clean_cell(text)
    if value and value.casefold() not in TRUTH:
        raise DataError(f"{origin}: {column} is {value!r}: write True or False")
    return TRUTH.get(value.casefold(), False)


def match_headings(names: Sequence[str], location: str, first_row: Sequence[str | None] = ()) -> tuple[dict[str, int], tuple[str, ...]]:
    """Find the columns of a manifest by their headings.

    A heading that is exactly the name of a column is preferred over other headings that mean it.

    Args:
        names: the headings.
        location: of the table, for messages.
        first_row: the first cell of each column, which may be the name of a split below another heading.

    Returns:
        The position of each column of `HEADINGS` that the table has, and notes on columns that are not read although they look like one.

    Raises:
        DataError: two headings mean the same column.

    Example:
        >>> match_headings(["Image Path", "pid", "camera (site)"], "m.csv")
        ({'path': 0, 'identity': 1}, ("column 'camera (site)' is not read: rename it to camera if it holds that, or ignore this",))
    """
    headings = [compact(name) for name in names]
    positions: dict[str, int] = {}
    notes = []
    for column in HEADINGS:
        candidates = [position for position, heading in enumerate(headings) if COLUMN_OF_HEADING.get(heading) == column]
        exact = [position for position in candidates if headings[position] == compact(column)]
        chosen = exact or candidates
        if len(chosen) > 1:
            listed = " and ".join(repr(names[position].strip()) for position in chosen)
            raise DataError(f"{location} has columns {listed}, which all mean {column}: keep one of them, and call it {column}")
        if chosen:
            positions[column] = chosen[0]
            notes += [
                f"column {names[position].strip()!r} is not read, because {names[chosen[0]].strip()!r} is: remove one, or ignore this"
                for position in candidates
                if position not in chosen and column != "path"
            ]
    for name, heading, cell in itertools.zip_longest(names, headings, first_row[: len(names)]):
        if heading not in COLUMN_OF_HEADING:
            resembled = next((column for column, pattern in RESEMBLES.items() if pattern.search(heading)), None)
            resembled = "split" if cell and compact(cell) in SPLITS else resembled
            if resembled and resembled not in positions:
                notes.append(f"column {name.strip()!r} is not read: rename it to {resembled} if it holds that, or ignore this")
    return positions, tuple(notes)
