"""The progress display of a command: the current step with its bar, speed and remaining time, above a table of the run's iterations.

It is shown on a terminal. Meanwhile everything that libraries and subprocesses write to stdout or stderr goes to a log file, whose path is
shown. Without a terminal, and with ``--verbose``, there is no display, and the log is printed instead.
"""

import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, NamedTuple

import typer
from rich.console import Console, ConsoleDimensions
from rich.live import Live
from rich.text import Text

from deployments.errors import escape_unprintable
from deployments.tables import ITERATION_COLUMNS, iteration_cells
from tasks.engine.status import Activity, Status, activity, format_seconds, status
from tasks.store.home import home

REFRESHES_PER_SECOND = 5
MAX_WIDTH = 84  # columns; a terminal that becomes narrower breaks lines that are as wide as it was
FINISHED_SHOWN = 4  # steps
WARNINGS_SHOWN = 20
STYLES = {"done": "dim", "cached": "dim", "failed": "red", "stopped": "yellow"}


class Screen(NamedTuple):
    """Where a command prints: ``say`` prints a line for the user, ``log`` is the path of the log file, or None if the log is printed."""

    say: Callable[[str], None]
    log: str | None


@contextlib.contextmanager
def display(command: str, *, verbose: bool) -> Iterator[Screen]:
    """Show the progress of a block on stderr. It disappears at the end of the block; if a run fails, its last state remains.

    Args:
        command: the name of the command; the log file is named after it.
        verbose: print the log instead.
    """
    logging.getLogger("pul").setLevel(logging.INFO)  # work outside a flow run, such as drawing people
    if verbose or not can_display():
        yield Screen(functools.partial(typer.echo, err=True), None)
        return
    path = home() / "logs" / f"{command}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    with _output_in(path) as terminal:
        console = Console(file=terminal, highlight=False, markup=False, emoji=False)
        screen = Screen(console.print, _shorten(path))
        live = Live(
            get_renderable=lambda: _render(console, status, screen.log),
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with live:
            with activity("load the libraries"):
                from tasks import preflight  # noqa: F401 imports Prefect, which then removes the handlers of others
            warnings = _Warnings(screen)
            logging.getLogger().addHandler(warnings)
            try:
                yield screen
                live.transient = True
            finally:
                logging.getLogger().removeHandler(warnings)
                live.transient = live.transient or not status.run


def can_display() -> bool:
    """Return whether stderr is a terminal that can move its cursor, in front of a person."""
    is_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown") and not is_ci


@contextlib.contextmanager
def _output_in(path: Path) -> Iterator[IO[str]]:
    """Write all output of this process and its subprocesses to a file, and yield the terminal that stderr was.

    Afterwards stdout and ``sys.stderr`` are what they were. File descriptor 2 remains the file: what libraries write when the process ends
    is not for the user.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    terminal = os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding, errors="backslashreplace")
    stdout = os.dup(1) if sys.stdout.isatty() else None
    with path.open("ab") as log:
        os.dup2(log.fileno(), 2)
        if stdout is not None:
            sys.stdout.flush()
            os.dup2(log.fileno(), 1)
    try:
        yield terminal
    finally:
        if stdout is not None:
            sys.stdout.flush()
            os.dup2(stdout, 1)
        print("\x1b[?25h", end="", file=terminal, flush=True)  # shows the cursor, even if Ctrl-C was pressed twice
        sys.stderr = terminal
        if path.stat().st_size == 0:
            path.unlink()


class _Warnings(logging.Handler):
    """Prints the first warnings of the steps above the display."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen, self._count = screen, 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno > logging.WARNING or record.name not in ("pul", "prefect.task_runs", "prefect.flow_runs"):
            return  # an error ends the command, which reports it
        self._count += 1
        if self._count <= WARNINGS_SHOWN:
            self._screen.say(f"warning: {escape_unprintable(record.getMessage())}")
        elif self._count == WARNINGS_SHOWN + 1:
            self._screen.say(f"warning: there are more warnings, see {self._screen.log}")


def _render(console: Console, status: Status, log: str | None) -> Text:
    """Return a display that fits the terminal: the last steps, the current one with its bar, the iterations, and where to read more."""
    columns, lines = os.get_terminal_size(console.file.fileno())
    console.size = ConsoleDimensions(columns or 80, lines or 24)  # rich would ask stdin
    width = min(console.width - 1, MAX_WIDTH)
    activities = list(status.activities)
    current = status.current() or next(reversed(activities), None)  # between two steps: the previous one
    is_running = current is not None and current.outcome not in ("failed", "stopped")
    finished = [step for step in activities if step.seconds is not None and not (is_running and step is current)]
    steps = finished[-min(FINISHED_SHOWN, max(1, console.height - 15)) :]
    footer = [f"  run {status.run}"] * bool(status.run) + [f"  log {log}"]
    num_rows = console.height - len(steps) - len(footer) - 8  # the other lines, and one below the display
    parts = [Text(""), *(_finished_step(step, width) for step in steps)]
    if current and is_running:
        parts += _current_step(current, width, "=-" if console.options.ascii_only else "━─")
    if status.iterations and num_rows > 0:
        parts += [Text(""), *_table(sorted(status.iterations.items())[-num_rows:])]
    parts += [Text(""), *(Text(line, "dim") for line in footer)]
    display = Text("\n").join(parts)
    display.no_wrap, display.overflow = True, "crop"
    return display


def _spread(left: str, right: str, width: int) -> str:
    """Return a line of this width, with one text at its left end and one at its right end."""
    space = max(0, width - len(right) - 1)
    return f"{left[:space]:<{space}} {right}"


def _finished_step(step: Activity, width: int) -> Text:
    duration = _format_duration(step.seconds or 0.0)
    outcome = {"done": duration, "cached": "cached"}.get(step.outcome, f"{step.outcome} after {duration}")
    units = f"{step.count.done:,} {step.count.unit}" if step.count else ""
    return Text(_spread(f"  {step.name}", f"{units}  {outcome:>7}", width), STYLES[step.outcome])


def _current_step(step: Activity, width: int, bar: str) -> list[Text]:
    """Return three lines: the step with its time, its bar with speed and remaining time, and a note about the last units."""
    now, count = time.monotonic(), step.count
    spinner, duration = "|/-\\"[int(4 * now) % 4], _format_duration(now - step.started)
    units = f"{count.done:,}/{count.total:,} {count.unit}" if count else ""
    title = Text(_spread(f"{spinner} {step.name}", f"{units}  {duration:>7}", width), "bold")
    if count is None or count.is_finished:
        return [title, Text(""), Text("")]
    share = min(1.0, count.done / max(count.total, 1))
    numbers = f"{100 * share:5.0f} %  {count.speed_text(now):>13}  {count.time_left(now):>9}"
    space = max(0, width - len(numbers) - 2)
    filled = int(share * space)
    bar_line = Text.assemble("  ", (bar[0] * filled, "cyan"), (bar[1] * (space - filled), "dim"), numbers)
    return [title, bar_line, Text(f"  {count.note.removeprefix(', ')}", "dim")]


def _table(iterations: list[tuple[int, dict[str, float]]]) -> list[Text]:
    rows = [iteration_cells({"iteration": number, **metrics}) for number, metrics in iterations]
    titles = list(ITERATION_COLUMNS.values())
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = ["".join(f"  {cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in (titles, *rows)]
    return [Text(lines[0], "bold"), *map(Text, lines[1:])]


def _format_duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_seconds(seconds)


def _shorten(path: Path) -> str:
    """Return a path relative to the working directory if it is inside."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
