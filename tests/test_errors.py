"""A user error is reported in one line; a bug or a fault too, and its traceback is kept in the log; --debug shows both in full."""

import errno
import io
import logging
import sqlite3
import sys

import httpx
import pytest
import sqlalchemy
import typer
from mlflow.exceptions import MlflowException
from prefect.client.base import PrefectResponse
from prefect.exceptions import ParameterTypeError, PrefectHTTPStatusError
from prefect.logging.handlers import PrefectConsoleHandler
from pydantic import BaseModel, ConfigDict, ValidationError

from deployments.access import UpError
from deployments.cli import main
from deployments.errors import log_unexpected, quieten, user_message
from pul_core.clustering.suggestion import NothingToSuggestError
from pul_core.errors import DataError, NotFiniteError, UserError
from pul_core.selection import UnreliableError
from tasks.operations.sweeps import SweepFailedError
from tasks.store.artifacts import DamagedArtifactError


def validation_error(**values):
    class Section(BaseModel):
        model_config = ConfigDict(extra="forbid")
        epochs: int

    with pytest.raises(ValidationError) as raised:
        Section(**values)
    return raised.value


def raised(error):
    """Return an error with a traceback, as a logger sees it."""
    try:
        raise error
    except type(error):
        return sys.exc_info()


def sql_error(text):
    """Return SQLAlchemy's error for an error of SQLite."""
    return sqlalchemy.exc.OperationalError("SELECT name FROM sqlite_master", {}, sqlite3.OperationalError(text))


def api_error(code, body):
    """Return MLflow's error for a response of its server."""
    return MlflowException(
        f"API request to endpoint /api/2.0/mlflow/runs/get failed with error code {code} != 200. Response body: '{body}'"
    )


def prefect_error(code, phrase):
    """Return Prefect's error for a response of its server, as its client raises it."""
    response = httpx.Response(code, request=httpx.Request("POST", "http://127.0.0.1:4200/api/flow_runs/"), json={"detail": "why"})
    with pytest.raises(PrefectHTTPStatusError) as raised:
        PrefectResponse.from_httpx_response(response).raise_for_status()
    assert phrase in str(raised.value)
    return raised.value


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
        "Prefect's server cannot be used (Failed to reach API at http://host/api/): start it again, then press Retry or run pul resume",
    ),
    (
        MlflowException("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT ...]"),
        "MLflow cannot be read or written ((sqlite3.OperationalError) database or disk is full): fix that, "
        "then press Retry or run pul resume",
    ),
]
# What the libraries really say (MLflow 3.17, SQLAlchemy 2.1, Prefect 3.8), and words of the way out.
ENVIRONMENT_ERRORS = [
    (
        MlflowException(
            "Detected out-of-date database schema (found version ffffffffffff, but expected dc11669786a5). Take a backup of ..."
        ),
        "another version of MLflow wrote it; back it up and run mlflow db upgrade",
    ),
    (MlflowException("(sqlite3.OperationalError) database is locked\n[SQL: INSERT INTO experiments ...]"), "wait until the other process"),
    (sql_error("database is locked"), "wait until the other process is done, or stop it"),
    (sql_error("file is not a database"), "the file is damaged; restore it from a backup"),
    (sql_error("database disk image is malformed"), "the file is damaged; restore it from a backup"),
    (sql_error("unable to open database file"), "create its folder, or make the folder and the file writable"),
    (sql_error("attempt to write a readonly database"), "make the file and its folder writable"),
    (
        MlflowException("The run 14bb must be in the 'active' state. Current state is deleted."),
        "it was deleted in MLflow; restore it there",
    ),
    (
        MlflowException("The experiment 1 must be in the 'active' state. Current state is deleted."),
        "it was deleted in MLflow; restore it there",
    ),
    (api_error(401, "You are not authenticated."), "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    (api_error(403, "Permission denied"), "let its administrator grant it"),
    (api_error(403, "Invalid Host header - possible DNS rebinding attack detected"), "MLFLOW_SERVER_ALLOWED_HOSTS"),
    (api_error(404, "<html>not found"), "MLFLOW_TRACKING_URI is not the address of an MLflow server"),
    (
        MlflowException(
            "API request to endpoint was successful but the response body was not in a valid JSON format. Response body: '<html>'"
        ),
        "MLFLOW_TRACKING_URI is not the address of an MLflow server",
    ),
    (
        MlflowException(
            "API request to http://h:9/api failed with exception HTTPConnectionPool(host='h', port=9): Max retries exceeded with ..."
        ),
        "start its server again",
    ),
    (
        MlflowException("API request to http://h:9/api failed with exception ...: Max retries exceeded (too many 500 error responses)"),
        "the reason is in the log of its server",
    ),
    (MlflowException("something new"), "MLflow cannot be read or written (something new): fix that, then press Retry or run pul resume"),
    (prefect_error(401, "Unauthorized"), "set PREFECT_API_AUTH_STRING to the value used for pul up"),
    (prefect_error(403, "Forbidden"), "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY"),
    (prefect_error(500, "Internal Server Error"), "prefect-server.log"),
    (prefect_error(503, "Service Unavailable"), "wait until it is less busy"),
    (httpx.ReadTimeout(""), "Prefect's server does not answer (ReadTimeout): start it again"),
    (httpx.ConnectTimeout("timed out"), "Prefect's server does not answer (timed out): start it again"),
    (httpx.RemoteProtocolError("Server disconnected"), "Prefect's server does not answer (Server disconnected)"),
    (RuntimeError("Found incompatible versions: client: 3.8.8, server: 2.20.0. Major versions must match."), "the same version of Prefect"),
    (RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server."), "the temporary server did not start"),
]
USER_ERRORS = [
    (UserError("two\nlines"), "two lines"),
    *((kind("what is wrong: what to do"), "what is wrong: what to do") for kind in (DataError, NotFiniteError, UpError, UnreliableError)),
    *((kind("what is wrong: what to do"), "what is wrong: what to do") for kind in (NothingToSuggestError, SweepFailedError)),
    (DamagedArtifactError("artifact x is missing"), str(DamagedArtifactError("artifact x is missing"))),
    (ParameterTypeError("Flow run received\n - seed: must be >= 0"), "Flow run received - seed: must be >= 0"),
    (validation_error(epochs="many"), "epochs: Input should be a valid integer, unable to parse string as an integer, got 'many'"),
    (
        validation_error(epochs=1, epoch=2),
        "there is no parameter 'epoch': did you mean pretraining.epochs or fine_tuning.epochs? (docs/parameters.md)",
    ),
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


@pytest.mark.parametrize(("error", "words"), ENVIRONMENT_ERRORS)
@pytest.mark.fault("errors of MLflow and Prefect that have their cause in the environment", "one line that names what to do")
def test_an_error_of_a_library_is_reported_with_its_remedy(error, words):
    line = user_message(error)
    assert words in line and "\n" not in line and "SELECT" not in line and len(line) < 600


def test_a_file_of_another_user_below_the_home_is_named(home):
    error = PermissionError(errno.EACCES, "Permission denied", str(home / "runs" / "x"))
    assert user_message(error) == (
        f"{home}/runs/x is not writable: change its owner (chown) if another user, such as root, ran pul here, then run pul resume"
    )


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
