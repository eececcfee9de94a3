"""A user error is reported in one line; a bug or a fault too, and its traceback is kept in the log; --debug shows both in full."""

import errno
import io
import logging
import sys

import httpx
import pytest
import typer
from mlflow.exceptions import MlflowException
from prefect.exceptions import ParameterTypeError
from prefect.logging.handlers import PrefectConsoleHandler
from pydantic import BaseModel, ValidationError

from deployments.access import UpError
from deployments.cli import main
from deployments.errors import log_unexpected, quieten, user_message
from pul_core.clustering.suggestion import NothingToSuggestError
from pul_core.errors import DataError, NotFiniteError, UserError
from pul_core.selection import UnreliableError
from tasks.operations.sweeps import SweepFailedError
from tasks.store.artifacts import DamagedArtifactError


def validation_error():
    class Section(BaseModel):
        epochs: int

    with pytest.raises(ValidationError) as raised:
        Section(epochs="many")
    return raised.value


def raised(error):
    """Return an error with a traceback, as a logger sees it."""
    try:
        raise error
    except type(error):
        return sys.exc_info()


FAULTS = [
    (
        OSError(errno.ENOSPC, "No space left on device", "/a/b"),
        "No space left on device: /a/b: free disk space (pul gc), then run pul resume",
    ),
    (
        OSError(errno.ENOSPC, "no room left below /a: make some (pul gc), then Retry or pul resume"),
        "no room left below /a: make some (pul gc), then Retry or pul resume",
    ),
    (OSError(errno.EROFS, "Read-only file system", "/a"), "Read-only file system: /a: make it writable, then run pul resume"),
    (
        httpx.ConnectError("Connection refused"),
        "Prefect's server does not answer (Connection refused): start it again, then press Retry or run pul resume",
    ),
    (
        RuntimeError("Failed to reach API at http://host/api/"),
        "Prefect's server does not answer (Failed to reach API at http://host/api/): start it again, then press Retry or run pul resume",
    ),
    (
        MlflowException("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT ...]"),
        "MLflow cannot be read or written ((sqlite3.OperationalError) database or disk is full): fix that, "
        "then press Retry or run pul resume",
    ),
]
USER_ERRORS = [
    (UserError("two\nlines"), "two lines"),
    *((kind("what is wrong: what to do"), "what is wrong: what to do") for kind in (DataError, NotFiniteError, UpError, UnreliableError)),
    *((kind("what is wrong: what to do"), "what is wrong: what to do") for kind in (NothingToSuggestError, SweepFailedError)),
    (DamagedArtifactError("artifact x is missing"), str(DamagedArtifactError("artifact x is missing"))),
    (ParameterTypeError("Flow run received\n - seed: must be >= 0"), "Flow run received - seed: must be >= 0"),
    (validation_error(), "epochs: Input should be a valid integer, unable to parse string as an integer"),
    (typer.BadParameter("it must be even"), "Invalid value: it must be even"),
]
UNEXPECTED_ERRORS = [
    ValueError("a bug"),
    OSError(errno.ENOENT, "No such file or directory", "/a"),
    PermissionError(errno.EACCES, "Permission denied", "/a"),
    RuntimeError("a bug"),
    FloatingPointError("a bug"),
    KeyError("a bug"),
]


@pytest.mark.parametrize(("error", "line"), FAULTS)
@pytest.mark.fault("a full disk, a silent server: what the terminal shows", "one line with the way out; a bug keeps its traceback")
def test_an_environment_fault_is_reported_with_its_remedy(error, line):
    assert user_message(error) == line


@pytest.mark.parametrize(("error", "line"), USER_ERRORS)
def test_a_user_error_is_its_message(error, line):
    assert user_message(error) == line


@pytest.mark.parametrize("error", UNEXPECTED_ERRORS)
def test_anything_else_is_not_a_user_error(error):
    assert user_message(error) is None


@pytest.fixture
def pul_fails(home, monkeypatch):
    """Run `pul` with a command that raises an error; return how the process ends."""

    def run(error, *arguments):
        def app(**_):
            raise error

        monkeypatch.setattr("deployments.cli.app", app)
        monkeypatch.setattr(sys, "argv", ["pul", *arguments])
        with pytest.raises(BaseException) as ended:
            main()
        return ended.value

    return run


@pytest.mark.parametrize(("error", "line"), FAULTS + USER_ERRORS)
def test_the_command_reports_a_user_error_and_writes_no_log(pul_fails, home, error, line):
    ended = pul_fails(error, "run")
    assert isinstance(ended, SystemExit) and ended.code == f"pul: {line}"
    assert not (home / "error.log").exists()


@pytest.mark.parametrize("error", UNEXPECTED_ERRORS)
def test_the_command_reports_an_unexpected_error_and_appends_its_traceback(pul_fails, home, error):
    log = home / "error.log"
    log.write_text("an earlier entry\n")
    ended = pul_fails(error, "run", "--target", "crops")
    assert isinstance(ended, SystemExit) and "\n" not in ended.code
    assert ended.code.startswith(f"pul: unexpected error: {type(error).__name__}: {error}")
    assert ended.code.endswith(f" (traceback in {log}; --debug shows it here)")
    text = log.read_text()
    assert text.startswith("an earlier entry\n") and " pul run --target crops\nTraceback (most recent call last):\n" in text
    assert "in app" in text and f"{type(error).__name__}: {error}" in text


@pytest.mark.parametrize("error", [error for error, _ in FAULTS + USER_ERRORS] + UNEXPECTED_ERRORS)
def test_debug_raises_every_error(pul_fails, home, error):
    assert pul_fails(error, "--debug", "run") is error
    assert not (home / "error.log").exists()


def test_an_error_that_cannot_be_logged_is_raised(home):
    (home / "error.log").mkdir()
    error = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug") as ended:
        log_unexpected(error)
    assert ended.value is error


@pytest.fixture
def flow_run_log(monkeypatch):
    """Log an error as Prefect does; return what the console shows and what the log of the run records."""
    logger, root = logging.getLogger("prefect.flow_runs"), logging.getLogger()
    console, recorded = PrefectConsoleHandler(io.StringIO()), logging.StreamHandler(io.StringIO())
    for handler in (console, recorded):
        handler.setFormatter(logging.Formatter("%(message)s"))
    for owner, handlers in ((logger, [recorded]), (root, [console])):
        monkeypatch.setattr(owner, "handlers", handlers)
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)

    def log(error, *arguments):
        monkeypatch.setattr(sys, "argv", ["pul", *arguments])
        quieten()
        quieten()
        logger.error("Encountered exception: %r", error, exc_info=raised(error))
        return console.stream.getvalue(), recorded.stream.getvalue()

    return log


def test_a_user_error_has_no_traceback_in_the_log_of_its_run(flow_run_log):
    assert flow_run_log(UserError("what is wrong: what to do"), "run") == ("what is wrong: what to do\n",) * 2


@pytest.mark.parametrize("error", UNEXPECTED_ERRORS)
def test_an_unexpected_error_keeps_its_traceback_in_the_log_of_its_run(flow_run_log, error):
    console, recorded = flow_run_log(error, "run")
    assert console == f"Encountered exception: {error!r}\n"
    assert recorded.startswith(f"{console}Traceback (most recent call last):\n") and f"{type(error).__name__}: {error}" in recorded


@pytest.mark.parametrize("error", [UserError("what is wrong: what to do"), ValueError("a bug")])
def test_debug_shows_the_traceback_of_a_run(flow_run_log, error):
    for text in flow_run_log(error, "--debug", "run"):
        assert text.startswith(f"Encountered exception: {error!r}\nTraceback (most recent call last):\n")
