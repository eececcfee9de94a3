"""Error messages on the terminal: one line for each error that ends a command.

An error that the user can fix is reported by its message. Any other error is a bug or a fault: its traceback is also appended to
``$PUL_HOME/error.log`` and kept in the log of the run. `pul --debug COMMAND` shows all tracebacks.
"""

import copy
import errno
import logging
import os
import shlex
import sys
import traceback
import warnings
from datetime import datetime

import typer
from pydantic import ValidationError

from pul_core.errors import UserError
from tasks.store.home import home

DISK_REMEDIES = {
    errno.ENOSPC: "free disk space (pul gc), then run pul resume",
    errno.EDQUOT: "free disk space (pul gc), then run pul resume",
    errno.EROFS: "make it writable, then run pul resume",
}


def debugging() -> bool:
    """Return whether the command was started as ``pul --debug ...``. It does not require parsed arguments."""
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
    """Return an error class of a library, or nothing if the library is not imported: importing it takes seconds."""
    return (getattr(sys.modules[module], name),) if module in sys.modules else ()


def log_unexpected(error: BaseException) -> str:
    """Append the traceback of a bug or a fault to ``$PUL_HOME/error.log``, and return the line for the terminal.

    Raises:
        BaseException: the error itself, if the log cannot be written.
    """
    path = home() / "error.log"
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{time} {shlex.join(sys.argv)}\n{''.join(traceback.format_exception(error))}\n")
    except OSError:
        raise error from None
    message = " ".join(str(error).split())
    return escape_unprintable(f"unexpected error: {type(error).__name__}: {message} (traceback in {path}; --debug shows it here)")


def _shorten_user_error(record: logging.LogRecord) -> bool:
    """Replace the traceback of a user error by its message: a log filter that drops no record."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and (line := user_message(error)):
        record.exc_info = record.exc_text = None
        record.msg, record.args = line, ()
    return True


class _WithoutTraceback(logging.Formatter):
    """Omits the traceback from the text of another formatter; the record keeps it for the other handlers."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        shortened = copy.copy(record)
        shortened.exc_info = shortened.exc_text = None
        return self._formatter.format(shortened)


def quieten() -> None:
    """Hide tracebacks (unless ``--debug`` is given) and the libraries' messages for developers on the terminal."""
    warnings.filterwarnings("ignore", module="mlflow")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # read when MLflow is imported
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
    if debugging():
        return
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_shorten_user_error)
    for handler in logging.getLogger().handlers:
        on_terminal = isinstance(handler, _imported("prefect.logging.handlers", "PrefectConsoleHandler"))
        if on_terminal and handler.formatter and not isinstance(handler.formatter, _WithoutTraceback):
            handler.setFormatter(_WithoutTraceback(handler.formatter))
