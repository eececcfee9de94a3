"""What a long step has finished so far, kept so that after a crash the step itself goes on; deleted when the step is done.

Kept below ``$PUL_HOME/checkpoints`` under the step's cache key: whoever asks for the same step, a retry or a new run with the same
parameters, goes on with it, and an edited core does not.
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


class Kept:
    """Named pieces of a step's work."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def save(self, name: str, data: bytes) -> None:
        """Keep a piece, whole or not at all."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f".partial-{uuid.uuid4().hex}"
            with partial.open("wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
            partial.replace(self.folder / name)
        except OSError as error:  # disk full, or an equal step that was done first cleared the folder away: work goes on without it
            step_logger().warning("%s was not kept (%s): after a crash that part is computed again", name, error.strerror or error)

    def load(self, name: str) -> bytes | None:
        """Return a piece; None if it was not kept, or is damaged and has to be made again."""
        if self.folder is None or not (path := self.folder / name).is_file():
            return None
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            step_logger().warning("checkpoint %s is damaged: that part is computed again", path)
            return None
        return data[32:]


@contextlib.contextmanager
def kept() -> Iterator[Kept]:
    """Give the running step a place for its finished pieces; outside a step nothing is kept."""
    key = running_key()
    place = Kept(home() / "checkpoints" / key if key else None)
    yield place
    if place.folder:  # after an error or a crash it stays
        shutil.rmtree(place.folder, ignore_errors=True)
