"""Thumbnails of images as data URIs. A picture whose file is missing, or has changed since the run, is not shown."""

import base64
import hashlib
import io
from functools import lru_cache

from PIL import Image

from tasks.data.locations import read_image
from tasks.data.quality import upright

WIDTH, HEIGHT = 56, 112  # pixels
QUALITY = 70


class Thumbnails:
    """Makes the thumbnails of a data set's images; each picture is read once."""

    def __init__(self, root: str, paths: list[str], digests: list[str | None]) -> None:
        self.root, self.paths, self.digests = root, paths, digests
        self.missing = 0
        self.uri = lru_cache(maxsize=None)(self._uri)

    def _uri(self, row: int) -> str:
        """Return the picture of a row as a data URI; empty if it cannot be shown."""
        try:
            data = read_image(self.root, self.paths[row])
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != self.digests[row]:
            self.missing += 1
            return ""
        with Image.open(io.BytesIO(data)) as image:
            small = upright(image).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=QUALITY)
        return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
