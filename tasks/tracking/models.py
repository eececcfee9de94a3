"""Models in MLflow: the model of each iteration is logged, and that of the last iteration is registered."""

import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from tasks.store.artifacts import Artifact, read_bytes
from tasks.store.model_file import read_model_config
from tasks.tracking import reid_model
from tasks.tracking.client import client


def log_iteration_model(run_id: str, model: Artifact) -> None:
    """Log a model to the MLflow run of its iteration, unless the run already has one.

    Args:
        run_id: the MLflow run.
        model: a model file of this project.
    """
    if "pul.model_id" in client().get_run(run_id).data.tags:
        return
    data = read_bytes(model)
    config = read_model_config(data)
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, config.height, config.width, 3))])
    features = Schema([TensorSpec(np.dtype(np.float32), (-1, -1))])
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow recommends an input example
        path = Path(folder, "model.safetensors")
        path.write_bytes(data)
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=reid_model.__file__,
            artifacts={"weights": str(path)},
            signature=ModelSignature(images, features),
            pip_requirements=[f"{package}=={version(package)}" for package in ("pul-reid", "safetensors", "timm", "torch")],
        )
    client().set_tag(run_id, "pul.model_id", logged.model_id)


def register_model(run_id: str, name: str, run_name: str) -> None:
    """Register the model of an iteration as a new version, unless it is already registered.

    Args:
        run_id: the MLflow run of the iteration.
        name: name of the registered model.
        run_name: name of the parent run, recorded as a tag of the model version.
    """
    if not any(version.run_id == run_id for version in client().search_model_versions(f"name = '{name}'")):
        model_version = mlflow.register_model(f"models:/{client().get_run(run_id).data.tags['pul.model_id']}", name)
        client().set_model_version_tag(name, model_version.version, "pul.run", run_name)
