"""Progress of a long step: a regular line in the log and a progress bar in Prefect's UI, with speed and remaining time."""

import contextlib
import logging
import time
from collections.abc import Iterator

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

LOG_INTERVAL_SECONDS = 15.0
BAR_INTERVAL_SECONDS = 2.0


def step_logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """Return Prefect's logger of the current run, or the logger ``pul`` outside a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("pul")


class Progress:
    """Counts processed units and reports them every few seconds. ``note``, a text, is appended to each line of the log.

    Args:
        description: shown in the log and in Prefect's UI.
        total: the expected number of units; need not be exact.
        unit: what is counted, in the plural.
    """

    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self.note = ""
        self.started = self.last_logged = self.last_updated = time.monotonic()
        self.logger = step_logger()
        self.progress_bar = create_progress_artifact(0.0, description=description) if TaskRunContext.get() else None

    def advance(self, count: int) -> None:
        """Add to the number of processed units."""
        self.done += count
        now = time.monotonic()
        if self.progress_bar and now - self.last_updated >= BAR_INTERVAL_SECONDS:
            self.last_updated = now
            update_progress_artifact(self.progress_bar, min(100.0, 100 * self.done / max(self.total, 1)))  # type: ignore[arg-type]
        if now - self.last_logged >= LOG_INTERVAL_SECONDS:
            self.last_logged = now
            self.logger.info("%s: %s", self.description, self.describe(now))

    def describe(self, now: float) -> str:
        """Return the progress at a time (of ``time.monotonic``) as text: units, speed and remaining time."""
        speed = self.done / max(now - self.started, 1e-9)
        remaining = max(0, round((self.total - self.done) / max(speed, 1e-9)))
        time_left = f"{remaining // 60}:{remaining % 60:02d} left"
        return f"{self.done:,}/{self.total:,} {self.unit}, {speed:,.0f} {self.unit}/s, {time_left}{self.note}"


@contextlib.contextmanager
def progress(description: str, total: int, unit: str = "images") -> Iterator[Progress]:
    """Report the progress of a block and, when the block is done, its duration.

    Args:
        description: shown in the log and in Prefect's UI.
        total: the expected number of units; need not be exact.
        unit: what is counted, in the plural.
    """
    reporter = Progress(description, total, unit)
    yield reporter
    seconds = time.monotonic() - reporter.started
    reporter.logger.info("%s: %s %s in %.1f s%s", description, f"{reporter.done:,}", unit, seconds, reporter.note)
    if reporter.progress_bar:
        update_progress_artifact(reporter.progress_bar, 100.0)  # type: ignore[arg-type]
