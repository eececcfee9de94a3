"""Progress of a long step: a line in the log now and then and a bar in Prefect's UI, with speed and time left."""

import contextlib
import logging
import time
from collections.abc import Iterator

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

LOG_EVERY = 15.0  # seconds
DRAW_EVERY = 2.0


def step_logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """Return the run's logger, or a plain one outside a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("pul")


class Progress:
    """Counts what is done; shows it at most every few seconds."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self.note = ""
        self.started = self.logged = self.drawn = time.monotonic()
        self.logger = step_logger()
        self.bar = create_progress_artifact(0.0, description=what) if TaskRunContext.get() else None

    def advance(self, count: int) -> None:
        """Count some more as done."""
        self.done += count
        now = time.monotonic()
        if self.bar and now - self.drawn >= DRAW_EVERY:
            self.drawn = now
            update_progress_artifact(self.bar, min(100.0, 100 * self.done / max(self.total, 1)))  # type: ignore[arg-type]
        if now - self.logged >= LOG_EVERY:
            self.logged = now
            self.logger.info("%s: %s", self.what, self.describe(now))

    def describe(self, now: float) -> str:
        """Say how much is done, how fast, and what is left."""
        speed = self.done / max(now - self.started, 1e-9)
        left = max(0, round((self.total - self.done) / max(speed, 1e-9)))  # the total may be about right only
        return f"{self.done:,}/{self.total:,} {self.unit}, {speed:,.0f} {self.unit}/s, {left // 60}:{left % 60:02d} left{self.note}"


@contextlib.contextmanager
def progress(what: str, total: int, unit: str = "images") -> Iterator[Progress]:
    """Show the progress of a block and, at its end, its speed."""
    shown = Progress(what, total, unit)
    yield shown
    seconds = time.monotonic() - shown.started
    shown.logger.info("%s: %s %s in %.1f s%s", what, f"{shown.done:,}", unit, seconds, shown.note)
    if shown.bar:
        update_progress_artifact(shown.bar, 100.0)  # type: ignore[arg-type]
