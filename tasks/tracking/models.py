"""An iteration's model in MLflow: logged once, and the last one registered."""

import tempfile
from importlib.metadata import version
from pathlib import Path

import mlflow

from tasks.store.artifacts import Artifact, read_bytes
from tasks.store.model_file import read_config
from tasks.tracking.client import client, tolerate_existing
from tasks.tracking.reid_model import log_model


def log_iteration_model(child: str, model: Artifact) -> None:
    """Log an iteration's model to its MLflow run."""
    data = read_bytes(model)
    config = read_config(data)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        file.write_bytes(data)
        requirements = [f"{name}=={version(name)}" for name in ("pul-reid", "safetensors", "timm", "torch")]
        log_model(child, str(file), height=config.height, width=config.width, name="model", requirements=requirements)


def register_model(child: str, name: str, run_name: str) -> None:
    """Register the model of an iteration's MLflow run, once.

    Args:
        child: MLflow id of the iteration's run.
        name: of the registered model.
        run_name: recorded with the version.
    """
    uri = f"models:/{client().get_run(child).data.tags['pul.model_id']}"
    _make_registered_model(name)
    if not [version for version in client().search_model_versions(f"name = '{name}'") if version.run_id == child]:
        version = mlflow.register_model(uri, name)
        client().set_model_version_tag(name, version.version, "pul.run", run_name)


def _make_registered_model(name: str) -> None:
    if not client().search_registered_models(f"name = '{name}'"):
        with tolerate_existing():
            client().create_registered_model(name)
