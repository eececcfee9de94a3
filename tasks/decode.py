"""Step *decode*: the images of a split, decoded and resized once, as one memory-mapped file that every iteration and epoch reads."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageOps, UnidentifiedImageError

from tasks.artifacts import column, read_table, verify, write_table, writing
from tasks.layouts import DataError
from tasks.places import read_image
from tasks.progress import progress, step_logger
from tasks.references import ImageSet, Pixels
from tasks.steps import step

BLOCK = 256  # images decoded before they are written
MAX_PIXELS = 50_000_000  # larger is no crop of a person, or a decompression bomb


@step("decode-{split}-{height}x{width}")
def decode(images: ImageSet, *, split: str, height: int, width: int) -> Pixels:
    """Decode and resize the images of a split.

    An image that cannot be decoded is skipped, counted and listed.

    Args:
        images: the indexed set.
        split: train, query or gallery.
        height: pixels.
        width: pixels.

    Raises:
        DataError: no image of the split can be decoded, or a file changed since it was indexed.
    """
    table = read_table(images.images)
    chosen = np.flatnonzero(column(table, "split") == split)
    paths, digests = (table.column(name).take(chosen).to_pylist() for name in ("path", "sha256"))
    root = images.root
    errors: list[str | None] = []
    with progress(f"decode {split}", len(chosen)) as shown, writing("pixels", "u8", 0) as work, ThreadPoolExecutor() as pool:

        def load(path: str, digest: str) -> npt.NDArray[np.uint8] | str:
            return _load(root, path, digest, height, width)

        for start in range(0, len(chosen), BLOCK):
            for image in pool.map(load, paths[start : start + BLOCK], digests[start : start + BLOCK]):
                errors.append(image if isinstance(image, str) else None)
                if not isinstance(image, str):
                    work.file.write(image.tobytes())
                    work.rows += 1
            shown.advance(len(paths[start : start + BLOCK]))
        if work.rows == 0:
            raise DataError(f"none of the {len(chosen)} {split} images below {root} can be decoded; the first: {paths[0]}: {errors[0]}")
    for path, error in zip(paths, errors, strict=True):
        if error:
            step_logger().warning("skipped %s/%s: %s", root, path, error)
    readable = np.array([error is None for error in errors])
    positions = np.where(readable, np.cumsum(readable) - 1, -1)
    decoded = write_table(
        "decoded", pa.table({"row": chosen.astype(np.int64), "position": positions, "error": pa.array(errors, pa.string())})
    )
    return Pixels(decoded=decoded, pixels=work.done, height=height, width=width)


def open_pixels(pixels: Pixels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return the rows of the decoded images (n,), ascending, and the images themselves (n, h, w, 3), memory-mapped.

    Raises:
        DamagedArtifactError: the file is missing or damaged.
    """
    decoded = read_table(pixels.decoded, ["row", "position"])
    rows = column(decoded, "row")[column(decoded, "position") >= 0]
    path = verify(pixels.pixels)
    return rows, np.memmap(path, np.uint8, mode="r", shape=(len(rows), pixels.height, pixels.width, 3))


def skipped(pixels: Pixels) -> Iterator[tuple[int, str]]:
    """Yield row and reason of the images that were skipped."""
    decoded = read_table(pixels.decoded, ["row", "error"])
    yield from ((row, error) for row, error in zip(*(decoded.column(name).to_pylist() for name in ("row", "error")), strict=True) if error)


def _load(root: str, path: str, digest: str, height: int, width: int) -> npt.NDArray[np.uint8] | str:
    """Return an image (h, w, 3), or why it cannot be had."""
    try:
        data = read_image(root, path)
    except OSError as error:
        raise DataError(
            f"{root}/{path} was there when the set was indexed and cannot be read now ({error.strerror}): start a new run"
        ) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(f"{root}/{path} changed after the set was indexed: start a new run, which looks at the folder anew")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width} x {image.height} pixels are too many (limit {MAX_PIXELS:,})"
            return _resize(image, height, width)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"cannot be decoded ({str(error) or type(error).__name__})"


def _resize(image: Image.Image, height: int, width: int) -> npt.NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(upright.resize((width, height), Image.Resampling.BILINEAR))
