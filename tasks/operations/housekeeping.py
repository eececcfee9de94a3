"""Garbage collection and integrity checks of ``$PUL_HOME``.

Garbage are files that no run needs: abandoned checkpoints, partial files, unused caches and artifacts that no run refers to.
"""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.store.home import home

DAY = 86_400.0  # seconds


class Garbage(NamedTuple):
    """A file or folder that can be removed, its size in bytes and the reason."""

    path: Path
    bytes: int
    reason: str


class Damage(NamedTuple):
    """A damaged or missing file that a run refers to."""

    path: Path
    problem: str


def find_garbage(*, older_than_days: float, keep_iterations: bool = True) -> list[Garbage]:
    """List the files and folders that can be removed; a step that needs one of them again computes it again.

    Args:
        older_than_days: minimum number of days since the file was last written or read.
        keep_iterations: False also removes the features and models of all iterations but the first and the last of every run.
    """
    root, cutoff = home(), time.time() - older_than_days * DAY
    referenced = _referenced_files(root, keep_iterations=keep_iterations)
    reasons = dict.fromkeys(root.glob("checkpoints/*"), "checkpoint of an unfinished step")
    for partial in (*root.glob("artifacts/*/.partial-*"), *root.glob("cache/*/.partial-*")):
        reasons[partial] = "partial file of a process that died"
    for file in root.glob("cache/pixels/*.u8"):
        reasons.setdefault(file, "decoded images that were not used recently")
    for file in root.glob("artifacts/*/*"):
        if file not in referenced:
            reasons.setdefault(file, "no run refers to it")
    return [Garbage(path, _size(path), reason) for path, reason in sorted(reasons.items()) if _last_used(path) < cutoff]


def remove(garbage: list[Garbage]) -> None:
    """Remove files and folders, and the links of iterations to them."""
    for item in garbage:
        if item.path.is_dir():
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


def _referenced_files(root: Path, *, keep_iterations: bool) -> set[Path]:
    """Return the files that runs refer to and that are to be kept."""
    referenced = set()
    for run in root.glob("runs/*"):
        iterations = sorted(run.glob("iteration=*"), key=lambda folder: int(folder.name.split("=")[1]))
        for link in (*run.glob("*.parquet"), *(link for folder in iterations for link in folder.iterdir())):
            is_large = link.stem in ("features", "model")
            if keep_iterations or not is_large or link.parent in (iterations[0], iterations[-1]):
                referenced.add(link.resolve())
    return referenced


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
