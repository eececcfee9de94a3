"""Artifacts: files that exist completely or not at all, named by their content, and passed between tasks by reference.

The name of an artifact is the digest of its bytes. Two equal runs therefore write the same file in either order, a damaged file can be
written again, and a reference stays valid when the folder moves.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pul_core.errors import UserError
from tasks.store.home import artifact_root, home
from tasks.store.users import register_process

provenance: ContextVar[dict[str, Any]] = ContextVar("provenance")
_verified: dict[str, tuple[Any, ...]] = {}


@contextlib.contextmanager
def made_by(step: str, /, **inputs: Any) -> Iterator[None]:
    """Record a step and its inputs (digests and plain values) in the metadata of the tables that are written in the block."""
    token = provenance.set({"step": step, "inputs": inputs})
    try:
        yield
    finally:
        provenance.reset(token)


class Artifact(BaseModel):
    """A reference to a file: its kind, its path below the artifact root, its digest and its number of rows."""

    model_config = ConfigDict(frozen=True)

    kind: str
    uri: str
    sha256: str
    rows: int
    seconds: float = 0.0

    def cache_token(self) -> str:
        """Return what enters the cache key of a step that reads this artifact."""
        return self.sha256


DISK_FULL = "no space left below {}: free some (pul gc), then Retry or pul resume"
REMEDIES = {errno.ENOSPC: DISK_FULL, errno.EDQUOT: DISK_FULL, errno.EROFS: "{} is read-only: make it writable, then Retry or pul resume"}


class DamagedArtifactError(RuntimeError):
    """An artifact is missing, or its bytes have changed since it was written."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: Retry or pul resume computes it again")
        self.what = what


def root_of(kind: str) -> str:
    """Return the folder or URL of a kind of artifacts: the artifact root, or a local folder for decoded images, which are memory-mapped."""
    return str(home() / "cache") if kind == "pixels" else artifact_root().rstrip("/")


def check_artifact_root() -> None:
    """Check that artifacts can be written below ``$PUL_ARTIFACTS``.

    Raises:
        UserError: its protocol is unknown or requires a package, or the folder cannot be written.
    """
    root = artifact_root()
    try:
        fs, path = fsspec.core.url_to_fs(root)
        fs.makedirs(path, exist_ok=True)
        partial = f"{path}/.partial-{uuid.uuid4().hex}"
        fs.pipe_file(partial, b"")
        fs.rm(partial)
    except Exception as error:  # each kind of store has errors of its own
        reason = (getattr(error, "strerror", None) or str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"artifacts cannot be written to {root.rpartition('@')[2]} ({reason}): set PUL_ARTIFACTS to another place"
        ) from error


def locate(artifact: Artifact) -> str:
    """Return the artifact's full path or URL."""
    return f"{root_of(artifact.kind)}/{artifact.uri}"


def verify(artifact: Artifact) -> str:
    """Check that an artifact exists and is unchanged, once per process and state of the file, and return its path.

    A local file that this process wrote was checked by writing it. Housekeeping keeps the file while this process lives.

    Raises:
        DamagedArtifactError: it is missing, or its digest differs.
    """
    register_process()
    fs, path = fsspec.core.url_to_fs(locate(artifact))
    if "://" not in locate(artifact):
        _mark_as_used(Path(path))
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        raise DamagedArtifactError(f"artifact {artifact.uri} is missing below {root_of(artifact.kind)}") from error
    state = _state(artifact.sha256, info)
    if _verified.get(path) != state:
        with fs.open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, hashlib.sha256).hexdigest()
        if sha256 != artifact.sha256:
            raise DamagedArtifactError(f"artifact {artifact.uri} is damaged (expected digest {artifact.sha256[:12]}, got {sha256[:12]})")
        _verified[path] = state
    return str(path)


def _state(sha256: str, info: dict[str, Any]) -> tuple[Any, ...]:
    """Return what is different if a file with this digest has changed since."""
    return sha256, info["size"], info.get("mtime"), info.get("ETag")


def _mark_as_used(path: Path) -> None:
    """Set the time of the last access of a file, which many file systems do not keep."""
    with contextlib.suppress(OSError):  # the file is missing, or another user owns it
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


class ArtifactWriter:
    """A binary file whose digest is computed while it is written, so that nothing may seek back.

    ``rows`` may be changed until the file is complete; ``artifact`` exists from then on.
    """

    artifact: Artifact

    def __init__(self, file: IO[bytes], rows: int) -> None:
        self.file, self.rows = file, rows
        self.digest = hashlib.sha256()
        self.closed = False  # read by pyarrow

    def write(self, data: Any) -> int:
        """Write bytes."""
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


@contextlib.contextmanager
def writing(kind: str, suffix: str, rows: int) -> Iterator[ArtifactWriter]:
    """Write an artifact under a temporary name; it gets its final name when the block ends without an error.

    Args:
        kind: the kind of the artifact and the name of its folder.
        suffix: extension of the file name, without the dot.
        rows: number of entries in the file.

    Raises:
        OSError: the disk is full or read-only; its message says what to do.
    """
    register_process()
    fs, root = fsspec.core.url_to_fs(root_of(kind))
    partial = f"{root}/{kind}/.partial-{uuid.uuid4().hex}"
    try:
        fs.makedirs(f"{root}/{kind}", exist_ok=True)
        with fs.open(partial, "wb") as file:
            writer = ArtifactWriter(file, rows)
            yield writer
        sha256 = writer.digest.hexdigest()
        uri = f"{kind}/{sha256[:32]}.{suffix}"
        state = _state(sha256, fs.info(partial))  # of the file as it was written: any later change is noticed
        fs.mv(partial, f"{root}/{uri}")
        if "://" not in root_of(kind):  # renamed, not copied
            _verified[f"{root}/{uri}"] = state
        writer.artifact = Artifact(kind=kind, uri=uri, sha256=sha256, rows=writer.rows)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fs.rm(partial)
        if isinstance(error, OSError) and error.errno in REMEDIES:
            raise OSError(error.errno, REMEDIES[error.errno].format(root)) from error
        raise


def write_bytes(kind: str, suffix: str, rows: int, data: bytes) -> Artifact:
    """Write an artifact from bytes in memory."""
    with writing(kind, suffix, rows) as writer:
        writer.write(data)
    return writer.artifact


def write_table(kind: str, table: pa.Table) -> Artifact:
    """Write a table as a Parquet artifact; its metadata names the step that made it."""
    return write_batches(kind, table.schema, table.to_batches(), table.num_rows)


def write_batches(kind: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], rows: int) -> Artifact:
    """Write a stream of record batches as one Parquet artifact, a row group per batch.

    Args:
        kind: the kind of the artifact and the name of its folder.
        schema: schema of the batches.
        batches: the record batches, in the order of their rows.
        rows: number of rows of all batches together.
    """
    metadata = {"pul.kind": kind, "pul.provenance": json.dumps(provenance.get({}), sort_keys=True)}
    compression = {field.name: "none" if pa.types.is_fixed_size_list(field.type) else "zstd" for field in schema}  # not of features
    with (
        writing(kind, "parquet", rows) as writer,
        pq.ParquetWriter(writer, schema.with_metadata(metadata), compression=compression, use_dictionary=False) as parquet,
    ):
        for batch in batches:
            parquet.write_batch(batch)
    return writer.artifact


def read_table(artifact: Artifact, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet artifact after checking its digest.

    Raises:
        DamagedArtifactError: it is missing or damaged.
    """
    path = verify(artifact)
    fs, _ = fsspec.core.url_to_fs(artifact_root())
    return pq.read_table(path, columns=columns, filesystem=fs)


def read_bytes(artifact: Artifact, length: int | None = None) -> bytes:
    """Read an artifact, or its first bytes, after checking its digest."""
    path = verify(artifact)
    fs, _ = fsspec.core.url_to_fs(artifact_root())
    return bytes(fs.cat_file(path, end=length))


def column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """Return a column as an array: (n,), or (n, d) for a column of vectors, whose values are not copied row by row."""
    chunks = table.column(name).combine_chunks()
    if pa.types.is_fixed_size_list(chunks.type):
        values: npt.NDArray[Any] = chunks.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(chunks), chunks.type.list_size)
    return np.asarray(chunks.to_numpy(zero_copy_only=False))


def vectors(values: npt.NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Return (n, d) values as an Arrow column of vectors, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), type=vector_type(values.shape[1]))


def vector_type(d: int) -> pa.DataType:
    """Return the type of a column of vectors. Its numbers are declared as not null, which halves the time to read them."""
    return pa.list_(pa.field("element", pa.float32(), nullable=False), d)
