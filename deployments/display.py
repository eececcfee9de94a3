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
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from deployments.errors import escape_unprintable
from deployments.tables import ITERATION_COLUMNS, iteration_cells
from tasks.engine.status import Activity, Count, Status, activity, format_seconds, status
from tasks.store.home import home

REFRESHES_PER_SECOND = 8
MAX_WIDTH = 84  # columns; a terminal that becomes narrower breaks lines that are as wide as it was
FINISHED_SHOWN = 4  # steps
WARNINGS_SHOWN = 20
SPINNER = "|/-\\"
STYLES = {"done": "dim", "cached": "dim", "failed": "red", "stopped": "yellow"}


class Screen(NamedTuple):
    """Where a command prints: ``say`` prints a line for the user, ``log`` is the path of the log file, or None if the log is printed."""

    say: Callable[[str], None]
    log: str | None


@contextlib.contextmanager
def display(command: str, *, verbose: bool) -> Iterator[Screen]:
    """Show the progress of a block on stderr. It disappears at the end of the block; after an error its last state remains.

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
            finally:
                logging.getLogger().removeHandler(warnings)
            live.transient = True


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
        terminal.write("\x1b[?25h")  # shows the cursor, even if Ctrl-C was pressed twice
        sys.stderr = terminal


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


def _render(console: Console, status: Status, log: str | None) -> RenderableType:
    """Return a display that fits the terminal: the last steps, the current one with its bar, the iterations, and where to read more."""
    columns, lines = os.get_terminal_size(console.file.fileno())
    console.size = ConsoleDimensions(columns or 80, lines or 24)  # rich would ask stdin
    activities = list(status.activities)
    current = status.current() or next(reversed(activities), None)  # between two steps: the previous one
    finished = [step for step in activities if step.seconds is not None and step is not current]
    steps = finished[-min(FINISHED_SHOWN, max(1, console.height - 15)) :]
    footer = [f"run {status.run}"] * bool(status.run) + [f"log {log}"]
    num_rows = console.height - len(steps) - len(footer) - 8  # the other lines, and one below the display
    iterations = sorted(status.iterations.items())[-num_rows:] if num_rows > 0 else []
    parts: list[RenderableType] = [Text(""), _steps([*steps, *([current] if current else [])], current)]
    if current and not _is_over(current):
        parts += _bar(current.count)
    if iterations:
        parts += [Text(""), _table(iterations)]
    parts += [Text(""), *(Text(f"  {line}", "dim", no_wrap=True, overflow="ellipsis") for line in footer)]
    return Constrain(Group(*parts), MAX_WIDTH)


def _is_over(step: Activity) -> bool:
    return step.outcome in ("failed", "stopped")


def _steps(steps: list[Activity], current: Activity | None) -> Table:
    """Return a line for each step: its name, how many units are done, and its time or outcome."""
    now = time.monotonic()
    left, right = Column(ratio=1, no_wrap=True, overflow="ellipsis"), functools.partial(Column, justify="right", no_wrap=True)
    table = Table.grid(left, right(), right(min_width=7), padding=(0, 2), expand=True)
    for step in steps:
        is_running = step is current and not _is_over(step)
        seconds = (now - step.started) if is_running or step.seconds is None else step.seconds
        duration = f"{seconds:.1f} s" if seconds < 60 else format_seconds(seconds)
        done = "" if step.count is None else f"{step.count.done:,}{f'/{step.count.total:,}' * is_running} {step.count.unit}"
        if is_running:
            name, outcome, style = f"{SPINNER[int(4 * now) % 4]} {step.name}", duration, "bold"
        else:
            name, style = f"  {step.name}", STYLES[step.outcome]
            outcome = {"done": duration, "cached": "cached"}.get(step.outcome, f"{step.outcome} after {duration}")
        table.add_row(Text(name), Text(done), Text(outcome), style=style)
    return table


def _bar(count: Count | None) -> list[RenderableType]:
    """Return two lines: a bar with speed and remaining time, and a note about the last units."""
    if count is None or count.is_finished:
        return [Text(""), Text("")]
    now, share = time.monotonic(), min(1.0, count.done / max(count.total, 1))
    right = functools.partial(Column, justify="right", no_wrap=True)
    line = Table.grid(Column(ratio=1), right(min_width=5), right(min_width=13), right(min_width=9), padding=(0, 0, 0, 2), expand=True)
    line.add_row(ProgressBar(total=1.0, completed=share), f"{100 * share:.0f} %", count.speed_text(now), count.time_left(now))
    return [Padding(line, (0, 0, 0, 2)), Text(f"  {count.note.removeprefix(', ')}", "dim", no_wrap=True, overflow="ellipsis")]


def _table(iterations: list[tuple[int, dict[str, float]]]) -> Table:
    columns = [Column(Text(title), justify="right", no_wrap=True) for title in ITERATION_COLUMNS.values()]
    table = Table(*columns, box=None, padding=(0, 0, 0, 2))
    for number, metrics in iterations:
        table.add_row(*map(Text, iteration_cells({"iteration": number, **metrics})))
    return table


def _shorten(path: Path) -> str:
    """Return a path relative to the working directory if it is inside."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
