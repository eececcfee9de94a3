"""Box files in the MOT Challenge format, as trackers and detectors really write them, and which boxes are left out for which reason."""

import io
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pul_core.errors import DataError
from tasks.data.cells import compact

COLUMNS = "frame,track,left,top,width,height,confidence"
# Titles of columns, as `compact` returns them, in the order of `COLUMNS`. Other titles say nothing about their column.
TITLES = (
    re.compile(r"frames?|fn|fid|.*frame(id|no|number|index)?"),
    re.compile(r"id|.*track.*|identity|pid|objectid"),
    re.compile(r"x|(bb|box)?left|x1|xmin|(bb|box)x|tlx|xtl"),
    re.compile(r"y|(bb|box)?top|y1|ymin|(bb|box)y|tly|ytl"),
    re.compile(r"w|(bb|box)?width|(bb|box)w"),
    re.compile(r"h|(bb|box)?height|(bb|box)h"),
    re.compile(r"conf|confidence|score|prob|probability"),
)
OTHER_COORDINATES = re.compile(r"[xy]2|[xy]max|(bb|box)?(right|bottom)|c[xy]|[xy]c|(center|centre)[xy]|[xy](center|centre)")
# Why boxes are left out: a key, what is said about their number, and what to do about it.
FILTERS = {
    "skipped": ("are in frames that --every skips", "lower --every"),
    "ignored": ("are marked as ignored (0 in column 7)", "write 1 in column 7"),
    "other_class": ("have another class than person in column 8", "write 1 there for a person"),
    "unsure": ("have a confidence below --min-confidence", "lower --min-confidence"),
    "no_image": ("are in frames without an image", "use boxes and frames of the same recording"),
    "outside": ("are outside the frame or empty", "check that columns 3 to 6 are left,top,width,height in pixels"),
    "too_small": ("are lower than --min-height", "lower --min-height"),
}


class Boxes(NamedTuple):
    """The boxes of a file that are used; left and top count from 1."""

    values: npt.NDArray[np.float64]  # (n, 7), columns as in `COLUMNS`, confidence NaN if the file has none; by ascending frame
    removed: Counter[str]  # number of boxes that are not used, by key of `FILTERS`
    notes: list[str]  # how the file was read, where that is not obvious


def read_boxes(file: Path, *, min_confidence: float | None) -> Boxes:
    """Read a file of boxes.

    The columns are separated by commas, semicolons, tabs or blanks, and a first line of titles is skipped. Column 7 is the confidence of a
    detected box. In ground truth it is 0 for an ignored box, unless it is 0 everywhere. Column 8 is a class if all its numbers are whole
    and columns 9 and 10 are no coordinates; a person is class 0 if there is a class 0 (COCO, YOLO), and otherwise class 1 (MOT Challenge).

    Args:
        file: each line has frame, track, left, top, width and height, and may have a confidence and further columns.
        min_confidence: minimum confidence of a detector's box; None reads ground truth. A confidence that is the same for all boxes
            because it was not recorded (-1, 0) is not compared; percent are recognised by values above 10 and up to 100.

    Raises:
        DataError: a line does not have these columns, has numbers out of range, or the file has other coordinates.

    Source: Milan et al. 2016, MOT16.
    """
    lines = _read_numbers(file)
    if lines.size == 0:
        return Boxes(np.empty((0, 7)), Counter(), [])
    if lines.shape[1] < 6:
        yolo = " (YOLO has class,x,y,width,height as shares of the frame)" if lines.shape[1] == 5 else ""
        raise DataError(f"{file} has {lines.shape[1]} columns{yolo}: write at least {COLUMNS.removesuffix(',confidence')}")
    frames, coordinates = lines[:, 0], lines[:, 2:6]
    invalid = np.flatnonzero(
        ~np.isfinite(lines[:, :6]).all(axis=1) | (frames < 0) | (frames % 1 != 0) | (np.abs(lines[:, :6]) > 1e9).any(axis=1)
    )
    if len(invalid):
        values = ",".join(f"{value:g}" for value in lines[invalid[0], :7])
        raise DataError(
            f"{file}, line {invalid[0] + 1}: frame numbers must be whole and at least 0 and all values finite and at most 1e9, "
            f"got {values}: correct the line"
        )
    if (coordinates >= 0).all() and coordinates.max() <= 1:
        raise DataError(f"{file} has boxes in shares of the frame, from 0 to 1: multiply them by the width and height of the frame")
    removed: Counter[str] = Counter()
    notes: list[str] = []
    score = lines[:, 6] if lines.shape[1] > 6 else np.full(len(lines), np.nan)
    reasons = np.full(len(lines), "", "U12")
    if min_confidence is None:
        if (score == 0).all():
            notes.append("column 7 is 0 for all boxes, so that it does not mean ignored")
        else:
            reasons[score == 0] = "ignored"
        confidence = np.full(len(lines), np.nan)
    else:
        confidence = _confidence(score, notes)
        reasons[confidence < min_confidence] = "unsure"
    is_person = _is_person(lines, notes)
    reasons[~is_person & (reasons != "ignored")] = "other_class"
    removed.update(reasons[reasons != ""].tolist())
    used = np.column_stack((lines[:, :6], confidence))[reasons == ""]
    return Boxes(used[np.argsort(used[:, 0], kind="stable")], removed, notes)


def _read_numbers(file: Path) -> npt.NDArray[np.float64]:
    """Read the numbers of a text file; (lines, columns)."""
    data = file.read_bytes()
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig").replace('"', "")
        first = next((line for line in text.splitlines() if line.strip()), "")
        if _has_titles(file, re.split(r"[,;\t]" if re.search(r"[,;\t]", first) else r"\s+", first.strip())):
            text = text[text.index(first) + len(first) :]
        if ";" in text:
            text = text.replace(",", ".").replace(";", ",")  # a decimal comma
        if "," in text:
            text = re.sub(r",[ \t]*$", "", text, flags=re.MULTILINE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the caller handles an empty file
            lines: npt.NDArray[np.float64] = np.loadtxt(io.StringIO(text), delimiter="," if "," in text else None, ndmin=2, comments=None)
    except DataError:
        raise
    except ValueError as error:
        reason = str(error).partition(";")[0]
        raise DataError(f"{file} is not a file of boxes ({reason}): write {COLUMNS} on each line") from error
    return lines


def _has_titles(file: Path, words: list[str]) -> bool:
    """Return whether the first line of a file has titles instead of numbers.

    Raises:
        DataError: its titles are those of other columns.
    """
    words = [word.strip("# ") for word in words if word.strip("# ")]
    try:
        float(words[0] if words else 0)
    except ValueError:
        titles = [compact(word) for word in words]
        columns = [next((column for column, title in enumerate(TITLES) if title.fullmatch(word)), None) for word in titles]
        is_in_order = all(column in (None, position) for position, column in enumerate(columns[: len(TITLES)]))
        if columns[0] != 0 or not is_in_order or any(map(OTHER_COORDINATES.fullmatch, titles)):
            raise DataError(
                f"{file} has the columns {','.join(words)[:80]}: write {COLUMNS}, in this order, with the width and height"
            ) from None
        return True
    return False


def _confidence(score: npt.NDArray[np.float64], notes: list[str]) -> npt.NDArray[np.float64]:
    """Return the confidence of each box: NaN if the file does not record it, percent as a share."""
    recorded = score[np.isfinite(score) & (score != -1)]
    if len(recorded) == 0 or (recorded == 0).all():
        if len(recorded):
            notes.append("the confidence of all boxes is 0, so that --min-confidence is not applied")
        else:
            notes.append("the file states no confidence, so that --min-confidence is not applied")
        return np.full(len(score), np.nan)
    if 10 < recorded.max() <= 100 and recorded.min() >= 0:
        notes.append(f"confidences up to {recorded.max():g} are read as percent")
        return np.where(score == -1, -1, score / 100)
    if recorded.max() > 1 or recorded.min() < 0:
        notes.append(
            f"confidences from {recorded.min():g} to {recorded.max():g} are no shares; --min-confidence is compared with them as they are"
        )
    return score


def _is_person(lines: npt.NDArray[np.float64], notes: list[str]) -> npt.NDArray[np.bool_]:
    """Return which boxes are people according to the class in column 8, if that is one."""
    everything = np.ones(len(lines), np.bool_)
    if lines.shape[1] < 8 or (lines.shape[1] > 9 and not (lines[:, 8:10] == -1).all()):  # 10 columns end in world coordinates x,y,z
        return everything
    classes = lines[:, 7]
    if (classes % 1 != 0).any() or (classes < -1).any() or (classes == -1).all():
        return everything
    person = 0 if (classes == 0).any() else 1
    is_person: npt.NDArray[np.bool_] = (classes == person) | (classes == -1)
    if not person:
        notes.append("a person is class 0, as in COCO and YOLO, because column 8 has a class 0")
    if not is_person.all():
        others = np.unique(classes[~is_person]).astype(int).tolist()
        notes.append(f"column 8 also has the classes {', '.join(map(str, others[:8]))}; class {person} is a person")
    return is_person
