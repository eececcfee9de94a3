"""Headings and cells of tables as people and programs write them: one normal form, whatever format the table has."""

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
    "identity": re.compile(r"ident|person|pid|label|subject|people|vehicle|track|^id$|^ids$|target|^class"),
    "camera": re.compile(r"cam|sensor|device|view"),
    "timestamp": re.compile(r"time|date|second|epoch"),
    "split": re.compile(r"split|subset|partition|train|valid|test|query|probe|gallery"),
}
# What pandas reads as missing, and a few more signs.
MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN"),
    *("None", "n/a", "nan", "null", "none", "NaT", "NAN", "-", "--", "?"),
}
WHOLE_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)\.0*|-?\d(?:\.\d+)?[eE]\+\d{1,3}|-0")
TRUTH = {"true": True, "t": True, "yes": True, "y": True, "1": True, "false": False, "f": False, "no": False, "n": False, "0": False}


def compact(text: str) -> str:
    """Return a name without case, blanks, punctuation and byte order mark, to compare headings and names of splits.

    Example:
        >>> compact(' "Camera ID"'), compact("bounding_box_train")
        ('cameraid', 'boundingboxtrain')
    """
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def clean_cell(text: str | None) -> str:
    """Return a cell without surrounding blanks; empty if it means that the value is missing, and whole numbers without decimals.

    Example:
        >>> [clean_cell(text) for text in (" Ana", "7.0", "-1.0", "1e+3", "007", "7.5", "NaN", None)]
        ['Ana', '7', '-1', '1000', '007', '7.5', '', '']
    """
    if not text or (text := text.strip()) in MISSING:
        return ""
    if not text.isascii():
        return unicodedata.normalize("NFC", text)
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


def match_headings(names: Sequence[str], location: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Find the columns of a manifest by their headings.

    A heading that is exactly the name of a column is preferred over other headings that mean it.

    Args:
        names: the headings.
        location: of the table, for messages.

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
            raise DataError(f"{location} has columns {listed}, which all mean {column}: rename the one to read to {column}")
        if chosen:
            positions[column] = chosen[0]
            notes += [
                f"column {names[position].strip()!r} is not read, because {names[chosen[0]].strip()!r} is: remove one, or ignore this"
                for position in candidates
                if position not in chosen and column != "path"
            ]
    for name, heading in zip(names, headings, strict=True):
        if heading not in COLUMN_OF_HEADING:
            resembled = next((column for column, pattern in RESEMBLES.items() if pattern.search(heading)), None)
            if resembled and resembled not in positions:
                notes.append(f"column {name.strip()!r} is not read: rename it to {resembled} if it holds that, or ignore this")
    return positions, tuple(notes)
