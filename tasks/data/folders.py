"""Atomic output folders: written under a hidden name in the same parent folder and renamed when they are complete."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pul_core.errors import DataError


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to; it is renamed to `out` if the block succeeds and removed if it fails.

    Raises:
        DataError: `out` already exists.
    """
    out = out.expanduser().absolute()
    if out.exists() or out.is_symlink():
        raise DataError(f"{out} already exists and is never overwritten: choose a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".partial-{uuid.uuid4().hex}"
    partial.mkdir()
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
