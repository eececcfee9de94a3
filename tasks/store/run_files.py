"""The artifacts of a run by their readable names, found by the links in its folder or by the records of a store elsewhere."""

import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.store.artifacts import DamagedArtifactError
from tasks.store.home import artifact_root, home
from tasks.store.records import read_records
from tasks.store.users import register_process

Uris = dict[str, str]  # path of an artifact below the artifact root (KIND/DIGEST.SUFFIX) by its readable name, e.g. "clusters"


def run_files(run_id: str) -> tuple[Uris, dict[int, Uris]]:
    """Return the artifacts of a run itself, and those of each iteration.

    The names are those of the links in the run's folder: images, labels, model, features, clusters, reliable, scores and so on.
    """
    folder = home() / "runs" / run_id
    parts = {part: _linked(folder / part) for part in ("", *(path.name for path in folder.glob("iteration=*")))}
    for record, uris in read_records().items():
        name, _, part = record.partition("/")
        if name == run_id:
            parts[part] = _named(uris) | parts.get(part, {})
    iterations = {int(part.partition("=")[2]): uris for part, uris in parts.items() if part}
    return parts.get("", {}), dict(sorted(iterations.items()))


def _linked(folder: Path) -> Uris:
    return {link.stem: "/".join(link.readlink().parts[-2:]) for link in folder.glob("*") if link.is_symlink()}


def _named(uris: list[str]) -> Uris:
    """Name the artifacts in a record by their kinds; a second table of scores is the one with statistics by camera."""
    names: Uris = {}
    for uri in uris:
        kind = uri.partition("/")[0]
        name = "model" if kind == "models" else kind
        names[f"{name}_statistics" if name in names else name] = uri
    return names


def exists(uri: str) -> bool:
    """Return whether an artifact is still in the store."""
    fs, root = fsspec.core.url_to_fs(artifact_root().rstrip("/"))
    return bool(fs.exists(f"{root}/{uri}"))


def read_named(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet artifact by its path below the artifact root, after comparing its digest with its name.

    Raises:
        DamagedArtifactError: it is missing, or its bytes have changed.
    """
    register_process()
    fs, root = fsspec.core.url_to_fs(artifact_root().rstrip("/"))
    path = f"{root}/{uri}"
    try:
        with fs.open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, hashlib.sha256).hexdigest()
    except FileNotFoundError as error:
        raise DamagedArtifactError(f"artifact {uri} is missing below {artifact_root()}") from error
    if not sha256.startswith(digest_in(uri)):
        raise DamagedArtifactError(f"artifact {uri} is damaged (its digest is {sha256[:12]})")
    return pq.read_table(path, columns=columns, filesystem=fs)


def digest_in(uri: str) -> str:
    """Return the digest in the name of an artifact: the first 32 hexadecimal digits of its SHA-256."""
    return uri.rpartition("/")[2].partition(".")[0]


def inputs_of(table: pa.Table) -> dict[str, Any]:
    """Return the inputs of the step that wrote a table, digests and plain values, from the table's metadata."""
    provenance = json.loads((table.schema.metadata or {}).get(b"pul.provenance", b"{}"))
    return dict(provenance.get("inputs", {}))
