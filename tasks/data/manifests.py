"""Reader of manifests: a CSV or Parquet file that names images, beside them or at any fsspec URL. The images are not opened.

Columns: ``path``, relative to the manifest's folder; optional ``identity``, ``camera``, ``timestamp``, ``split``; others are left alone.
"""

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pul_core.errors import DataError
from tasks.data.listing import Listed, own_pid, own_split, own_timestamp, written_path
from tasks.data.places import image_root, is_url, opened

COLUMNS = ("path", "identity", "camera", "timestamp", "split")
BATCH = 16384  # lines of Parquet in memory
SUFFIXES = (".csv", ".parquet")


def manifest(place: str) -> Iterator[Listed]:
    """List the images of a manifest, in its order, in the memory of a batch.

    Args:
        place: the manifest's file or URL.

    Raises:
        DataError: it cannot be read, lacks the column path, or a line is wrong; the line is named.
    """
    root = None if is_url(place) else Path(image_root(place))
    with opened(place) as file:
        rows = _csv_rows(file, place) if place.lower().endswith(".csv") else _parquet_rows(file, place)
        for where, told in rows:
            split = own_split(told["split"], where)
            yield Listed(
                written_path(told["path"], where, root),
                own_pid(told["identity"], split, where),
                told["camera"] or None,
                split,
                own_timestamp(told["timestamp"], where),
            )


def _csv_rows(file: IO[bytes], place: str) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    try:
        _check_columns(reader.fieldnames or (), place)
        for row in reader:
            where = f"{place}, line {reader.line_num}"
            if None in row:
                raise DataError(f"{where}: it has more fields than the heading: put fields with commas in quotes")
            yield where, {name: row.get(name) or "" for name in COLUMNS}
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{place}, line {reader.line_num + 1}: it is no CSV in UTF-8 ({error})") from error


def _parquet_rows(file: IO[bytes], place: str) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        parquet = pq.ParquetFile(file)
        _check_columns(parquet.schema_arrow.names, place)
        present = [name for name in COLUMNS if name in parquet.schema_arrow.names]
        nothing = dict.fromkeys(COLUMNS, "")
        row = 0
        for batch in parquet.iter_batches(batch_size=BATCH, columns=present):
            columns = [[_text(value) for value in batch.column(name).to_pylist()] for name in present]
            for values in zip(*columns, strict=True):
                row += 1
                yield f"{place}, row {row}", nothing | dict(zip(present, values, strict=True))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place} is no Parquet file that can be read ({str(error).splitlines()[0]})") from error


def _text(value: Any) -> str:
    """Return a cell as it would stand in a CSV; times are in UTC where they do not say."""
    if value is None or value != value:  # a NaN is how pandas writes nothing
        return ""
    if isinstance(value, datetime):
        return str((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _check_columns(names: Any, place: str) -> None:
    if "path" not in names:
        found = ", ".join(map(str, names)) or "none"
        raise DataError(f"{place} has no column 'path' (its columns: {found[:200]}): name the images' paths there, commas between columns")
