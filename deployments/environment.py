"""Default environment variables: all files are stored below ``$PUL_HOME``, and no library sends usage data.

A variable that is already set keeps its value.
"""

import os
import tomllib
from pathlib import Path

from pul_core.errors import UserError
from tasks.store.home import home

PROFILES = """\
# Written by `pul`: "up" while `pul up` is running, otherwise "ephemeral": each process starts a temporary server.
active = "{active}"

[profiles.ephemeral]
PREFECT_SERVER_ALLOW_EPHEMERAL_MODE = "true"

[profiles.up]
PREFECT_API_URL = "{api_url}"
"""


def configure() -> Path:
    """Create ``$PUL_HOME``, set the variables that are not set yet, and return the folder. Call it before importing Prefect or MLflow.

    Raises:
        UserError: the folder cannot be created or written.
    """
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"PUL_HOME={folder} cannot be created ({error.strerror}): set PUL_HOME to a folder that you can write") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"PUL_HOME={folder} is not writable: set PUL_HOME to a folder that you can write")
    defaults = {
        "PUL_HOME": str(folder),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_PROFILES_PATH": str(folder / "prefect" / "profiles.toml"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return folder


def use_server(api_url: str | None) -> None:
    """Select the Prefect server of all `prefect` and `pul` commands in this directory; None: each starts a temporary server."""
    path = home() / "prefect" / "profiles.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(PROFILES.format(active="up" if api_url else "ephemeral", api_url=api_url or ""), encoding="utf-8")
    partial.replace(path)


def active_server() -> str | None:
    """Return the API URL of the Prefect server that commands use, or None if each starts a temporary server."""
    path = home() / "prefect" / "profiles.toml"
    profiles = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return os.environ.get("PREFECT_API_URL") or profiles.get("profiles", {}).get(profiles.get("active"), {}).get("PREFECT_API_URL")
