"""The environment the project runs in: everything below ``$PUL_HOME``, nothing sent anywhere. What the user has set is left alone."""

import os
import tomllib
from pathlib import Path

from tasks.store.home import home

PROFILES = """\
# Written by `pul`: "up" while `pul up` runs, else "ephemeral", a server of its own for each process.
active = "{active}"

[profiles.ephemeral]
PREFECT_SERVER_ALLOW_EPHEMERAL_MODE = "true"

[profiles.up]
PREFECT_API_URL = "{api_url}"
"""


def configure() -> Path:
    """Set what is not set yet, before Prefect and MLflow are imported, and return ``$PUL_HOME``."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
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
    """Tell every `prefect` command in this directory which server to talk to; None lets each process start its own."""
    path = home() / "prefect" / "profiles.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(PROFILES.format(active="up" if api_url else "ephemeral", api_url=api_url or ""), encoding="utf-8")
    partial.replace(path)


def active_server() -> str | None:
    """Return the API's URL of the server that commands talk to, None if each process starts its own."""
    if given := os.environ.get("PREFECT_API_URL"):
        return given
    path = home() / "prefect" / "profiles.toml"
    profiles = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    url: str | None = profiles.get("profiles", {}).get(profiles.get("active"), {}).get("PREFECT_API_URL")
    return url
