"""Checkpoints of a step: the finished parts of a long step, from which it resumes after a crash; deleted when the step is done.

They are stored in ``$PUL_HOME/checkpoints`` under the step's cache key. A retry therefore resumes from them, as does a new run with the
same parameters, but not a run with edited code. One thread beside the step serialises and writes them.
"""

import contextlib
import contextvars
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tasks.engine.progress import step_logger
from tasks.engine.steps import running_key
from tasks.store.home import home

INTERVAL = "PUL_CHECKPOINT_SECONDS"  # environment variable: seconds of work that may be lost; 0 saves every part, which the fault tests do
DEFAULT_INTERVAL = 60.0


class StepCheckpoint:
    """The finished parts of a step by name, each a file in ``folder``; without a folder nothing is saved.

    Args:
        folder: the folder of the step.
        writer: the thread that writes; the caller shuts it down, which waits for the last write.
    """

    def __init__(self, folder: Path | None, writer: ThreadPoolExecutor) -> None:
        self.folder, self.writer = folder, writer
        self.interval = float(os.environ.get(INTERVAL) or DEFAULT_INTERVAL)
        self.started = time.monotonic()
        self.saved: dict[str, float] = {}  # time of the last save by name
        self.last: Future[None] | None = None

    def is_due(self, name: str) -> bool:
        """Return whether the interval has passed since this part was saved or, if it was not saved yet, since the step began."""
        return self.folder is not None and time.monotonic() - self.saved.get(name, self.started) >= self.interval

    def save(self, name: str, serialise: Callable[[], bytes | memoryview]) -> None:
        """Save a part, atomically and in the background; the previous part is complete when this returns.

        A part that cannot be saved is logged and does not stop the step.

        Args:
            name: the file name of the part; an earlier part of this name is replaced.
            serialise: returns the content; called in the thread of the writer, so it must not use what the step still changes.
        """
        if self.folder is None:
            return
        self.wait()
        self.saved[name] = time.monotonic()
        self.last = self.writer.submit(contextvars.copy_context().run, self._write, name, serialise)  # the context has the step's logger

    def wait(self) -> None:
        """Wait until the last part that was saved is complete."""
        if self.last:
            self.last.result()

    def _write(self, name: str, serialise: Callable[[], bytes | memoryview]) -> None:
        assert self.folder is not None
        data = serialise()
        partial = self.folder / f".partial-{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.writelines((hashlib.sha256(data).digest(), data))
            partial.replace(self.folder / name)
        except OSError as error:  # the disk is full, or an equal step of another run has finished and removed the folder
            with contextlib.suppress(OSError):
                partial.unlink()
            message = "Checkpoint %s was not saved (%s): after a crash this part is computed again."
            step_logger().warning(message, name, error.strerror or error)

    def load(self, name: str) -> bytes | None:
        """Return a part, or None if it was not saved or is damaged."""
        if self.folder is None or not (path := self.folder / name).is_file():
            return None
        content = path.read_bytes()
        digest, data = content[:32], content[32:]
        if hashlib.sha256(data).digest() != digest:
            step_logger().warning("Checkpoint %s is damaged: this part is computed again.", path)
            return None
        return data


@contextlib.contextmanager
def step_checkpoint() -> Iterator[StepCheckpoint]:
    """Open the checkpoint of the running step and delete it at the end of the block, unless the block raises.

    Outside a step nothing is saved.
    """
    key = running_key.get()
    with ThreadPoolExecutor(1, "checkpoint") as writer:  # also waits for the last part if the block raises
        checkpoint = StepCheckpoint(home() / "checkpoints" / key if key else None, writer)
        yield checkpoint
        checkpoint.wait()
    if checkpoint.folder:
        shutil.rmtree(checkpoint.folder, ignore_errors=True)
