"""What may go, and what is wrong: unfinished work nobody goes on with, files no run refers to, caches nobody reads, damaged artifacts."""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.store.home import home

DAY = 86_400.0


class Rubbish(NamedTuple):
    """A file or folder that may be removed."""

    path: Path
    bytes: int
    why: str


class Damage(NamedTuple):
    """A file that a run refers to and that is not what it was."""

    path: Path
    what: str


def find_rubbish(*, older_than_days: float, keep_iterations: bool = True) -> list[Rubbish]:
    """List what may be removed. Whatever is needed again is computed again.

    Args:
        older_than_days: nothing that was written or read since then.
        keep_iterations: False also gives up features and models between iteration 0 and the last one of every run.
    """
    root, before = home(), time.time() - older_than_days * DAY
    wanted = _linked(root, between=keep_iterations)
    found: dict[Path, str] = {}
    for folder in root.glob("checkpoints/*"):
        found[folder] = "unfinished work of a step that nobody goes on with"
    for partial in (*root.glob("artifacts/*/.partial-*"), *root.glob("cache/*/.partial-*")):
        found[partial] = "half-written by a process that died"
    for file in root.glob("cache/pixels/*.u8"):
        found.setdefault(file, "decoded images, not read lately")
    for file in root.glob("artifacts/*/*"):
        if file not in wanted:
            found.setdefault(file, "no run refers to it")
    return [Rubbish(path, _size(path), why) for path, why in sorted(found.items()) if _last_used(path) < before]


def remove(rubbish: list[Rubbish]) -> None:
    """Remove files and folders, and links of runs that then point nowhere."""
    for item in rubbish:
        if item.path.is_dir():
            shutil.rmtree(item.path, ignore_errors=True)
        else:
            item.path.unlink(missing_ok=True)
    for link in home().glob("runs/*/iteration=*/*"):
        if link.is_symlink() and not link.exists():
            link.unlink()


def find_damage() -> Iterator[Damage]:
    """Compare the digest of every artifact that a run refers to with its name."""
    for link in sorted(home().glob("runs/**/*")):
        if not link.is_symlink():
            continue
        file = link.resolve()
        if not file.exists():
            yield Damage(link, "is missing (removed, or by pul gc)")
        elif not digest_of(file).startswith(file.stem):
            yield Damage(file, "is damaged: its bytes are not those its name says")


def sizes() -> dict[str, int]:
    """Return how many bytes lie in each folder below ``$PUL_HOME``."""
    return {part.name: _size(part) for part in sorted(home().iterdir())}


def _linked(root: Path, *, between: bool) -> set[Path]:
    """Return the files that runs refer to."""
    wanted = set()
    for run in root.glob("runs/*"):
        iterations = sorted(run.glob("iteration=*"), key=lambda folder: int(folder.name.split("=")[1]))
        for link in (*run.glob("*.parquet"), *(link for folder in iterations for link in folder.iterdir())):
            bulky = link.stem in ("features", "model")
            if between or not bulky or link.parent in (iterations[0], iterations[-1]):
                wanted.add(link.resolve())
    return wanted


def _last_used(path: Path) -> float:
    times = [0.0]
    for part in (path, *path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a step that is at work renames its files
            status = part.stat()
            times.append(status.st_mtime if part.is_dir() else max(status.st_mtime, status.st_atime))
    return max(times)


def _size(path: Path) -> int:
    parts = path.rglob("*") if path.is_dir() else (path,)
    total = 0
    for part in parts:
        with contextlib.suppress(FileNotFoundError):
            total += part.stat().st_size if part.is_file() and not part.is_symlink() else 0
    return total


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
