"""Inspection of a single image file: digest, size, colour mode, quality measures, and whether it can be decoded."""

import hashlib
import io
import os
import stat
import time
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from tasks.data.locations import is_url, read_image, remote_size

MAX_PIXELS = 50_000_000  # a larger image is not a crop of a person, and may be a decompression bomb
MAX_BYTES = 200_000_000  # a larger file is not read into memory


class Quality(NamedTuple):
    """The result of inspecting an image file; a field is None if a problem prevented measuring it."""

    sha256: str | None = None
    width: int | None = None  # pixels, upright
    height: int | None = None
    mode: str | None = None  # Pillow's: RGB, L, CMYK, I;16, ...
    frames: int | None = None
    brightness: float | None = None  # mean grey value, 0 to 255
    sharpness: float | None = None  # mean absolute difference of horizontally adjacent grey values; 0 for a single colour
    problem: str | None = None  # missing, unreadable, zero_bytes, too_large, truncated or undecodable: no step can use the image


def file_state(path: str) -> tuple[int, int, str | None]:
    """Return the size of a file in bytes, its modification time in ns and its problem, if any, without opening it.

    The modification time of a URL is unreliable. It is reported as the current time, so that the file is never cached.
    """
    if is_url(path):
        size = remote_size(path)
        return size, time.time_ns(), "too_large" if size > MAX_BYTES else None
    try:
        status = os.stat(path)  # noqa: PTH116 a million Path objects take longer than the call
    except FileNotFoundError:
        return 0, 0, "missing"
    except OSError:  # no permission, or a symbolic link to itself
        return 0, 0, "unreadable"
    is_regular = stat.S_ISREG(status.st_mode)  # opening a pipe would block forever
    return (status.st_size, status.st_mtime_ns, None) if is_regular else (0, 0, "unreadable")


def inspect_image(path: str) -> Quality:
    """Read an image file, digest it, decode it completely and measure it; the same bytes give the same result.

    Args:
        path: a regular file, or a URL.
    """
    try:
        if is_url(path):
            root, name = path.rsplit("/", 1)
            data = read_image(root, name, MAX_BYTES + 1)  # a server may not state the size
            if len(data) > MAX_BYTES:
                return Quality(problem="too_large")
        else:
            with open(path, "rb") as file:  # noqa: PTH123
                if os.fstat(file.fileno()).st_size > MAX_BYTES:
                    return Quality(hashlib.file_digest(file, "sha256").hexdigest(), problem="too_large")
                data = file.read()
    except OSError:
        return Quality(problem="unreadable")
    sha256 = hashlib.sha256(data).hexdigest()
    return _decode(data)._replace(sha256=sha256) if data else Quality(sha256, problem="zero_bytes")


def upright(image: Image.Image) -> Image.Image:
    """Return an opened image decoded, rotated according to its EXIF orientation, and converted to RGB."""
    return ImageOps.exif_transpose(image).convert("RGB")


def _decode(data: bytes) -> Quality:
    """Decode an image and measure everything but its digest."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return Quality(None, image.width, image.height, image.mode, problem="too_large")
            mode, frames = image.mode, getattr(image, "n_frames", 1)
            rgb = upright(image)
    except Image.DecompressionBombError:
        return Quality(problem="too_large")
    except Exception as error:  # a damaged file can raise any exception in a decoder
        return Quality(problem="truncated" if "truncated" in str(error).lower() else "undecodable")
    grey = np.asarray(rgb.convert("L"), np.int16)
    differences = np.abs(grey[:, 1:] - grey[:, :-1])
    sharpness = float(differences.mean()) if differences.size else 0.0  # an image that is one pixel wide has no differences
    return Quality(None, rgb.width, rgb.height, mode, frames, float(grey.mean()), sharpness)
