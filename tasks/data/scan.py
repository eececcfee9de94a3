"""The scan of a folder: the quality of every listed file, in batches; files that are unchanged since the last scan are not opened again.

What a scan found is remembered below ``$PUL_HOME/cache/scans``, a Parquet file a folder. It is only a cache: whatever is wrong with it, the
files are looked at again.
"""

import contextlib
import functools
import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.data.quality import Quality, file_state, look
from tasks.store.home import home

BATCH = 4096  # files in memory at a time, and in a row group of the cache
JUST_CHANGED_NS = 2_000_000_000  # a file this young may change again without its time telling so: not remembered
FORMAT = f"1, Pillow {PIL.__version__}".encode()  # another decoder may see another picture
_KINDS = (pa.string(), pa.int32(), pa.int32(), pa.string(), pa.int32(), pa.float32(), pa.float32(), pa.string())
QUALITY = pa.schema(list(zip(Quality._fields, _KINDS, strict=True)))
SCANNED = pa.schema([("bytes", pa.int64()), *QUALITY])
REMEMBERED = pa.schema([("path", pa.string()), ("mtime_ns", pa.int64()), *SCANNED], metadata={"pul.scan": FORMAT})


def scan(root: str, batches: Iterable[Sequence[str]]) -> Iterator[pa.Table]:
    """Yield a table `SCANNED` for each batch of paths, one row a path, in order.

    Memory holds one batch, and 16 bytes for every file of the last scan. What was found is remembered when the last batch is done.

    Args:
        root: folder or URL of the paths.
        batches: paths relative to it.
    """
    file = home() / "cache" / "scans" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}.parquet"
    last = _last_scan(file)
    with _replacing(file) as writer, ThreadPoolExecutor() as pool:
        for paths in batches:
            files = [os.path.join(root, path) for path in paths]  # noqa: PTH118 a million Path objects take longer than all the rest
            sizes, mtimes, problems = zip(*map(file_state, files), strict=True)
            now = pa.table([pa.array(paths), pa.array(mtimes), pa.array(sizes)], names=["path", "mtime_ns", "bytes"])
            known = _recall(last, now)
            unchanged = _equal(known, now)
            seen = [Quality(problem=problem) for problem in problems]
            todo = [row for row in np.flatnonzero(~unchanged).tolist() if problems[row] is None]
            for row, quality in zip(todo, pool.map(look, [files[row] for row in todo]), strict=True):
                seen[row] = quality
            fresh = pa.table([pa.array(values, kind) for values, kind in zip(zip(*seen, strict=True), _KINDS, strict=True)], schema=QUALITY)
            both = pa.concat_tables([fresh, known.select(QUALITY.names)])
            quality = both.take(np.arange(len(paths)) + len(paths) * unchanged)
            found = pa.table([*now.columns, *quality.columns], schema=REMEMBERED)
            old = np.array(mtimes) < time.time_ns() - JUST_CHANGED_NS
            writer.write_table(found.filter(pc.and_(pc.is_valid(found["sha256"]), pa.array(old))))
            yield found.select(SCANNED.names)


class _LastScan:
    """What the last scan of a folder found. In memory is a hash of each path; the rest is read from the file, a row group at a time."""

    def __init__(self, file: Path) -> None:
        """Open the file.

        Raises:
            ValueError: it was written by another version.
            OSError: it is missing or damaged.
        """
        self.file = pq.ParquetFile(file, page_checksum_verification=True)
        if (self.file.schema_arrow.metadata or {}).get(b"pul.scan") != FORMAT:
            raise ValueError(f"{file} has another format")
        self.group = functools.lru_cache(maxsize=4)(self.file.read_row_group)  # the order of a folder seldom changes: one or two are enough
        groups = range(self.file.num_row_groups)
        self.ends = np.cumsum([self.file.metadata.row_group(group).num_rows for group in groups], dtype=np.int64)
        hashes = [_hashes(self.file.read_row_group(group, ["path"])["path"]) for group in groups]
        unsorted = np.concatenate([np.zeros(0, np.int64), *hashes])
        self.order = np.argsort(unsorted)
        self.hashes = unsorted[self.order]

    def recall(self, paths: pa.ChunkedArray) -> pa.Table:
        """Return a table `REMEMBERED`, one row a path: what was found, or nulls. Equal hashes may bring another file's row."""
        wanted = _hashes(paths)
        at = np.searchsorted(self.hashes, wanted).clip(0, max(len(self.hashes) - 1, 0))
        known = np.flatnonzero(self.hashes[at] == wanted) if len(self.hashes) else np.zeros(0, np.int64)
        rows = self.order[at[known]]
        group = np.searchsorted(self.ends, rows, side="right")
        parts, position = [REMEMBERED.empty_table()], np.full(len(wanted), -1)
        for number in np.unique(group):
            chosen = group == number
            start = self.ends[number - 1] if number else 0
            position[known[chosen]] = sum(part.num_rows for part in parts) + np.arange(chosen.sum())
            parts.append(self.group(int(number)).take(rows[chosen] - start))
        return pa.concat_tables(parts).take(pa.array(position, mask=position < 0))


def _last_scan(file: Path) -> _LastScan | None:
    try:
        return _LastScan(file)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None


def _recall(last: _LastScan | None, now: pa.Table) -> pa.Table:
    if last is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, pa.ArrowException):
            return last.recall(now["path"])
    return REMEMBERED.empty_table().take(pa.nulls(now.num_rows, pa.int64()))


def _equal(known: pa.Table, now: pa.Table) -> npt.NDArray[np.bool_]:
    """Say of each file whether path, size and time are those of the last scan."""
    equal = functools.reduce(pc.and_, (pc.equal(known[name], now[name]) for name in now.column_names))
    return np.asarray(pc.fill_null(equal, False))


def _hashes(paths: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.fromiter(map(hash, paths.to_pylist()), np.int64, len(paths))


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[pq.ParquetWriter]:
    """Write the cache under another name; only when the block ends without an error does it replace the last one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".partial-{uuid.uuid4().hex}")
    try:
        with pq.ParquetWriter(partial, REMEMBERED, compression="zstd", write_page_checksum=True) as writer:
            yield writer
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
