"""Crops from video: frames and somebody's boxes, in the MOT Challenge's layout, become crops with camera and time. Nothing is detected.

A sequence is a folder with img1/000001.jpg, det/det.txt (boxes of a detector) or gt/gt.txt (boxes with identities), and seqinfo.ini, whose
frame rate turns frame numbers into seconds.
"""

import configparser
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pul_core.errors import DataError
from tasks.data.folders import writing_folder
from tasks.data.listing import SUFFIXES
from tasks.engine.progress import progress

JPEG_QUALITY = 95
AHEAD = 64  # frames decoded before their crops are counted
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("identity", pa.string()),
        ("camera", pa.string()),
        ("timestamp", pa.float64()),
        ("frame", pa.int64()),
        ("box", pa.list_(pa.int64(), 4)),  # left, top, width, height in pixels of the frame, from 0, as it was cut
        ("confidence", pa.float64()),
    ]
)


class Box(NamedTuple):
    """A person in a frame, as the file tells it; left and top count from 1."""

    frame: int
    track: int
    left: float
    top: float
    width: float
    height: float
    confidence: float


class Sequence(NamedTuple):
    """A camera's frames with their boxes."""

    camera: str
    frames: dict[int, Path]
    frame_rate: float | None
    boxes: dict[int, list[Box]]  # by frame
    labelled: bool


def crop_sequences(
    folders: list[Path], out: Path, *, boxes: str | None = None, min_height: int = 64, min_confidence: float = 0.5, every: int = 1
) -> dict[str, int]:
    """Cut the boxes out of the frames of some sequences and write the crops with a manifest.

    Args:
        folders: of the sequences; a folder's name is the camera's.
        out: a folder that does not exist yet; it appears whole or not at all.
        boxes: det or gt; None takes det/det.txt where there is one.
        min_height: of a crop, in pixels, after the box was clipped to the frame.
        min_confidence: of a detector's box; gt's are kept unless they are marked as ignored or as no pedestrian.
        every: cut the frames 1, 1 + every, 1 + 2 every, ...

    Returns:
        Numbers of frames, boxes, too small ones, and crops.

    Raises:
        DataError: a sequence is not whole or a frame cannot be decoded, and nothing is written; or no box is left.
    """
    sequences = [read_sequence(folder, boxes, min_confidence, every) for folder in folders]
    if len({sequence.camera for sequence in sequences}) < len(sequences):
        raise DataError("two sequences' folders have the same name, which is the camera's: rename one")
    counts = {"frames": 0, "boxes": 0, "too_small": 0, "crops": 0}
    with (
        writing_folder(out) as partial,
        pq.ParquetWriter(partial / "manifest.parquet", SCHEMA, compression="zstd") as writer,
        ThreadPoolExecutor() as pool,
        progress("crop", sum(len(sequence.boxes) for sequence in sequences), "frames") as shown,
    ):
        for sequence in sequences:
            (partial / sequence.camera).mkdir()
            frames = iter(sorted(sequence.boxes))
            while some := list(islice(frames, AHEAD)):
                cut = list(pool.map(lambda frame, sequence=sequence: _cut_frame(sequence, frame, partial, min_height), some))
                rows = [row for rows in cut for row in rows]
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                found = sum(len(sequence.boxes[frame]) for frame in some)
                for name, more in zip(counts, (len(some), found, found - len(rows), len(rows)), strict=True):
                    counts[name] += more
                shown.advance(len(some))
        if counts["crops"] == 0:
            raise DataError(f"none of {counts['boxes']} boxes gives a crop: lower --min-confidence or --min-height ({min_height} pixels)")
    return counts


def read_sequence(folder: Path, boxes: str | None, min_confidence: float, every: int) -> Sequence:
    """Read what there is to cut in a sequence; frames are not opened.

    Raises:
        DataError: a file is missing or wrong.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give a sequence's, with img1/ and det/det.txt or gt/gt.txt in it")
    kinds = [kind for kind in ("det", "gt") if (folder / kind / f"{kind}.txt").is_file() and boxes in (None, kind)]
    if not kinds:
        raise DataError(f"{folder} has no {f'{boxes}/{boxes}.txt' if boxes else 'det/det.txt and no gt/gt.txt'}: boxes are needed to crop")
    image_folder, frame_rate = _sequence_info(folder)
    if not (folder / image_folder).is_dir():
        raise DataError(f"{folder} has no folder {image_folder}: put the frames there, named by their numbers")
    frames = {}
    for path in (folder / image_folder).iterdir():
        number = re.search(r"(\d+)$", path.stem)
        if number and path.suffix.lower() in SUFFIXES:
            frames[int(number[1])] = path
    file = folder / kinds[0] / f"{kinds[0]}.txt"
    by_frame: dict[int, list[Box]] = {}
    for box in read_boxes(file, min_confidence=None if kinds[0] == "gt" else min_confidence):
        if (box.frame - 1) % every == 0:
            by_frame.setdefault(box.frame, []).append(box)
    if missing := sorted(by_frame.keys() - frames.keys()):
        raise DataError(
            f"{file} has boxes in frame {missing[0]}, which {folder / image_folder} does not hold: they must be of one recording"
        )
    return Sequence(folder.name, frames, frame_rate, by_frame, labelled=kinds[0] == "gt")


def read_boxes(file: Path, *, min_confidence: float | None) -> Iterator[Box]:
    """Yield the boxes of a MOT Challenge file that count.

    Args:
        file: lines frame, track, left, top, width, height, confidence, and what may follow.
        min_confidence: of a detector's boxes; None reads ground truth, where column 7 is 0 for ignored and 8 is 1 for a pedestrian.

    Source: Milan et al. 2016, MOT16.

    Raises:
        DataError: a line has no such numbers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty file is told below
            lines: npt.NDArray[np.float64] = np.loadtxt(file, delimiter=",", ndmin=2, comments=None)
    except ValueError as error:
        raise DataError(f"{file} is no file of boxes, frame,track,left,top,width,height,confidence a line: {error}") from error
    if lines.size == 0:
        return
    if lines.shape[1] < 7:
        raise DataError(f"{file} has {lines.shape[1]} columns: at least frame,track,left,top,width,height,confidence are needed")
    wrong = np.flatnonzero(~np.isfinite(lines[:, :7]).all(axis=1) | (lines[:, 0] < 1) | (np.abs(lines[:, :6]) > 1e9).any(axis=1))
    if len(wrong):
        raise DataError(f"{file}, line {wrong[0] + 1}: frame numbers are from 1 and all figures finite")
    if min_confidence is not None:
        kept = lines[:, 6] >= min_confidence
    else:
        kept = lines[:, 6] != 0
        if lines.shape[1] > 7:
            kept &= np.isin(lines[:, 7], (1, -1))  # -1: an older file, which has no classes
    for frame, track, *rest in lines[kept, :7].tolist():
        yield Box(int(frame), int(track), *rest)


def _sequence_info(folder: Path) -> tuple[str, float | None]:
    """Return the frames' folder and their rate from seqinfo.ini; img1 and None without one."""
    file = folder / "seqinfo.ini"
    if not file.is_file():
        return "img1", None
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
        info = parser["Sequence"]
        name, rate = info.get("imDir", "img1"), float(info["frameRate"])
    except (configparser.Error, KeyError, ValueError) as error:
        raise DataError(f"{file} has no section [Sequence] with a frameRate: {' '.join(str(error).split())}") from error
    if not 0 < rate < float("inf") or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise DataError(f"{file}: frameRate must be above 0 and imDir a folder's plain name, not {rate} and {name!r}")
    return name, rate


def _cut_frame(sequence: Sequence, frame: int, out: Path, min_height: int) -> list[dict[str, Any]]:
    """Write a frame's crops and return their lines of the manifest."""
    try:
        with Image.open(sequence.frames[frame]) as image:
            picture = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{sequence.frames[frame]} cannot be decoded ({error}): put the frame there again") from error
    rows = []
    for number, box in enumerate(sequence.boxes[frame], 1):
        left, top, right, bottom = clip(box, picture.width, picture.height)
        if right - left < 1 or bottom - top < max(min_height, 1):
            continue
        path = f"{sequence.camera}/{frame:06d}-{number:03d}.jpg"
        picture.crop((left, top, right, bottom)).save(out / path, quality=JPEG_QUALITY)
        rows.append(
            {
                "path": path,
                "identity": f"{sequence.camera}/{box.track}" if sequence.labelled else None,
                "camera": sequence.camera,
                "timestamp": frame / sequence.frame_rate if sequence.frame_rate else None,
                "frame": frame,
                "box": [left, top, right - left, bottom - top],
                "confidence": None if sequence.labelled else box.confidence,
            }
        )
    return rows


def clip(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a box in whole pixels inside a frame, from 0, right and bottom exclusive; it may be empty.

    Example:
        >>> clip(Box(1, 1, left=-3.0, top=11.0, width=20.4, height=500.0, confidence=1.0), 640, 480)
        (0, 10, 16, 480)
    """
    left, top = box.left - 1, box.top - 1
    edges = (left, width), (top, height), (left + box.width, width), (top + box.height, height)
    x0, y0, x1, y1 = (min(max(round(value), 0), most) for value, most in edges)
    return x0, y0, max(x0, x1), max(y0, y1)
