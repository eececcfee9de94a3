"""Progress of a long step: a regular line in the log, a progress bar in Prefect's UI, and `status`, which the command displays."""

import contextlib
import logging
import time
from collections.abc import Iterator

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from tasks.engine.status import Count, activity, status

LOG_INTERVAL_SECONDS = 15.0
BAR_INTERVAL_SECONDS = 2.0


def step_logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """Return Prefect's logger of the current run, or the logger ``pul`` outside a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("pul")


class Progress(Count):
    """Counts processed units and reports them every few seconds. ``note``, a text, is appended to each line of the log.

    Args:
        description: shown in the log and in Prefect's UI.
        total: the expected number of units; need not be exact.
        unit: what is counted, in the plural.
    """

    def __init__(self, description: str, total: int, unit: str) -> None:
        super().__init__(description, total, unit)
        self.last_logged = self.last_updated = self.started
        self.logger = step_logger()
        self.progress_bar = create_progress_artifact(0.0, description=description) if TaskRunContext.get() else None
        if current := status.current():
            current.count = self

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

    def restore(self, count: int) -> None:
        """Add units that an earlier process did: they count, but not for the speed."""
        self.restored += count
        self.advance(count)


@contextlib.contextmanager
def progress(description: str, total: int, unit: str = "images") -> Iterator[Progress]:
    """Report the progress of a block and, when the block is done, its duration.

    Args:
        description: shown in the log and in Prefect's UI.
        total: the expected number of units; need not be exact.
        unit: what is counted, in the plural.
    """
    with contextlib.nullcontext() if TaskRunContext.get() else activity(description):
        reporter = Progress(description, total, unit)
        yield reporter
        reporter.is_finished = True
        seconds = time.monotonic() - reporter.started
        reporter.logger.info("%s: %s %s in %.1f s%s", description, f"{reporter.done:,}", unit, seconds, reporter.note)
        if reporter.progress_bar:
            update_progress_artifact(reporter.progress_bar, 100.0)  # type: ignore[arg-type]
