"""What the terminal shows when a command fails: one line for an error that the user can fix, one line and a log entry for any other.

A user error is reported by its message alone. Anything else is a bug or a fault: its traceback is appended to ``$PUL_HOME/error.log`` and
stays in the log of its run. `pul --debug COMMAND` shows the traceback of both.
"""

import copy
import errno
import logging
import shlex
import sys
import traceback
import warnings
from datetime import datetime

import typer
from pydantic import ValidationError

from pul_core.errors import UserError
from tasks.store.home import home

FREE_SPACE = "free disk space (pul gc), then run pul resume"
DISK_REMEDIES = {errno.ENOSPC: FREE_SPACE, errno.EDQUOT: FREE_SPACE, errno.EROFS: "make it writable, then run pul resume"}


def debugging() -> bool:
    """Return whether the command was started as ``pul --debug ...``; known before the arguments are parsed."""
    return "--debug" in sys.argv[1:2]


def escape_unprintable(text: str) -> str:
    """Escape line feeds and control characters, so that a file name can neither break a line nor control the terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]


def user_message(error: BaseException) -> str | None:
    """Return the one-line message of an error that the user can fix, None for a bug or a fault."""
    message = _message(error)
    return message and escape_unprintable(" ".join(message.split()))


def _message(error: BaseException) -> str | None:
    from prefect.exceptions import ParameterTypeError

    from tasks.store.artifacts import DamagedArtifactError

    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        return error.format_message() + (f" ({context.command_path} --help lists the options)" if context else "")
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors())
    if isinstance(error, OSError) and error.errno in DISK_REMEDIES:
        remedy = "" if "pul resume" in str(error) else f": {DISK_REMEDIES[error.errno]}"
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}{remedy}"
    if isinstance(error, _imported("httpx", "TransportError")) or str(error).startswith("Failed to reach API"):
        return f"Prefect's server does not answer ({error or type(error).__name__}): start it again, then press Retry or run pul resume"
    if isinstance(error, _imported("mlflow.exceptions", "MlflowException")):
        return f"MLflow cannot be read or written ({str(error).splitlines()[0]}): fix that, then press Retry or run pul resume"
    if isinstance(error, UserError | ParameterTypeError | DamagedArtifactError):
        return str(error)
    return None


def _imported(module: str, name: str) -> tuple[type[BaseException], ...]:
    """Return a library's error class if the library is imported: importing it takes seconds, and otherwise it cannot have raised."""
    return (getattr(sys.modules[module], name),) if module in sys.modules else ()


def log_unexpected(error: BaseException) -> str:
    """Append the traceback of a bug or a fault to ``$PUL_HOME/error.log`` and return the line for the terminal.

    Raises:
        BaseException: the error itself, where the log cannot be written.
    """
    path = home() / "error.log"
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{time} {shlex.join(sys.argv)}\n{''.join(traceback.format_exception(error))}\n")
    except OSError:
        raise error from None
    line = f"unexpected error: {type(error).__name__}: {' '.join(str(error).split())} (traceback in {path}; --debug shows it here)"
    return escape_unprintable(line)


class _UserErrorFilter(logging.Filter):
    """Replaces the traceback of a user error by its message."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and (line := user_message(error)):
            record.exc_info = record.exc_text = None
            record.msg, record.args = line, ()
        return True


class _WithoutTraceback(logging.Formatter):
    """Formats a record as another formatter does, but without its traceback; the record keeps it for the other handlers."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        shortened = copy.copy(record)
        shortened.exc_info = shortened.exc_text = None
        return self._formatter.format(shortened)


_USER_ERRORS = _UserErrorFilter()  # one instance: a logger adds the same filter only once


def quieten() -> None:
    """Keep tracebacks and the libraries' advice to their developers off the terminal; ``--debug`` lets the tracebacks through."""
    warnings.filterwarnings("ignore", module="mlflow")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if debugging():
        return
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_USER_ERRORS)
    for handler in logging.getLogger().handlers:
        console = handler if isinstance(handler, _imported("prefect.logging.handlers", "PrefectConsoleHandler")) else None
        if console and console.formatter and not isinstance(console.formatter, _WithoutTraceback):
            console.setFormatter(_WithoutTraceback(console.formatter))
