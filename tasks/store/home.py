"""Locations of everything the project writes: by default below ``$PUL_HOME`` (``.pul/`` in the working directory)."""

import os
from pathlib import Path

WORKING_FOLDER = "PUL_WORKING_FOLDER"  # environment variable: the folder of `pul up`; its flow runs are executed in another one
UI_URL_FILE = "mlflow-url"  # in ``$PUL_HOME``: the address of MLflow's UI, as `pul up` has started it last


def home() -> Path:
    """Return the project's folder as an absolute path; it need not exist yet."""
    return Path(os.environ.get("PUL_HOME") or ".pul").expanduser().resolve()


def user_path(path: str) -> Path:
    """Return a path that a user gave as an absolute path: relative to the folder of `pul up` if that executes the run, else to this one."""
    return Path(os.environ.get(WORKING_FOLDER) or ".", Path(path).expanduser()).absolute()


def artifact_root() -> str:
    """Return the folder or fsspec URL of the artifacts: ``$PUL_ARTIFACTS``, by default ``$PUL_HOME/artifacts``."""
    return os.environ.get("PUL_ARTIFACTS") or str(home() / "artifacts")


def is_default_store() -> bool:
    """Return whether the artifacts are below ``$PUL_HOME``, and not in a folder or bucket that other machines may use as well."""
    return "://" not in artifact_root() and Path(artifact_root()).resolve() == home() / "artifacts"
