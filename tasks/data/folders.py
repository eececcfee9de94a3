"""Folders that exist whole or not at all: written under a hidden name beside their place, renamed when they are done."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pul_core.errors import DataError


@contextlib.contextmanager
def writing_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to write in; it becomes `out` when the block ends without an error, and is removed when it does not.

    Raises:
        DataError: something lies at `out` already.
    """
    out = out.expanduser().absolute()
    if out.exists() or out.is_symlink():
        raise DataError(f"{out} exists already: name a folder that does not, nothing is written over")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".partial-{uuid.uuid4().hex}"
    partial.mkdir()
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
