"""What this process is doing now: its steps, how far the current one is, and the iterations that are done.

Steps write it and the display of a command reads it several times a second, in another thread. Nothing is printed or stored here, and no
result depends on it.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal


class Count:
    """A number of processed units, with speed and remaining time. ``note`` is a text about the last of them.

    Args:
        description: what is done.
        total: the expected number of units; need not be exact.
        unit: what is counted, in the plural.

    Example:
        >>> count = Count("draw", 100, "images")
        >>> count.done, count.note = 50, ", epoch 1/2"
        >>> count.describe(count.started + 25)
        '50/100 images, 2.0 images/s, 0:25 left, epoch 1/2'
    """

    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = self.restored = 0
        self.note = ""
        self.started = time.monotonic()
        self.is_finished = False

    def speed(self, now: float) -> float:
        """Return the units per second at a time (of ``time.monotonic``), without those that an earlier process did."""
        return (self.done - self.restored) / max(now - self.started, 1e-9)

    def speed_text(self, now: float) -> str:
        """Return the speed with its unit, or nothing before the first unit is done."""
        speed = self.speed(now)
        if 0 < speed < 0.05:  # it would be 0.0
            return f"{1 / speed:.0f} s each"
        return f"{speed:,.{0 if speed >= 10 else 1}f} {self.unit}/s" if speed else ""

    def time_left(self, now: float) -> str:
        """Return the remaining time as minutes and seconds, or nothing before the first unit is done."""
        speed = self.speed(now)
        return f"{format_seconds(max(0, self.total - self.done) / speed)} left" if speed else ""

    def describe(self, now: float) -> str:
        """Return the progress as text: units, speed and remaining time."""
        parts = [f"{self.done:,}/{self.total:,} {self.unit}", self.speed_text(now), self.time_left(now)]
        return ", ".join(filter(None, parts)) + self.note


@dataclass
class Activity:
    """A step, or other work that takes a while; ``seconds`` is None while it is in progress."""

    name: str
    started: float = field(default_factory=time.monotonic)
    outcome: Literal["done", "cached", "failed", "stopped"] = "done"
    seconds: float | None = None
    count: Count | None = None


@dataclass
class Status:
    """The run, all activities in the order in which they began, and the metrics of each iteration that is done."""

    run: str = ""
    activities: list[Activity] = field(default_factory=list)
    iterations: dict[int, dict[str, float]] = field(default_factory=dict)

    def current(self) -> Activity | None:
        """Return the innermost activity that is in progress."""
        return next((activity for activity in reversed(self.activities) if activity.seconds is None), None)


status = Status()


@contextlib.contextmanager
def activity(name: str) -> Iterator[Activity]:
    """Make a block the current activity."""
    current = Activity(name)
    status.activities.append(current)
    try:
        yield current
    except BaseException as error:
        current.outcome = "failed" if isinstance(error, Exception) else "stopped"
        raise
    finally:
        current.seconds = time.monotonic() - current.started


def format_seconds(seconds: float) -> str:
    """Return a duration as minutes and seconds, from an hour on with hours.

    Example:
        >>> format_seconds(7.4), format_seconds(754), format_seconds(9000)
        ('0:07', '12:34', '2:30:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
