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
from pathlib import Path

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pul_core.errors import UserError
from tasks.store.config import unknown_parameter
from tasks.store.home import home

DISK_REMEDIES = {
    errno.ENOSPC: "free disk space (pul gc), then run pul resume",
    errno.EDQUOT: "free disk space (pul gc), then run pul resume",
    errno.EROFS: "make it writable, then run pul resume",
}

RESUME = "then press Retry or run pul resume"
# What MLflow and Prefect say when the environment is at fault, and what to do about it. The first text that occurs in the error counts.
MLFLOW_REMEDIES = {
    "out-of-date database schema": "another version of MLflow wrote it; back it up and run mlflow db upgrade (docs/operations.md), or "
    "install that version",
    "Can't locate revision": "a newer version of MLflow wrote it; install that version",
    "database is locked": f"wait until the other process is done, or stop it, and keep PUL_HOME on a local disk; {RESUME}",
    "not a database": "the file is damaged; restore it from a backup (docs/operations.md), or move it away",
    "malformed": "the file is damaged; restore it from a backup (docs/operations.md), or move it away",
    "unable to open database file": f"create its folder, or make the folder and the file writable; {RESUME}",
    "readonly database": f"make the file and its folder writable; {RESUME}",
    "Current state is deleted": "it was deleted in MLflow; restore it there, or start a new run",
    "error code 401": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to the user and password of the server",
    "not authenticated": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to the user and password of the server",
    "Invalid Host header": "start its server with this name in MLFLOW_SERVER_ALLOWED_HOSTS (docs/operations.md)",
    "error code 403": "the user of MLFLOW_TRACKING_USERNAME lacks the permission; let its administrator grant it",
    "too many 500 error responses": f"the reason is in the log of its server; fix that, {RESUME}",
    "Max retries exceeded": f"start its server again, {RESUME}",
    "error code 404": "MLFLOW_TRACKING_URI is not the address of an MLflow server; correct or unset it",
    "valid JSON format": "MLFLOW_TRACKING_URI is not the address of an MLflow server; correct or unset it",
    "": f"fix that, {RESUME}",
}
PREFECT_REMEDIES = {
    "401 Unauthorized": "it requires a password; set PREFECT_API_AUTH_STRING to the value used for pul up",
    "403 Forbidden": "the password or the API key of the environment lacks the permission; set PREFECT_API_AUTH_STRING or PREFECT_API_KEY",
    "incompatible versions": "the server and this installation need the same version of Prefect; install one of the two",
    "to ephemeral Prefect API server": "the temporary server did not start, for the reason in the log; fix that, or try another PUL_HOME",
    "database is locked": f"wait until the other process is done, or stop it, and keep PUL_HOME on a local disk; {RESUME}",
    "404 Not Found": "PREFECT_API_URL is not the address of a Prefect API; correct or unset it",
    "500 Internal Server Error": f"the reason is in the server's log (.pul/logs/prefect-server.log); fix that, {RESUME}",
    "503 Service Unavailable": f"wait until it is less busy, {RESUME}",
    "Failed to reach API": f"start it again, {RESUME}",
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
    from prefect.exceptions import ParameterTypeError, PrefectHTTPStatusError

    from tasks.store.artifacts import DamagedArtifactError

    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        return error.format_message() + (f" ({context.command_path} --help lists the options)" if context else "")
    if isinstance(error, ValidationError):
        return "; ".join(map(_problem, error.errors()))
    if isinstance(error, OSError) and error.errno in DISK_REMEDIES:
        remedy = "" if "pul resume" in str(error) else f": {DISK_REMEDIES[error.errno]}"
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}{remedy}"
    if isinstance(error, PermissionError) and error.filename and Path(str(error.filename)).is_relative_to(home()):
        return (
            f"{error.filename} is not writable: change its owner (chown) if another user, such as root, ran pul here, then run pul resume"
        )
    if isinstance(error, _imported("httpx", "TransportError")):
        return f"Prefect's server does not answer ({_first_line(error)}): start it again, {RESUME}"
    if isinstance(error, PrefectHTTPStatusError | RuntimeError) and (way_out := _remedy(error, PREFECT_REMEDIES)):
        return f"Prefect's server cannot be used ({_first_line(error)}): {way_out}"
    if isinstance(error, (*_imported("mlflow.exceptions", "MlflowException"), *_imported("sqlalchemy.exc", "DBAPIError"))):
        return f"MLflow cannot be read or written ({_first_line(error)}): {_remedy(error, MLFLOW_REMEDIES)}"
    if isinstance(error, UserError | ParameterTypeError | DamagedArtifactError):
        return str(error)
    return None


def _problem(problem: ErrorDetails) -> str:
    """Return what is wrong with a parameter, according to pydantic."""
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return unknown_parameter(place)
    return f"{place}: {problem['msg']}, got {problem['input']!r:.80}"


def _remedy(error: BaseException, remedies: dict[str, str]) -> str | None:
    return next((remedy for text, remedy in remedies.items() if text in str(error)), None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


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
    for name in ("EventsWorker", "APILogWorker"):  # when the process ends, they count what they have not sent yet
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs the traceback of each error that it also raises
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_shorten_user_error)
    for handler in _console_handlers():
        if handler.formatter and not isinstance(handler.formatter, _WithoutTraceback):
            handler.setFormatter(_WithoutTraceback(handler.formatter))


def print_only_warnings() -> None:
    """Print only the warnings and errors of the log, until the process ends; Prefect's server still receives all of it.

    This is for commands that print a result. It has no effect if the user has set the level, with PREFECT_LOGGING_LEVEL or ``--debug``.
    """
    if not debugging() and "PREFECT_LOGGING_LEVEL" not in os.environ:
        for handler in _console_handlers():
            handler.setLevel(logging.WARNING)


def _console_handlers() -> list[logging.Handler]:
    """Return Prefect's handlers of the terminal, which print the records of all loggers."""
    return [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, _imported("prefect.logging.handlers", "PrefectConsoleHandler"))
    ]
