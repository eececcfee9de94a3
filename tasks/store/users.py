"""The processes that use the store: each holds a lock on its own file in ``$PUL_HOME/processes`` until it ends, however it ends.

Every process that reads or writes an artifact is one of them: flow runs of any kind, also in workers, and `pul data check`. So housekeeping
knows what is in use without MLflow, which records flow `pul` only, and without process ids, which differ between machines and containers.
"""

import contextlib
import fcntl
import functools
import os
import shlex
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from pul_core.errors import DataError
from tasks.store.home import home


class StoreUser(NamedTuple):
    """A process that uses the store: a description for messages, and when it began to, in seconds since the epoch."""

    description: str
    since: float


def register_process() -> None:
    """Make this process known to housekeeping until it ends; if housekeeping is under way, wait until it is done."""
    _register(home() / "processes")


@contextlib.contextmanager
def housekeeping() -> Iterator[list[StoreUser]]:
    """Yield the other processes that use the store, for a block during which no further process begins to.

    Raises:
        DataError: the file system has no locks.
    """
    folder = home() / "processes"
    own = _register(folder)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_gate(folder))
        except OSError as error:
            raise DataError(f"{folder} cannot be locked ({error.strerror}): make it writable, on a file system with locks") from error
        yield _users(folder, own)


@functools.cache
def _register(folder: Path) -> Path | None:
    """Create and lock the file of this process, and delete those of processes that have ended."""
    try:
        with _gate(folder):
            _users(folder, None)
            path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            file = path.open("w", encoding="utf-8")
            fcntl.flock(file, fcntl.LOCK_EX)
            _open_files.append(file)
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            file.write(f"process {os.getpid()} on {socket.gethostname()} ({command})")
            file.flush()
    except OSError:  # the home is read-only or full, or its file system has no locks: that must not prevent reading
        return None
    return path


_open_files: list[IO[str]] = []  # a lock ends when its file is closed


@contextlib.contextmanager
def _gate(folder: Path) -> Iterator[None]:
    """Let one process at a time register or run housekeeping."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gate").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _users(folder: Path, own: Path | None) -> list[StoreUser]:
    """Return the processes that hold their files, without this one, and delete the files that no process holds."""
    users = []
    for path in sorted(folder.glob("*-*")):
        if path == own:
            continue
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            except BlockingIOError:
                users.append(StoreUser(file.read(), path.stat().st_mtime))
    return users
