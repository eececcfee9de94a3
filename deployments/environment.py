"""The environment the project runs in: everything below ``$PUL_HOME``, nothing sent anywhere. What the user has set is left alone."""

import os
from pathlib import Path

from tasks.home import home

API_URL = "http://127.0.0.1:4200/api"
MLFLOW_URL = "http://127.0.0.1:5000"


def configure() -> Path:
    """Set what is not set yet, before Prefect and MLflow are imported, and return ``$PUL_HOME``."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {
        "PUL_HOME": str(folder),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
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
