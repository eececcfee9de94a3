"""Step *decode*: decodes and resizes the images of a split once, into one memory-mapped file that all iterations and epochs read."""

import hashlib
import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from joblib import cpu_count
from PIL import Image

from pul_core.errors import DataError
from tasks.data.locations import read_image
from tasks.data.quality import MAX_PIXELS, upright
from tasks.engine.progress import progress, step_logger
from tasks.engine.steps import step
from tasks.store.artifacts import column, read_table, write_table, writing
from tasks.store.references import ImageSet, Pixels

BLOCK = 256  # images decoded in parallel, then written


@step("decode-{split}-{height}x{width}")
def decode(images: ImageSet, *, split: str, height: int, width: int) -> Pixels:
    """Decode and resize the images of a split.

    Images that the index marked with a problem are skipped and listed with the reason.

    Args:
        images: the indexed data set.
        split: train, query or gallery.
        height: of the decoded images, in pixels.
        width: of the decoded images, in pixels.

    Returns:
        The decoded images, and a table with the position of each row in them or the reason why it was skipped.

    Raises:
        DataError: no image of the split can be decoded, or a file changed since it was indexed.
    """
    table = read_table(images.images)
    split_rows = np.flatnonzero(column(table, "split") == split)
    paths, digests, problems = (table.column(name).take(split_rows).to_pylist() for name in ("path", "sha256", "problem"))
    is_usable = np.array([problem is None for problem in problems])
    usable = np.flatnonzero(is_usable)
    if len(usable) == 0:
        reasons = ", ".join(f"{count:,} are {problem}" for problem, count in Counter(problems).items())
        raise DataError(
            f"none of the {len(split_rows)} {split} images in {images.root} can be decoded ({reasons}; the first is {paths[0]!a}): "
            "copy them again, or leave the split out"
        )
    for path, problem in zip(paths, problems, strict=True):
        if problem:
            step_logger().warning("skipped %s: %s", ascii(f"{images.root}/{path}"), problem)  # a name may contain line breaks
    with (
        progress(f"decode {split}", len(usable)) as progress_bar,
        writing("pixels", "u8", len(usable)) as output,
        ThreadPoolExecutor(cpu_count() + 4) as pool,
    ):
        for start in range(0, len(usable), BLOCK):
            block = usable[start : start + BLOCK]
            for image in pool.map(lambda i: read_crop(images.root, paths[i], digests[i], height, width), block):
                output.write(image.tobytes())
            progress_bar.advance(len(block))
    positions = np.where(is_usable, np.cumsum(is_usable) - 1, -1)
    decoded = write_table(
        "decoded", pa.table({"row": split_rows.astype(np.int64), "position": positions, "error": pa.array(problems, pa.string())})
    )
    return Pixels(decoded=decoded, pixels=output.artifact, height=height, width=width)


def read_crop(root: str, path: str, digest: str, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Read, decode and resize an image that had no problem when it was indexed; returns (h, w, 3).

    Raises:
        DataError: the file is missing, or has another digest.
    """
    try:
        data = read_image(root, path)
    except OSError as error:
        raise DataError(f"{root}/{path} can no longer be read ({error.strerror}): restore it, or start a new run") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(f"{root}/{path} changed after the set was indexed: start a new run, which indexes the folder again")
    return decode_crop(data, height, width)


def decode_crop(data: bytes, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Decode and resize the bytes of an image file; returns (h, w, 3), RGB.

    Raises:
        OSError: they are not an image, or a damaged one.
        DataError: the image is too large.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"an image of {image.width} x {image.height} pixels is not a crop of a person: give crops")
        return resize_crop(np.asarray(upright(image)), height, width)


def resize_crop(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize an image (h, w, 3) uint8, RGB, as `decode_crop` resizes the image of a file.

    Example:
        >>> resize_crop(np.zeros((80, 30, 3), np.uint8), 64, 32).shape
        (64, 32, 3)
    """
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
