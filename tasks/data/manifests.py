"""Reader of manifests: a CSV or Parquet file that names images relative to its folder, on disk or at an fsspec URL.

Columns: `tasks.data.cells.HEADINGS`; ``path`` is required. Cells of both formats become text first, and are then parsed by the same rules.
Images are listed, not opened.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pul_core.errors import DataError
from tasks.data.cells import COLUMN_OF_HEADING, compact, match_headings
from tasks.data.listing import IMAGE_SUFFIXES, ListedImage, is_hidden, parse_image, validate_image_path
from tasks.data.locations import image_root, is_url, open_location

BATCH = 16384  # rows of Parquet in memory at a time
CSV_SUFFIXES = (".csv", ".tsv")
MANIFEST_SUFFIXES = (*CSV_SUFFIXES, ".parquet")
MANIFEST_NAMES = tuple(f"manifest{suffix}" for suffix in MANIFEST_SUFFIXES)
TABLE_SUFFIXES = (*MANIFEST_SUFFIXES, ".xlsx", ".xls", ".jsonl")  # the last three are not read, but named
BYTES_READ = 65_536  # of a table, to see whether it lists images
DELIMITERS = ",;\t|"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
Rows = Iterator[tuple[str, dict[str, str]]]  # origin (file and row), and the cells by column


def list_manifest(location: str) -> Iterator[ListedImage]:
    """List the images of a manifest, in its order. Memory holds one batch of rows.

    The first image has the notes on columns that are not read.

    Args:
        location: file or URL of the manifest.

    Raises:
        DataError: the manifest cannot be read, has no column path, or has an invalid line; the message names the line.
    """
    root = None if is_url(location) else Path(image_root(location))
    with open_location(location) as file:
        notes, rows = _read_csv(file, location) if location.lower().endswith(CSV_SUFFIXES) else _read_parquet(file, location)
        for origin, cells in rows:
            image = parse_image(validate_image_path(cells["path"], origin, root), cells, origin)
            yield image._replace(notes=notes + image.notes) if notes else image
            notes = ()


def manifests_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder that are called manifest, in any case, for a folder that is given without a file."""
    return sorted(path.name for path in folder.iterdir() if path.name.lower() in MANIFEST_NAMES) if folder.is_dir() else []


def unread_tables(folder: Path) -> list[str]:
    """Return the names of the tables in a folder that may list its images, for a layout that does not read them."""
    tables = (path for path in folder.iterdir() if path.name.lower().endswith(TABLE_SUFFIXES) and not is_hidden(path.name))
    return sorted(path.name for path in tables if _may_list_images(path))


def _may_list_images(table: Path) -> bool:
    """Return whether a table has a column of paths, or names images at its beginning; true if it is empty or cannot be read."""
    try:
        if table.suffix.lower() == ".parquet":
            return any(COLUMN_OF_HEADING.get(compact(name)) == "path" for name in pq.read_schema(table).names)
        with table.open("rb") as file:
            start = file.read(BYTES_READ).replace(b"\0", b"").decode("utf-8", "replace").lower()  # UTF-16 has null characters
    except (OSError, pa.ArrowException):
        return True
    headings = map(compact, re.split(r"[^\w ]+", start.partition("\n")[0]))
    is_archive = start.startswith("pk")  # of a spreadsheet
    return not start or is_archive or "path" in map(COLUMN_OF_HEADING.get, headings) or any(suffix in start for suffix in IMAGE_SUFFIXES)


def _read_csv(file: IO[bytes], location: str) -> tuple[tuple[str, ...], Rows]:
    """Return the notes on the headings, and the rows."""
    head = file.read(2)
    file.seek(0)
    text = io.TextIOWrapper(file, encoding="utf-16" if head in UTF_16_MARKS else "utf-8-sig", newline="")
    line = 0
    try:
        for line, heading in enumerate(itertools.islice(text, 100), 1):
            if "\0" in heading:
                raise DataError(f"{location} contains null characters, so it may be UTF-16: save it as UTF-8")
            if not heading.strip(DELIMITERS + " \r\n") or heading.lower().startswith("sep="):
                continue
            for delimiter in DELIMITERS:
                names = _split_line(heading, delimiter)
                if any(COLUMN_OF_HEADING.get(compact(name)) == "path" for name in names):
                    first_row = next(text, "")
                    positions, notes = match_headings(names, location, _split_line(first_row, delimiter))
                    return notes, _csv_rows(itertools.chain([first_row], text), location, line, heading, delimiter, positions)
            if not heading.startswith("#"):
                raise _no_path_error(location, _split_line(heading, ","))
    except UnicodeDecodeError as error:
        raise _encoding_error(location, line + 1, error) from error
    raise _no_path_error(location, [])


def _csv_rows(text: Iterator[str], location: str, first_line: int, heading: str, delimiter: str, positions: dict[str, int]) -> Rows:
    """Yield the rows below the heading; rows without any text are left out."""
    has_blanks = f"{delimiter} " in heading
    reader = csv.reader(text, strict=True, delimiter=delimiter, skipinitialspace=has_blanks)
    columns, width = list(positions.items()), len(_split_line(heading, delimiter))
    last = max(positions.values())
    try:
        for row in reader:
            if len(row) != width:
                if not any(map(str.strip, row)):
                    continue
                if any(map(str.strip, row[width:])):
                    raise DataError(
                        f"{location}, line {first_line + reader.line_num} has more fields than the header: quote fields that contain "
                        f"{'commas' if delimiter == ',' else repr(delimiter)}"
                    )
                row += [""] * (last + 1 - len(row))
            cells = {column: row[position] for column, position in columns}
            if delimiter == ";":
                cells |= {name: _decimal_point(cells[name]) for name in ("identity", "camera", "timestamp") if name in cells}
            if cells["path"] or any(map(str.strip, row)):
                yield f"{location}, line {first_line + reader.line_num}", cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise _encoding_error(location, first_line + reader.line_num + 1, error) from error


def _split_line(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line.lstrip("# ")], delimiter=delimiter, skipinitialspace=True), [])


def _decimal_point(text: str) -> str:
    """Return a number with a decimal point: where semicolons separate columns, numbers have commas."""
    return text.replace(",", ".") if text.replace(",", "", 1).strip().lstrip("-").isdecimal() else text


def _read_parquet(file: IO[bytes], location: str) -> tuple[tuple[str, ...], Rows]:
    """Return the notes on the columns, and the rows."""
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _parquet_error(location, error) from error
    fields = [field for field in parquet.schema_arrow if _is_readable(field.type)]
    names = [field.name for field in fields]
    unreadable = [field for field in parquet.schema_arrow if not _is_readable(field.type) and compact(field.name) in COLUMN_OF_HEADING]
    if not any(COLUMN_OF_HEADING.get(compact(name)) == "path" for name in names):
        raise _no_path_error(location, [f"{field.name} ({field.type})" for field in parquet.schema_arrow])
    first_row = next(parquet.iter_batches(batch_size=1, columns=[field.name for field in fields if _is_text(field.type)]), None)
    cells = first_row.to_pylist()[0] if first_row else {}
    positions, notes = match_headings(names, location, [cells.get(name) for name in names])
    notes += tuple(
        f"column {field.name!r} holds {field.type}, which is not read: write text or numbers, or ignore this"
        for field in unreadable
        if COLUMN_OF_HEADING[compact(field.name)] not in positions
    )
    return notes, _parquet_rows(parquet, location, {column: names[position] for column, position in positions.items()})


def _parquet_rows(parquet: pq.ParquetFile, location: str, names: dict[str, str]) -> Rows:
    row = 0
    try:
        for batch in parquet.iter_batches(batch_size=BATCH, columns=list(names.values())):
            columns = [_as_text(batch.column(name)) for name in names.values()]
            for cells in zip(*columns, strict=True):
                row += 1
                yield f"{location}, row {row}", dict(zip(names, cells, strict=True))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _parquet_error(location, error) from error


def _is_readable(kind: pa.DataType) -> bool:
    types = pa.types
    return not (types.is_nested(kind) or types.is_duration(kind))


def _is_text(kind: pa.DataType) -> bool:
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(values) or pa.types.is_large_string(values))


def _as_text(values: pa.Array) -> list[str]:
    """Return the values as pandas writes them to a CSV; a missing value is empty."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        return list(values.to_numpy(zero_copy_only=False).astype(str))
    text = pc.cast(values, pa.string())
    texts: list[str] = pc.fill_null(pc.utf8_capitalize(text) if pa.types.is_boolean(values.type) else text, "").to_pylist()
    return texts


def _no_path_error(location: str, names: Sequence[str]) -> DataError:
    columns = ", ".join(map(str.strip, names)) or "none"
    if any(name.strip().lower().endswith(IMAGE_SUFFIXES) for name in names):
        return DataError(f"{location} begins with an image instead of headings: add a first line such as path,identity,camera")
    return DataError(
        f"{location} has no column 'path' (its columns: {columns[:200]}): call the column with the images' paths path, and separate "
        "columns by commas"
    )


def _encoding_error(location: str, line: int, error: Exception) -> DataError:
    if isinstance(error, UnicodeDecodeError):
        line += error.object[: error.start].count(b"\n")
    return DataError(f"{location}, line {line} is not valid CSV in UTF-8 ({error}): correct the line, or save the file as UTF-8")


def _parquet_error(location: str, error: Exception) -> DataError:
    return DataError(f"{location} is not a readable Parquet file ({str(error).splitlines()[0]}): write it again")
