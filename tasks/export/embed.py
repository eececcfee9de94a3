"""Features of a folder of crops as a Parquet file: path, camera and feature of each image, written as they are computed."""

import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from joblib import cpu_count

from pul_core.errors import DataError
from tasks.data.layouts import read_layout
from tasks.data.listing import ListedImage
from tasks.data.locations import image_root, read_image
from tasks.decode import decode_crop
from tasks.engine.progress import Progress, progress, step_logger
from tasks.export.embedder import Embedder, open_model
from tasks.index import dataset_root
from tasks.store.artifacts import vector_type, vectors

BLOCK = 256  # images in memory


class Embedded(NamedTuple):
    """The result of `embed_folder`: the file, the number of its rows, and the images without one, each with the reason."""

    path: Path
    rows: int
    skipped: dict[str, str]


def embed_folder(
    model: str,
    folder: str,
    out: str,
    *,
    layout: str | None = None,
    pattern: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> Embedded:
    """Write the features of all images of a folder: Parquet with the columns path, camera and feature (a list of d float32).

    Args:
        model: see `tasks.export.embedder.open_model`.
        folder: images in any layout that a run accepts, see `tasks.index.index`; all splits.
        out: the Parquet file; it is replaced only when the new one is complete.
        layout: of the folder; None: detected.
        pattern: a regular expression for the image paths; its group ``camera`` names the camera.
        device: a torch device for models that torch runs.
        threads: CPU threads.

    Returns:
        The file, the number of its rows, and the images that could not be decoded.

    Raises:
        DataError: the model or the folder cannot be used, or none of the images can be decoded.
    """
    location = dataset_root(folder)
    images = list(read_layout(location, layout, pattern)[1])
    embedder = open_model(model, device=device, threads=threads)
    _warn_of_other_cameras(embedder, images)
    path, skipped = Path(out), dict[str, str]()
    partial = path.with_name(f".partial-{uuid.uuid4().hex}")
    schema = pa.schema([("path", pa.string()), ("camera", pa.string()), pa.field("feature", vector_type(embedder.dimensions))])
    try:
        with progress("embed", len(images)) as progress_bar, pq.ParquetWriter(partial, schema.with_metadata({"pul.model": model})) as file:
            rows = 0
            for batch in _embed(embedder, image_root(location), images, skipped, progress_bar):
                file.write_batch(pa.record_batch(batch, schema=schema))
                rows += len(batch[0])
        if not rows:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in Counter(skipped.values()).items())
            raise DataError(f"none of the {len(images):,} images in {folder} can be decoded ({reasons}): give a folder of images")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Embedded(path, rows, skipped)


def _warn_of_other_cameras(embedder: Embedder, images: list[ListedImage]) -> None:
    others = sum(_camera(image) not in embedder.cameras for image in images)
    if embedder.cameras and others:
        step_logger().warning(
            "%s of %s images are not from a camera of the model (%s), and get its part for other cameras: --pattern names the cameras of a "
            "folder",
            f"{others:,}",
            f"{len(images):,}",
            ", ".join(sorted(embedder.cameras)),
        )


def _embed(
    embedder: Embedder, root: str, images: list[ListedImage], skipped: dict[str, str], progress_bar: Progress
) -> Iterator[list[pa.Array]]:
    """Yield the columns of each block of images; add the images that cannot be decoded to ``skipped``."""
    with ThreadPoolExecutor(cpu_count() + 4) as pool:
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            decoded = list(pool.map(lambda image: _decode(root, image.path, embedder), block))
            skipped |= {image.path: crop for image, crop in zip(block, decoded, strict=True) if isinstance(crop, str)}
            usable = [(image, crop) for image, crop in zip(block, decoded, strict=True) if not isinstance(crop, str)]
            if usable:
                cameras = [_camera(image) for image, _ in usable]
                features = embedder.features(np.stack([crop for _, crop in usable]), cameras)
                yield [pa.array([image.path for image, _ in usable]), pa.array(cameras, pa.string()), vectors(features)]
            progress_bar.advance(len(block))


def _camera(image: ListedImage) -> str | None:
    return None if image.camid in (None, -1) else str(image.camid)


def _decode(root: str, path: str, embedder: Embedder) -> npt.NDArray[np.uint8] | str:
    """Return the decoded image (h, w, 3), or the reason why it cannot be decoded."""
    try:
        return decode_crop(read_image(root, path), embedder.height, embedder.width)
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError, SyntaxError):  # Pillow raises SyntaxError for some damaged PNG files
        return "not a readable image"
