"""Locations of data sets: a folder, a file that lists images, or such a file at an fsspec URL; validates, names and reads them."""

import contextlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import fsspec

from pul_core.errors import DataError

# Other fsspec protocols open a second URL, an archive, or a local file without the checks on paths.
PROTOCOLS = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "webhdfs", "ftp", "sftp", "smb", "hf", "memory")


def is_url(location: str) -> bool:
    """Return whether a location is a URL."""
    return "://" in location


def validate_location(location: str) -> str:
    """Return a location that may be opened: a path, or a URL with a supported protocol and no password.

    Raises:
        DataError: the location may not be opened; a password in it is not repeated in the message.
    """
    if not is_url(location):
        return location
    protocol, _, rest = location.partition("://")
    safe_url = f"{protocol}://{rest.rpartition('@')[2].partition('?')[0]}"
    if protocol not in PROTOCOLS or "::" in location:
        raise DataError(f"{safe_url} has an unsupported protocol: give a path, or a single URL that starts with {', '.join(PROTOCOLS)}")
    if "@" in rest.partition("/")[0] and not protocol.startswith("abfs"):  # an abfs URL has container@account there
        raise DataError(
            f"{safe_url} must not include a user name or password, which logs would show: set them in the environment (docs/data.md)"
        )
    if protocol.startswith("http") and re.search(r"[?#]", rest):
        raise DataError(
            f"{safe_url} must not have a query string, because the images beside it are requested without one: give a plain URL"
        )
    if ".." in rest.split("/"):
        raise DataError(f"{safe_url} must not contain '..': give the direct URL of the file")
    return location


def image_root(location: str) -> str:
    """Return the folder or URL that image paths are relative to: the location itself, or the folder of the file that lists them.

    Example:
        >>> image_root("s3://bucket/shop/crops.parquet")
        's3://bucket/shop'
    """
    if is_url(location):
        return location.rsplit("/", 1)[0]
    return str(Path(location).parent if Path(location).is_file() else Path(location))


def dataset_name(location: str) -> str:
    """Return a short name for a data set: its folder's name, followed by the listing file's unless that is called manifest.

    Example:
        >>> dataset_name("s3://bucket/shop/manifest.csv"), dataset_name("s3://bucket/shop/week-1.parquet")
        ('shop', 'shop-week-1')
    """
    folder = image_root(location)
    stem = "" if folder == location else Path(location).stem
    name = folder.rstrip("/").rsplit("/", 1)[-1]
    return name if stem in ("", "manifest") else f"{name}-{stem}"


@contextlib.contextmanager
def open_location(location: str) -> Iterator[IO[bytes]]:
    """Open a file or URL for reading.

    Raises:
        DataError: there is nothing to open, it may not be opened, or the package for its protocol is not installed.
    """
    validate_location(location)
    try:
        fs, path = _filesystem(location)
        file = fs.open(path, "rb")
    except (OSError, ValueError, ImportError) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{location} cannot be opened ({reason}): check the path or URL and your access to it") from error
    with file:
        yield file


def read_image(root: str, path: str, max_bytes: int | None = None) -> bytes:
    """Return the bytes of an image file.

    Args:
        root: as `image_root` returns it.
        path: relative to the root, as a reader listed it; it is never treated as a URL.
        max_bytes: number of bytes after which reading a URL stops; None reads the whole file.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    if not is_url(root):
        return Path(root, path).read_bytes()
    fs, base = _filesystem(root)
    full_path = f"{base.rstrip('/')}/{path}"
    if max_bytes is None:
        return bytes(fs.cat_file(full_path))
    with fs.open(full_path, "rb") as file:
        return bytes(file.read(max_bytes))


def remote_size(url: str) -> int:
    """Return the size of the file at a URL in bytes; 0 if it is unknown or the file is missing."""
    try:
        fs, path = _filesystem(url)
        return int(fs.size(path) or 0)
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _filesystem(location: str) -> tuple[Any, str]:
    fs, path = fsspec.core.url_to_fs(location)
    return fs, str(path)
