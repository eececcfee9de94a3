"""Scan of a data set: inspects every listed file in batches; files unchanged since the last scan come from a cache and are not opened.

The cache is one Parquet file per root in ``$PUL_HOME/cache/scans``. If it is missing, damaged or from another version, all files are
inspected again.
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
from joblib import cpu_count

from tasks.data.quality import Quality, file_state, inspect_image
from tasks.store.home import home

BATCH = 4096  # files in memory at a time, and in a row group of the cache
MIN_AGE_NS = 2_000_000_000  # a file modified more recently may change again without a new modification time, so it is not cached
FORMAT = f"1, Pillow {PIL.__version__}".encode()  # another version of Pillow may decode differently
TYPES = (pa.string(), pa.int32(), pa.int32(), pa.string(), pa.int32(), pa.float32(), pa.float32(), pa.string())
QUALITY = pa.schema(list(zip(Quality._fields, TYPES, strict=True)))
SCANNED = pa.schema([("bytes", pa.int64()), *QUALITY])
CACHED = pa.schema([("path", pa.string()), ("mtime_ns", pa.int64()), *SCANNED], metadata={"pul.scan": FORMAT})
UNREADABLE_CACHE = (OSError, ValueError, KeyError, pa.ArrowException)  # what a missing, damaged or old cache raises


def scan(root: str, batches: Iterable[Sequence[str]]) -> Iterator[pa.Table]:
    """Yield a table with schema `SCANNED` for each batch of paths, one row per path, in order.

    Memory holds one batch, and 16 bytes for every file of the previous scan. The cache is replaced after the last batch.

    Args:
        root: folder or URL of the paths.
        batches: paths relative to the root.
    """
    cache_file = home() / "cache" / "scans" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}.parquet"
    previous: _PreviousScan | None = None
    with contextlib.suppress(*UNREADABLE_CACHE):
        previous = _PreviousScan(cache_file)
    with _replace_on_success(cache_file) as writer, ThreadPoolExecutor(cpu_count() + 4) as pool:
        for paths in batches:
            files = [os.path.join(root, path) for path in paths]  # noqa: PTH118 a million Path objects take longer than all the rest
            sizes, mtimes, problems = zip(*map(file_state, files), strict=True)
            current = pa.table([pa.array(paths), pa.array(mtimes), pa.array(sizes)], names=["path", "mtime_ns", "bytes"])
            cached = _look_up(previous, current["path"])
            is_equal = functools.reduce(pc.and_, (pc.equal(cached[name], current[name]) for name in current.column_names))
            unchanged = np.asarray(pc.fill_null(is_equal, False))  # path, modification time and size equal the cached ones
            inspected = [Quality(problem=problem) for problem in problems]
            to_inspect = [row for row in np.flatnonzero(~unchanged).tolist() if problems[row] is None]
            for row, result in zip(to_inspect, pool.map(inspect_image, [files[row] for row in to_inspect]), strict=True):
                inspected[row] = result
            columns = [pa.array(values, kind) for values, kind in zip(zip(*inspected, strict=True), TYPES, strict=True)]
            candidates = pa.concat_tables([pa.table(columns, schema=QUALITY), cached.select(QUALITY.names)])
            quality = candidates.take(np.arange(len(paths)) + len(paths) * unchanged)
            records = pa.table([*current.columns, *quality.columns], schema=CACHED)
            is_old_enough = pc.less(records["mtime_ns"], time.time_ns() - MIN_AGE_NS)
            writer.write_table(records.filter(pc.and_(pc.is_valid(records["sha256"]), is_old_enough)))
            yield records.select(SCANNED.names)


class _PreviousScan:
    """The cached result of the previous scan. Memory holds a hash of each path; the rest is read from the file, a row group at a time."""

    def __init__(self, file: Path) -> None:
        """Open the cache and hash its paths.

        Raises:
            ValueError: the cache was written by another version.
            OSError: the cache is missing or damaged.
        """
        self.file = pq.ParquetFile(file, page_checksum_verification=True)
        if (self.file.schema_arrow.metadata or {}).get(b"pul.scan") != FORMAT:
            raise ValueError(f"{file} has another format")
        self.read_group = functools.lru_cache(maxsize=4)(self.file.read_row_group)  # a batch needs few groups: listings keep their order
        groups = range(self.file.num_row_groups)
        self.group_ends = np.cumsum([self.file.metadata.row_group(group).num_rows for group in groups], dtype=np.int64)
        hashes = [_hash_paths(self.file.read_row_group(group, ["path"])["path"]) for group in groups]
        unsorted = np.concatenate([np.zeros(0, np.int64), *hashes])
        self.order = np.argsort(unsorted)
        self.hashes = unsorted[self.order]

    def look_up(self, paths: pa.ChunkedArray) -> pa.Table:
        """Return a table with schema `CACHED`, one row per path: the cached record, or nulls.

        Where two paths have the same hash, the record may be that of the other path; compare the paths.
        """
        hashes = _hash_paths(paths)
        first, end = (np.searchsorted(self.hashes, hashes, side) for side in ("left", "right"))
        hits = np.flatnonzero(first < end)
        rows = self.order[first[hits]]
        groups = np.searchsorted(self.group_ends, rows, side="right")
        parts, positions = [CACHED.empty_table()], np.full(len(hashes), -1)
        for group in np.unique(groups):
            in_group = groups == group
            start = self.group_ends[group - 1] if group else 0
            positions[hits[in_group]] = sum(part.num_rows for part in parts) + np.arange(in_group.sum())
            parts.append(self.read_group(int(group)).take(rows[in_group] - start))
        return pa.concat_tables(parts).take(pa.array(positions, mask=positions < 0))


def _look_up(previous: _PreviousScan | None, paths: pa.ChunkedArray) -> pa.Table:
    """Return the cached records of the paths; all nulls if there is no readable cache."""
    if previous is not None:
        with contextlib.suppress(*UNREADABLE_CACHE):
            return previous.look_up(paths)
    return CACHED.empty_table().take(pa.nulls(len(paths), pa.int64()))


def _hash_paths(paths: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.fromiter(map(hash, paths.to_pylist()), np.int64, len(paths))


@contextlib.contextmanager
def _replace_on_success(file: Path) -> Iterator[pq.ParquetWriter]:
    """Yield a writer to a temporary file that replaces the cache if the block succeeds, and is removed if it fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".partial-{uuid.uuid4().hex}")
    try:
        with pq.ParquetWriter(partial, CACHED, compression="zstd", write_page_checksum=True) as writer:
            yield writer
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
