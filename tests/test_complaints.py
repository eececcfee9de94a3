"""One line for what a person can mend: what is wrong and the way out."""

import errno

import httpx
import pytest
from mlflow.exceptions import MlflowException

from deployments.complaints import in_one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "No space left on device: /a/b: make room (pul gc), then pul resume"),
        (OSError(errno.ENOENT, "No such file or directory", "/a"), "No such file or directory: /a"),
        (
            httpx.ConnectError("Connection refused"),
            "Prefect's server does not answer (Connection refused): start it again, then Retry or pul resume",
        ),
        (
            RuntimeError("Failed to reach API at http://host/api/"),
            "Prefect's server does not answer (Failed to reach API at http://host/api/): start it again, then Retry or pul resume",
        ),
        (
            MlflowException("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT ...]"),
            "MLflow cannot be written or read ((sqlite3.OperationalError) database or disk is full): mend that, then Retry or pul resume",
        ),
        (RuntimeError("a bug"), None),
    ],
)
@pytest.mark.fault("a full disk, a silent server: what the terminal shows", "one line with the way out; a bug keeps its traceback")
def test_one_line_and_the_way_out(error, line):
    assert in_one_line(error) == line
