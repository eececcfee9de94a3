"""What is in one image file: digest, size, colour mode, and whether it can be decoded at all. It knows no data set and judges nothing."""

import hashlib
import io
import os
import stat
import time
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from tasks.data.places import is_url, read_image, remote_size

MAX_PIXELS = 50_000_000  # larger is no crop of a person, or a decompression bomb
MAX_BYTES = 200_000_000  # larger is not even read


class Quality(NamedTuple):
    """What a file holds; everything is None that its problem hides."""

    sha256: str | None = None
    width: int | None = None  # pixels, upright
    height: int | None = None
    mode: str | None = None  # Pillow's: RGB, L, CMYK, I;16, ...
    frames: int | None = None
    brightness: float | None = None  # mean grey value, 0 to 255
    sharpness: float | None = None  # mean step between horizontal neighbours in grey; 0 is a single colour
    problem: str | None = None  # missing, unreadable, zero_bytes, too_large, truncated or undecodable: no step can use the image


def file_state(path: str) -> tuple[int, int, str | None]:
    """Return a file's size in bytes, its modification time in ns and its problem, without opening it.

    What lies at a URL has no time to trust: it counts as changed just now, so that no scan is remembered for it.
    """
    if is_url(path):
        return remote_size(path), time.time_ns(), None
    try:
        found = os.stat(path)  # noqa: PTH116 a million Path objects take longer than the call
    except FileNotFoundError:
        return 0, 0, "missing"
    except OSError:  # no permission, or a symbolic link that leads to itself
        return 0, 0, "unreadable"
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for forever
        return 0, 0, "unreadable"
    return found.st_size, found.st_mtime_ns, None


def look(path: str) -> Quality:
    """Read a file, digest it and decode it in full.

    The same bytes give the same answer. Brightness and sharpness take a tenth of a decode and cannot be had later without one, so they are
    always taken.

    Args:
        path: of a regular file, or a URL.
    """
    try:
        if is_url(path):
            return _judged(read_image(*path.rsplit("/", 1)))
        with open(path, "rb") as file:  # noqa: PTH123
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                return Quality(hashlib.file_digest(file, "sha256").hexdigest(), problem="too_large")
            data = file.read()
    except OSError:
        return Quality(problem="unreadable")
    return _judged(data)


def _judged(data: bytes) -> Quality:
    sha256 = hashlib.sha256(data).hexdigest()
    return _decode(data)._replace(sha256=sha256) if data else Quality(sha256, problem="zero_bytes")


def upright(image: Image.Image) -> Image.Image:
    """Return an opened image decoded, turned the way its camera was held, and in RGB."""
    return ImageOps.exif_transpose(image).convert("RGB")


def _decode(data: bytes) -> Quality:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return Quality(None, image.width, image.height, image.mode, problem="too_large")
            mode, frames = image.mode, getattr(image, "n_frames", 1)
            rgb = upright(image)
    except Image.DecompressionBombError:
        return Quality(problem="too_large")
    except Exception as error:  # foreign bytes raise anything in a decoder: what is wrong is the file
        return Quality(problem="truncated" if "truncated" in str(error).lower() else "undecodable")
    grey = np.asarray(rgb.convert("L"), np.int16)
    steps = np.abs(grey[:, 1:] - grey[:, :-1])
    sharpness = float(steps.mean()) if steps.size else 0.0
    return Quality(None, rgb.width, rgb.height, mode, frames, float(grey.mean()), sharpness)
