"""Crops from video: cuts detected or labelled boxes out of frames in the MOT Challenge layout and writes a manifest with camera and time.

A sequence is a folder with img1/000001.jpg, det/det.txt (boxes of a detector) or gt/gt.txt (boxes with identities), and seqinfo.ini, whose
frame rate converts frame numbers to seconds. No detector is run.
"""

import configparser
import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from joblib import cpu_count
from PIL import Image

from pul_core.errors import DataError
from tasks.data.boxes import FILTERS, read_boxes
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
    frames: dict[int, Path]  # by the number that the boxes use
    frame_rate: float | None
    boxes: dict[int, list[Box]]  # by frame
    labelled: bool  # whether the boxes are ground truth, with identities
    removed: Counter[str]  # number of boxes that are not used, by key of `FILTERS`
    notes: list[str]  # how the files were read, where that is not obvious


class Crops(NamedTuple):
    """What was cropped: numbers of frames with boxes, boxes in the files and crops, why boxes were left out, and notes on the files."""

    frames: int
    boxes: int
    crops: int
    removed: Counter[str]  # by key of `FILTERS`
    notes: list[str]


def crop_sequences(
    folders: list[Path], out: Path, *, boxes: str | None = None, min_height: int = 64, min_confidence: float = 0.5, every: int = 1
) -> Crops:
    """Cut the boxes out of the frames of several sequences and write the crops with a manifest.

    Args:
        folders: the folders of the sequences; the name of a folder is the name of its camera.
        out: a folder that does not exist yet; it is created only if everything succeeds.
        boxes: det or gt; None uses det/det.txt where it exists, and otherwise gt/gt.txt.
        min_height: minimum height of a crop in pixels, after the box is clipped to the frame.
        min_confidence: minimum confidence of a detector's box; boxes in gt.txt are used unless marked as ignored or not a pedestrian.
        every: use every N-th frame, from the first.

    Raises:
        DataError: a sequence is incomplete, a frame cannot be decoded, or no box gives a crop; then nothing is written.
    """
    sequences = [read_sequence(folder, boxes, min_confidence, every) for folder in folders]
    if len({sequence.camera for sequence in sequences}) < len(sequences):
        raise DataError("two sequence folders have the same name, which is used as the camera: rename one of them")
    removed = sum((sequence.removed for sequence in sequences), Counter[str]())
    num_frames = num_crops = 0
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
                rows = []
                for frame_rows, frame_removed in crops:
                    rows += frame_rows
                    removed += frame_removed
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                num_frames, num_crops = num_frames + len(frames), num_crops + len(rows)
                progress_bar.advance(len(frames))
        num_boxes = num_crops + removed.total()
        if num_crops == 0 and num_boxes == 0:
            raise DataError("none of the 0 boxes gives a crop: the files of boxes are empty, run the detector or tracker first")
        if num_crops == 0:
            advice = FILTERS[removed.most_common(1)[0][0]][1]
            raise DataError(f"none of the {num_boxes:,} boxes gives a crop, {describe_removed(removed)}: {advice}")
    notes = [f"{sequence.camera}: {note}" for sequence in sequences for note in sequence.notes]
    return Crops(num_frames, num_boxes, num_crops, removed, notes)


def describe_removed(removed: Counter[str]) -> str:
    """Return how many boxes were left out for which reason.

    Example:
        >>> describe_removed(Counter(too_small=3, skipped=1))
        '1 are in frames that --every skips, 3 are lower than --min-height'
    """
    return ", ".join(f"{removed[key]:,} {reason}" for key, (reason, _) in FILTERS.items() if removed[key])


def read_sequence(folder: Path, boxes: str | None, min_confidence: float, every: int) -> Sequence:
    """Read the boxes of a sequence and list its frames, of which only one is opened; the arguments are those of `crop_sequences`.

    Raises:
        DataError: a file is missing or invalid.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the folder of a sequence, with img1/ and det/det.txt or gt/gt.txt")
    kind, file = _box_file(folder, boxes)
    info = _read_sequence_info(folder)
    image_folder = _image_folder(folder, info.get("imdir"))
    frames = _numbered_images(image_folder)
    values, removed, notes = read_boxes(file, min_confidence=None if kind == "gt" else min_confidence)
    notes += ["seqinfo.ini states no frameRate, so that crops have no time"] * ("framerate" not in info and bool(info))
    numbers = values[:, 0].astype(np.int64)
    if shift := _frame_shift(numbers, frames):
        notes.append(
            f"the first frame is {min(numbers)} in {file.name} and {min(frames)} in {image_folder.name}; they are taken to be the same"
        )
        frames = {number + shift: path for number, path in frames.items()}
    has_image = np.isin(numbers, list(frames))
    if len(numbers) and not has_image.any():
        raise DataError(
            f"{file} has boxes in frame {numbers[0]}, which is not in {image_folder}, and none in any of its {len(frames)} frames: "
            "use boxes and frames of the same recording"
        )
    is_due = (numbers - min(frames)) % every == 0
    removed.update(no_image=int((~has_image).sum()), skipped=int((has_image & ~is_due).sum()))
    values = values[has_image & is_due]
    if len(values):
        _check_coordinates(file, values, frames[int(values[0, 0])])
    boxes_by_frame: dict[int, list[Box]] = {}
    for frame, track, *rest in values.tolist():
        boxes_by_frame.setdefault(int(frame), []).append(Box(int(frame), int(track), *rest))
    rate = float(info["framerate"]) if "framerate" in info else None
    return Sequence(folder.name, frames, rate, boxes_by_frame, kind == "gt", removed, notes)


def _box_file(folder: Path, boxes: str | None) -> tuple[str, Path]:
    """Return the kind of boxes, det or gt, and their file: det/det.txt or det.txt."""
    kinds = [boxes] if boxes else ["det", "gt"]
    for kind in kinds:
        for file in (folder / kind / f"{kind}.txt", folder / f"{kind}.txt"):
            if file.is_file():
                return kind, file
    missing = f"{boxes}/{boxes}.txt" if boxes else "det/det.txt and no gt/gt.txt"
    if any((folder / "labels").glob("*.txt")):
        raise DataError(
            f"{folder} has no {missing}, but labels/ with a file for each frame, as YOLO writes: collect them in one file with "
            "frame,track,left,top,width,height,confidence in pixels"
        )
    raise DataError(f"{folder} has no {missing}: put the boxes there")


def _image_folder(folder: Path, stated: str | None) -> Path:
    """Return the folder of the frames: the stated one, img1, or the folder of the sequence itself."""
    if (folder / (stated or "img1")).is_dir():
        if not _numbered_images(folder / (stated or "img1")):
            raise DataError(f"{folder / (stated or 'img1')} has no image whose name ends in the number of its frame: put the frames there")
        return folder / (stated or "img1")
    if stated is None and _numbered_images(folder):
        return folder
    others = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and _numbered_images(path)]
    advice = f"state imDir={others[0]} in seqinfo.ini" if others else "put the frames there, named by their numbers"
    raise DataError(f"{folder} has no folder {stated or 'img1'}: {advice}")


def _numbered_images(folder: Path) -> dict[int, Path]:
    """Return the images whose names end in a number, by that number; hidden files, such as a Mac's ._000001.jpg, are skipped."""
    frames: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and (number := re.search(r"\d+$", path.stem)):
            if other := frames.get(int(number[0])):
                raise DataError(f"{other} and {path.name} are both frame {int(number[0])}: remove one of them")
            frames[int(number[0])] = path
    return frames


def _frame_shift(numbers: npt.NDArray[np.int64], frames: dict[int, Path]) -> int:
    """Return what to add to the numbers of the images if one counts from 0 and the other from 1, and 0 otherwise.

    Example:
        >>> images = {number: Path() for number in range(3)}
        >>> _frame_shift(np.array([1, 3]), images), _frame_shift(np.array([1, 2]), images)
        (1, 0)
    """
    if len(numbers) == 0 or not frames or not (set(numbers.tolist()) - frames.keys()):
        return 0
    first, shifts = min(frames), {0: 1, 1: -1}
    shift = shifts.get(first, 0)
    ends = numbers.max() == max(frames) + 1 if shift == 1 else numbers.min() == 0
    return shift if ends and shift in (1, -1) and not (set(numbers.tolist()) - {number + shift for number in frames}) else 0


def _check_coordinates(file: Path, values: npt.NDArray[np.float64], image: Path) -> None:
    """Check that boxes are left, top, width, height in pixels of the frame.

    Raises:
        DataError: most of them extend beyond the frame, or they look like two corners.
    """
    left, top, width, height = values[:, 2:6].T
    with _opened(image) as frame:
        beyond = (left + width > 1.1 * frame.width) | (top + height > 1.1 * frame.height)
        size = f"{frame.width} x {frame.height}"
    are_corners = bool(((width > left) & (height > top)).all())
    if are_corners:
        ratio, corner_ratio = (float(np.median(h / np.maximum(w, 1))) for h, w in ((height, width), (height - top, width - left)))
        are_corners = bool(beyond.mean() > 0.5) or (len(values) >= 10 and ratio < 1.3 and 1.5 < corner_ratio < 6)
    if are_corners:
        raise DataError(f"columns 3 to 6 of {file} look like two corners, x1,y1,x2,y2: write left,top,width,height")
    if beyond.mean() > 0.5:
        raise DataError(
            f"{beyond.sum():,} of {len(values):,} boxes in {file} extend beyond the frame of {size} pixels: "
            "write left,top,width,height in pixels of these frames"
        )


def _read_sequence_info(folder: Path) -> dict[str, str]:
    """Return the settings in seqinfo.ini with lower-case names; none if there is no such file."""
    file = folder / "seqinfo.ini"
    if not file.is_file():
        return {}
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text(encoding="utf-8-sig"))
        info = dict(parser[next(name for name in parser.sections() if name.lower() == "sequence")])
        if "framerate" in info:
            info["framerate"] = str(float(Fraction(info["framerate"])))  # 30000/1001, as ffprobe prints it
        rate, name = float(info.get("framerate", 1)), info.get("imdir", "img1")
    except (configparser.Error, StopIteration, ValueError, ZeroDivisionError) as error:
        raise DataError(f"{file} has no section [Sequence] with a frameRate ({' '.join(str(error).split())}): add it") from error
    if not 0 < rate < float("inf") or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise DataError(f"{file}: frameRate must be above 0 and imDir must be a plain folder name, got {rate} and {name!r}")
    return info


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a frame.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be decoded ({error}): copy the frame again") from error


def _crop_frame(sequence: Sequence, frame: int, out: Path, min_height: int) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Write the crops of a frame; return their rows of the manifest, and how many boxes give no crop."""
    with _opened(sequence.frames[frame]) as image:
        picture = image.convert("RGB")
    rows: list[dict[str, Any]] = []
    removed: Counter[str] = Counter()
    for number, box in enumerate(sequence.boxes[frame], 1):
        left, top, right, bottom = clip(box, picture.width, picture.height)
        if right - left < 1 or bottom - top < max(min_height, 1):
            removed["outside" if right - left < 1 or bottom - top < 1 else "too_small"] += 1
            continue
        path = f"{sequence.camera}/{frame:06d}-{number:03d}.jpg"
        picture.crop((left, top, right, bottom)).save(out / path, quality=JPEG_QUALITY)
        rows.append(
            {
                "path": path,
                "identity": f"{sequence.camera}/{box.track}" if sequence.labelled and box.track >= 0 else None,
                "camera": sequence.camera,
                "timestamp": frame / sequence.frame_rate if sequence.frame_rate else None,
                "frame": frame,
                "box": [left, top, right - left, bottom - top],
                "confidence": None if np.isnan(box.confidence) else box.confidence,
            }
        )
    return rows, removed


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
