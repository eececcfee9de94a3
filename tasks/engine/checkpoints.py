"""Checkpoints of a step: the finished parts of a long step, from which it resumes after a crash; deleted when the step is done.

They are stored in ``$PUL_HOME/checkpoints`` under the step's cache key. A retry therefore resumes from them, as does a new run with the
same parameters, but not a run with edited code.
"""

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from tasks.engine.progress import step_logger
from tasks.engine.steps import running_key
from tasks.store.home import home


class StepCheckpoint:
    """The finished parts of a step by name, each a file in ``folder``; without a folder nothing is saved."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def save(self, name: str, data: bytes) -> None:
        """Save a part atomically. A part that cannot be saved is logged and does not stop the step."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f".partial-{uuid.uuid4().hex}"
            with partial.open("wb") as file:
                file.writelines((hashlib.sha256(data).digest(), data))
            partial.replace(self.folder / name)
        except OSError as error:  # the disk is full, or an equal step of another run has finished and removed the folder
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
    checkpoint = StepCheckpoint(home() / "checkpoints" / key if key else None)
    yield checkpoint
    if checkpoint.folder:
        shutil.rmtree(checkpoint.folder, ignore_errors=True)
