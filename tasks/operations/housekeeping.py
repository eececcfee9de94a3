"""Garbage collection and integrity checks of ``$PUL_HOME`` and of the store, wherever it is.

Garbage are files that no run needs: abandoned checkpoints, partial files, unused caches and artifacts that no run refers to.
"""

import contextlib
import hashlib
import math
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec

from pul_core.errors import DataError
from tasks.store.home import artifact_root, home
from tasks.store.records import read_records

DAY = 86_400.0  # seconds
ARTIFACT = re.compile(r"\w+/([0-9a-f]{32}\.\w+|\.partial-\w+)")  # a store elsewhere may hold other files, too
PARTIAL = "partial file of a process that died"


class Garbage(NamedTuple):
    """A file or folder that can be removed, a URL if the store is at one; its size in bytes and the reason."""

    path: Path | str
    bytes: int
    reason: str


class Damage(NamedTuple):
    """A damaged or missing file that a run refers to."""

    path: Path
    problem: str


def find_garbage(*, older_than_days: float, keep_iterations: bool = True, in_use_since: float = math.inf) -> list[Garbage]:
    """List the files and folders that can be removed; a step that needs one of them again computes it again.

    Args:
        older_than_days: minimum number of days since the file was last written or read; at a URL, since it was written.
        keep_iterations: False also removes the features and models of all iterations but the first and the last of every run.
        in_use_since: when the oldest process that uses the store began to; what was used since is kept.

    Raises:
        DataError: the store is at a URL, and it is not known what a run refers to or how old files are.
    """
    root, cutoff = home(), min(time.time() - older_than_days * DAY, in_use_since)
    reasons = dict.fromkeys(root.glob("checkpoints/*"), "checkpoint of an unfinished step")
    for file in root.glob("cache/pixels/*.u8"):
        reasons[file] = "decoded images that were not used recently"
    for file in root.glob("cache/*/.partial-*"):
        reasons[file] = PARTIAL
    in_home = [Garbage(path, _size(path), reason) for path, reason in sorted(reasons.items()) if _last_used(path) < cutoff]
    needed = _needed_artifacts(keep_iterations=keep_iterations)
    artifacts = _artifacts_at_url(cutoff) if "://" in artifact_root() else _artifacts_on_disk(cutoff)
    return in_home + [
        Garbage(path, size, PARTIAL if "/.partial-" in uri else "no run refers to it") for uri, path, size in artifacts if uri not in needed
    ]


def remove(garbage: list[Garbage]) -> None:
    """Remove files and folders, and the links of iterations to them."""
    for item in garbage:
        if isinstance(item.path, str):
            fs, path = fsspec.core.url_to_fs(item.path)
            fs.rm(path)
        elif item.path.is_dir():
            shutil.rmtree(item.path, ignore_errors=True)
        else:
            item.path.unlink(missing_ok=True)
    remove_dangling_links("runs/*/iteration=*/*")


def remove_dangling_links(pattern: str) -> None:
    """Remove the links in ``$PUL_HOME`` that match a glob pattern and whose files no longer exist."""
    for link in home().glob(pattern):
        if link.is_symlink() and not link.exists():
            link.unlink()


def find_damage() -> Iterator[Damage]:
    """Compare the digest of every artifact that a run refers to with its file name."""
    for link in sorted(home().glob("runs/**/*")):
        if not link.is_symlink():
            continue
        file = link.resolve()
        if not file.exists():
            yield Damage(link, "is missing (removed by hand or by pul gc)")
        elif not digest_of(file).startswith(file.stem):
            yield Damage(file, "is damaged: its SHA-256 does not match its name")


def sizes() -> dict[str, int]:
    """Return the size in bytes of each file and folder in ``$PUL_HOME``, by name."""
    return {path.name: _size(path) for path in sorted(home().iterdir())}


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _needed_artifacts(*, keep_iterations: bool) -> set[str]:
    """Return the paths, below the artifact root, of the artifacts that runs refer to and that are to be kept."""
    folders = read_records()
    links = [link for link in home().glob("runs/*/**/*") if link.is_symlink()]
    linked = {link.relative_to(home() / "runs").parts[0] for link in links}
    for config in home().glob("runs/*/config.json"):
        if "://" in artifact_root() and config.parent.name not in linked | set(folders):
            raise DataError(
                f"{artifact_root()} has no record of run {config.parent.name}, so its files cannot be distinguished from garbage: if the "
                f"run is no longer needed, delete {config.parent}"
            )
    for link in links:
        folders.setdefault(str(link.parent.relative_to(home() / "runs")), []).append("/".join(link.resolve().parts[-2:]))
    iterations: dict[str, list[int]] = {}
    for folder in folders:
        run_id, _, iteration = folder.partition("/iteration=")
        iterations.setdefault(run_id, []).extend([int(iteration)] if iteration else [])
    needed = set()
    for folder, uris in folders.items():
        run_id, _, iteration = folder.partition("/iteration=")
        is_thinned = not keep_iterations and iteration and min(iterations[run_id]) < int(iteration) < max(iterations[run_id])
        needed |= {uri for uri in uris if not (is_thinned and uri.startswith(("features/", "models/")))}
    return needed


def _artifacts_on_disk(cutoff: float) -> Iterator[tuple[str, Path, int]]:
    """Yield the path below the artifact root, the full path and the size of each artifact that was last used before a time."""
    for path in sorted(Path(artifact_root()).glob("*/*")):
        uri = f"{path.parent.name}/{path.name}"
        if ARTIFACT.fullmatch(uri) and _last_used(path) < cutoff:
            yield uri, path, _size(path)


def _artifacts_at_url(cutoff: float) -> Iterator[tuple[str, str, int]]:
    """Yield the path below the artifact root, the URL and the size of each artifact that was written before a time.

    Raises:
        DataError: the file system does not report when a file was written.
    """
    fs, root = fsspec.core.url_to_fs(artifact_root().rstrip("/"))
    for path, info in sorted((fs.find(root, detail=True) if fs.exists(root) else {}).items()):
        uri = path.removeprefix(f"{root}/")
        if not ARTIFACT.fullmatch(uri):
            continue
        try:
            written = fs.modified(path).timestamp()
        except NotImplementedError as error:
            raise DataError(f"{artifact_root()} does not report when a file was written: delete old files there by other means") from error
        if written < cutoff:
            yield uri, fs.unstrip_protocol(path), info["size"]


def _last_used(path: Path) -> float:
    times = [0.0]
    for part in (path, *path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a running step may rename its files meanwhile
            status = part.stat()
            times.append(status.st_mtime if part.is_dir() else max(status.st_mtime, status.st_atime))
    return max(times)


def _size(path: Path) -> int:
    total = 0
    for part in path.rglob("*") if path.is_dir() else (path,):
        with contextlib.suppress(FileNotFoundError):
            total += part.stat().st_size if part.is_file() and not part.is_symlink() else 0
    return total
