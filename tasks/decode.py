"""Step *decode*: the images of a split, decoded and resized once, as one memory-mapped file that every iteration and epoch reads."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pul_core.errors import DataError
from tasks.data.places import read_image
from tasks.data.quality import upright
from tasks.engine.progress import progress, step_logger
from tasks.engine.steps import step
from tasks.store.artifacts import column, read_table, write_table, writing
from tasks.store.references import ImageSet, Pixels

BLOCK = 256  # images decoded before they are written


@step("decode-{split}-{height}x{width}")
def decode(images: ImageSet, *, split: str, height: int, width: int) -> Pixels:
    """Decode and resize the images of a split.

    An image with a problem that the index found is skipped, counted and listed.

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
    paths, digests, problems = (table.column(name).take(chosen).to_pylist() for name in ("path", "sha256", "problem"))
    root = images.root
    with progress(f"decode {split}", len(chosen)) as shown, writing("pixels", "u8", 0) as work, ThreadPoolExecutor() as pool:

        def load(path: str, digest: str, problem: str | None) -> npt.NDArray[np.uint8] | None:
            return None if problem else _load(root, path, digest, height, width)

        for start in range(0, len(chosen), BLOCK):
            block = slice(start, start + BLOCK)
            for image in pool.map(load, paths[block], digests[block], problems[block]):
                if image is not None:
                    work.file.write(image.tobytes())
                    work.rows += 1
            shown.advance(len(paths[block]))
        if work.rows == 0:
            raise DataError(f"none of the {len(chosen)} {split} images below {root} can be decoded; the first: {paths[0]}: {problems[0]}")
    for path, problem in zip(paths, problems, strict=True):
        if problem:
            step_logger().warning("skipped %s: %s", ascii(f"{root}/{path}"), problem)  # a name may hold line breaks
    readable = np.array([problem is None for problem in problems])
    positions = np.where(readable, np.cumsum(readable) - 1, -1)
    decoded = write_table(
        "decoded", pa.table({"row": chosen.astype(np.int64), "position": positions, "error": pa.array(problems, pa.string())})
    )
    return Pixels(decoded=decoded, pixels=work.done, height=height, width=width)


def _load(root: str, path: str, digest: str, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return an image (h, w, 3) of which the index said that it can be decoded."""
    try:
        data = read_image(root, path)
    except OSError as error:
        raise DataError(
            f"{root}/{path} was there when the set was indexed and cannot be read now ({error.strerror}): start a new run"
        ) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(f"{root}/{path} changed after the set was indexed: start a new run, which looks at the folder anew")
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(upright(image).resize((width, height), Image.Resampling.BILINEAR))
