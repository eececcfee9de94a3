"""Reader of manifests: a CSV or Parquet file that names images relative to its folder, on disk or at an fsspec URL.

Columns: ``path``, relative to the manifest's folder; optional ``identity``, ``camera``, ``timestamp``, ``split``; others are ignored.
Images are listed, not opened.
"""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pul_core.errors import DataError
from tasks.data.listing import ListedImage, parse_image, utc_seconds, validate_image_path
from tasks.data.locations import image_root, is_url, open_location

COLUMNS = ("path", "identity", "camera", "timestamp", "split")
BATCH = 16384  # rows of Parquet in memory at a time
MANIFEST_SUFFIXES = (".csv", ".parquet")


def list_manifest(location: str) -> Iterator[ListedImage]:
    """List the images of a manifest, in its order. Memory holds one batch of rows.

    Args:
        location: file or URL of the manifest.

    Raises:
        DataError: the manifest cannot be read, has no column path, or has an invalid line; the message names the line.
    """
    root = None if is_url(location) else Path(image_root(location))
    with open_location(location) as file:
        rows = _csv_rows(file, location) if location.lower().endswith(".csv") else _parquet_rows(file, location)
        for origin, cells in rows:
            yield parse_image(validate_image_path(cells["path"] or "", origin, root), cells, origin)


def _csv_rows(file: IO[bytes], location: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield the origin (file and line) and the cells of each row."""
    reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    try:
        _check_columns(reader.fieldnames or (), location)
        for row in reader:
            origin = f"{location}, line {reader.line_num}"
            if None in row:
                raise DataError(f"{origin} has more fields than the header: quote fields that contain commas")
            yield origin, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{location}, line {reader.line_num + 1} is not valid CSV in UTF-8 ({error}): correct the line, or save the file as UTF-8"
        ) from error


def _parquet_rows(file: IO[bytes], location: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield the origin (file and row) and the cells of each row."""
    try:
        parquet = pq.ParquetFile(file)
        _check_columns(parquet.schema_arrow.names, location)
        present = [name for name in COLUMNS if name in parquet.schema_arrow.names]
        batches = parquet.iter_batches(batch_size=BATCH, columns=present)
        for number, row in enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), 1):
            yield f"{location}, row {number}", {name: _cell_text(cell) for name, cell in row.items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{location} is not a readable Parquet file ({str(error).splitlines()[0]}): write it again") from error


def _cell_text(value: Any) -> str:
    """Return a cell as the text that a CSV would hold."""
    if value is None or value != value:  # pandas writes a missing value as NaN
        return ""
    if isinstance(value, datetime):
        return str(utc_seconds(value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _check_columns(names: Iterable[Any], location: str) -> None:
    if "path" not in names:
        columns = ", ".join(map(str, names)) or "none"
        raise DataError(
            f"{location} has no column 'path' (its columns: {columns[:200]}): add it with the images' paths, and separate columns by commas"
        )
