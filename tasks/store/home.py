"""Locations of everything the project writes: by default below ``$PUL_HOME`` (``.pul/`` in the working directory)."""

import os
from pathlib import Path


def home() -> Path:
    """Return the project's folder as an absolute path; it need not exist yet."""
    return Path(os.environ.get("PUL_HOME", ".pul")).resolve()


def artifact_root() -> str:
    """Return the folder or fsspec URL of the artifacts: ``$PUL_ARTIFACTS``, by default ``$PUL_HOME/artifacts``."""
    return os.environ.get("PUL_ARTIFACTS") or str(home() / "artifacts")
