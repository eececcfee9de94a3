"""Models in MLflow: every iteration's model is logged once, and the last one is registered."""

import tempfile
from importlib.metadata import version
from pathlib import Path

import mlflow

from tasks.store.artifacts import Artifact, read_bytes
from tasks.store.model_file import read_config
from tasks.tracking.client import client, tolerate_existing
from tasks.tracking.reid_model import log_model


def log_iteration_model(run_id: str, model: Artifact) -> None:
    """Log an iteration's model to its MLflow run."""
    data = read_bytes(model)
    config = read_config(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        path.write_bytes(data)
        requirements = [f"{name}=={version(name)}" for name in ("pul-reid", "safetensors", "timm", "torch")]
        log_model(run_id, str(path), height=config.height, width=config.width, name="model", requirements=requirements)


def register_model(run_id: str, name: str, run_name: str) -> None:
    """Register the model of an iteration, unless it is already registered.

    Args:
        run_id: the MLflow run of the iteration.
        name: name of the registered model.
        run_name: name of the parent run, recorded as a tag of the model version.
    """
    _ensure_registered_model(name)
    if not any(version.run_id == run_id for version in client().search_model_versions(f"name = '{name}'")):
        model_version = mlflow.register_model(f"models:/{client().get_run(run_id).data.tags['pul.model_id']}", name)
        client().set_model_version_tag(name, model_version.version, "pul.run", run_name)


def _ensure_registered_model(name: str) -> None:
    if not client().search_registered_models(f"name = '{name}'"):
        with tolerate_existing():
            client().create_registered_model(name)
