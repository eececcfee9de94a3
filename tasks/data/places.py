"""Where a data set lies: a folder, a file that lists images, or such a file at an fsspec URL; and how its bytes are had."""

import contextlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import fsspec

from pul_core.errors import DataError

# fsspec knows more: protocols that open a second URL, an archive, or a file of this machine past the checks on paths.
PROTOCOLS = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "webhdfs", "ftp", "sftp", "smb", "hf", "memory")


def is_url(place: str) -> bool:
    """Say whether a place is a URL."""
    return "://" in place


def checked_url(place: str) -> str:
    """Return a place that may be opened: a path, or a URL of one known protocol that holds no password.

    Raises:
        DataError: it may not; what it says of a password is not repeated.
    """
    if not is_url(place):
        return place
    protocol, _, rest = place.partition("://")
    shown = f"{protocol}://{rest.rpartition('@')[2].partition('?')[0]}"
    if protocol not in PROTOCOLS or "::" in place:
        raise DataError(f"{shown} is of no protocol that is read: write a path, or one URL that begins with {', '.join(PROTOCOLS)}")
    if "@" in rest.partition("/")[0] and not protocol.startswith("abfs"):  # there it is container@account
        raise DataError(f"{shown} was given with a user or password, which logs would show: set them in the environment (docs/data.md)")
    if protocol.startswith("http") and re.search(r"[?#]", rest):
        raise DataError(f"{shown} was given with a query: the images beside it are asked for without one, so give a plain URL")
    if ".." in rest.split("/"):
        raise DataError(f"{shown} holds '..': write where the file lies")
    return place


def image_root(place: str) -> str:
    """Return the folder or URL that image paths are relative to: the place itself, or where the file lies that lists them.

    Example:
        >>> image_root("s3://bucket/shop/crops.parquet")
        's3://bucket/shop'
    """
    if is_url(place):
        return place.rsplit("/", 1)[0]
    return str(Path(place).parent if Path(place).is_file() else Path(place))


def name_of(place: str) -> str:
    """Return a short name: the folder's, and the listing file's unless it is called manifest.

    Example:
        >>> name_of("s3://bucket/shop/manifest.csv"), name_of("s3://bucket/shop/week-1.parquet")
        ('shop', 'shop-week-1')
    """
    folder = image_root(place)
    stem = "" if folder == place else Path(place).stem
    name = folder.rstrip("/").rsplit("/", 1)[-1]
    return name if stem in ("", "manifest") else f"{name}-{stem}"


@contextlib.contextmanager
def opened(place: str) -> Iterator[IO[bytes]]:
    """Open a file or URL for reading.

    Raises:
        DataError: it is not there, may not be opened, or its protocol is not installed.
    """
    checked_url(place)
    try:
        fs, path = _filesystem(place)
        file = fs.open(path, "rb")
    except (OSError, ValueError, ImportError) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{place} cannot be opened: {reason}") from error
    with file:
        yield file


def read_image(root: str, path: str) -> bytes:
    """Return an image's bytes.

    Args:
        root: as `image_root` returns it.
        path: relative to it, as a reader listed it; it is never taken for a URL of its own.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not is_url(root):
        return Path(root, path).read_bytes()
    fs, base = _filesystem(root)
    return bytes(fs.cat_file(f"{base.rstrip('/')}/{path}"))


def remote_size(url: str) -> int:
    """Return how many bytes lie at a URL, 0 where that is not told or nothing is there."""
    try:
        fs, path = _filesystem(url)
        return int(fs.size(path) or 0)
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _filesystem(place: str) -> tuple[Any, str]:
    fs, path = fsspec.core.url_to_fs(place)
    return fs, str(path)
