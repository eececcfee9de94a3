"""Crops from video: cuts detected or labelled boxes out of frames in the MOT Challenge layout and writes a manifest with camera and time.

A sequence is a folder with img1/000001.jpg, det/det.txt (boxes of a detector) or gt/gt.txt (boxes with identities), and seqinfo.ini, whose
frame rate converts frame numbers to seconds. No detector is run.
"""

import configparser
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from joblib import cpu_count
from PIL import Image

from pul_core.errors import DataError
from tasks.data.folders import atomic_folder
from tasks.data.listing import IMAGE_SUFFIXES
from tasks.engine.progress import progress

JPEG_QUALITY = 95
FRAMES_PER_BATCH = 64
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("identity", pa.string()),
        ("camera", pa.string()),
        ("timestamp", pa.float64()),
        ("frame", pa.int64()),
        ("box", pa.list_(pa.int64(), 4)),  # left, top, width, height of the crop in pixels of the frame, from 0
        ("confidence", pa.float64()),
    ]
)


class Box(NamedTuple):
    """The box of a person in a frame, as written in a MOT Challenge file; left and top count from 1."""

    frame: int
    track: int
    left: float
    top: float
    width: float
    height: float
    confidence: float


class Sequence(NamedTuple):
    """The frames of one camera and the boxes in them."""

    camera: str
    frames: dict[int, Path]
    frame_rate: float | None
    boxes: dict[int, list[Box]]  # by frame
    labelled: bool  # whether the boxes are ground truth, with identities


def crop_sequences(
    folders: list[Path], out: Path, *, boxes: str | None = None, min_height: int = 64, min_confidence: float = 0.5, every: int = 1
) -> dict[str, int]:
    """Cut the boxes out of the frames of several sequences and write the crops with a manifest.

    Args:
        folders: the folders of the sequences; the name of a folder is the name of its camera.
        out: a folder that does not exist yet; it is created only if everything succeeds.
        boxes: det or gt; None uses det/det.txt where it exists, and otherwise gt/gt.txt.
        min_height: minimum height of a crop in pixels, after the box is clipped to the frame.
        min_confidence: minimum confidence of a detector's box; boxes in gt.txt are used unless marked as ignored or not a pedestrian.
        every: use every N-th frame, from the first.

    Returns:
        The numbers of frames, boxes, boxes that are too small, and crops.

    Raises:
        DataError: a sequence is incomplete, a frame cannot be decoded, or no box gives a crop; then nothing is written.
    """
    sequences = [read_sequence(folder, boxes, min_confidence, every) for folder in folders]
    if len({sequence.camera for sequence in sequences}) < len(sequences):
        raise DataError("two sequence folders have the same name, which is used as the camera: rename one of them")
    counts: Counter[str] = Counter()
    with (
        atomic_folder(out) as partial,
        pq.ParquetWriter(partial / "manifest.parquet", SCHEMA, compression="zstd") as writer,
        ThreadPoolExecutor(cpu_count() + 4) as pool,
        progress("crop", sum(len(sequence.boxes) for sequence in sequences), "frames") as progress_bar,
    ):
        for sequence in sequences:
            (partial / sequence.camera).mkdir()
            remaining = iter(sorted(sequence.boxes))
            while frames := list(itertools.islice(remaining, FRAMES_PER_BATCH)):
                crops = pool.map(lambda frame, sequence=sequence: _crop_frame(sequence, frame, partial, min_height), frames)
                rows = list(itertools.chain.from_iterable(crops))
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                num_boxes = sum(len(sequence.boxes[frame]) for frame in frames)
                counts.update(frames=len(frames), boxes=num_boxes, too_small=num_boxes - len(rows), crops=len(rows))
                progress_bar.advance(len(frames))
        if counts["crops"] == 0:
            raise DataError(
                f"none of the {counts['boxes']} boxes gives a crop: lower --min-confidence or --min-height ({min_height} pixels)"
            )
    return counts


def read_sequence(folder: Path, boxes: str | None, min_confidence: float, every: int) -> Sequence:
    """Read the boxes of a sequence and list its frames without opening them; the arguments are those of `crop_sequences`.

    Raises:
        DataError: a file is missing or invalid.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the folder of a sequence, with img1/ and det/det.txt or gt/gt.txt")
    kind = boxes or ("det" if (folder / "det" / "det.txt").is_file() else "gt")
    file = folder / kind / f"{kind}.txt"
    if not file.is_file():
        raise DataError(f"{folder} has no {f'{boxes}/{boxes}.txt' if boxes else 'det/det.txt and no gt/gt.txt'}: put the boxes there")
    image_folder, frame_rate = _read_sequence_info(folder)
    if not (folder / image_folder).is_dir():
        raise DataError(f"{folder} has no folder {image_folder}: put the frames there, named by their numbers")
    frames = {
        int(number[0]): path
        for path in (folder / image_folder).iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and (number := re.search(r"\d+$", path.stem))
    }
    boxes_by_frame: dict[int, list[Box]] = {}
    for box in read_boxes(file, min_confidence=None if kind == "gt" else min_confidence):
        if (box.frame - 1) % every == 0:
            boxes_by_frame.setdefault(box.frame, []).append(box)
    if missing := sorted(boxes_by_frame.keys() - frames.keys()):
        raise DataError(
            f"{file} has boxes in frame {missing[0]}, which is not in {folder / image_folder}: use boxes and frames of the same recording"
        )
    return Sequence(folder.name, frames, frame_rate, boxes_by_frame, labelled=kind == "gt")


def read_boxes(file: Path, *, min_confidence: float | None) -> Iterator[Box]:
    """Yield the boxes to crop from a MOT Challenge file.

    Args:
        file: each line has frame, track, left, top, width, height, confidence; further columns may follow.
        min_confidence: minimum confidence of a detector's box; None reads ground truth, where column 7 is 0 for an ignored box and column 8
            is 1 for a pedestrian.

    Raises:
        DataError: a line does not have these columns, or has numbers out of range.

    Source: Milan et al. 2016, MOT16.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty file is handled below
            lines: npt.NDArray[np.float64] = np.loadtxt(file, delimiter=",", ndmin=2, comments=None)
    except ValueError as error:
        raise DataError(
            f"{file} is not a file of boxes ({error}): write frame,track,left,top,width,height,confidence on each line"
        ) from error
    if lines.size == 0:
        return
    if lines.shape[1] < 7:
        raise DataError(f"{file} has {lines.shape[1]} columns: write at least frame,track,left,top,width,height,confidence")
    invalid = np.flatnonzero(~np.isfinite(lines[:, :7]).all(axis=1) | (lines[:, 0] < 1) | (np.abs(lines[:, :6]) > 1e9).any(axis=1))
    if len(invalid):
        values = ",".join(f"{value:g}" for value in lines[invalid[0], :7])
        raise DataError(
            f"{file}, line {invalid[0] + 1}: frame numbers must be at least 1 and all values finite and at most 1e9, got {values}: "
            "correct the line"
        )
    if min_confidence is not None:
        is_used = lines[:, 6] >= min_confidence
    else:
        is_used = lines[:, 6] != 0
        if lines.shape[1] > 7:
            is_used &= np.isin(lines[:, 7], (1, -1))  # -1: an older file without classes
    for frame, track, *rest in lines[is_used, :7].tolist():
        yield Box(int(frame), int(track), *rest)


def _read_sequence_info(folder: Path) -> tuple[str, float | None]:
    """Return the name of the frames' folder and the frame rate from seqinfo.ini; img1 and None if there is no such file."""
    file = folder / "seqinfo.ini"
    if not file.is_file():
        return "img1", None
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
        info = parser["Sequence"]
        name, rate = info.get("imDir", "img1"), float(info["frameRate"])
    except (configparser.Error, KeyError, ValueError) as error:
        raise DataError(f"{file} has no section [Sequence] with a frameRate ({' '.join(str(error).split())}): add it") from error
    if not 0 < rate < float("inf") or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise DataError(f"{file}: frameRate must be above 0 and imDir must be a plain folder name, got {rate} and {name!r}")
    return name, rate


def _crop_frame(sequence: Sequence, frame: int, out: Path, min_height: int) -> list[dict[str, Any]]:
    """Write the crops of a frame and return their rows of the manifest."""
    try:
        with Image.open(sequence.frames[frame]) as image:
            picture = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{sequence.frames[frame]} cannot be decoded ({error}): copy the frame again") from error
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
    """Clip a box to a frame of the given size and round it to whole pixels.

    Returns:
        left, top, right, bottom, counted from 0, right and bottom exclusive; the clipped box may be empty.

    Example:
        >>> clip(Box(1, 1, left=-3.0, top=11.0, width=20.4, height=500.0, confidence=1.0), 640, 480)
        (0, 10, 16, 480)
    """
    left, top = box.left - 1, box.top - 1
    edges = (left, width), (top, height), (left + box.width, width), (top + box.height, height)
    x0, y0, x1, y1 = (min(max(round(value), 0), limit) for value, limit in edges)
    return x0, y0, max(x0, x1), max(y0, y1)
