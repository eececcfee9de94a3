"""The MLflow model flavour of a re-ID model: a Python model around the safetensors file, which any MLflow client can load.

Nothing is pickled: MLflow stores this source file ("models from code") and imports it with the path of the weights.
"""

import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec


class ReIDModel(PythonModel):
    """Maps images (n, h, w, 3) uint8 to features (n, d) float32."""

    _skip_type_hint_validation = True  # the signature is passed when the model is logged, so MLflow need not infer one from type hints

    def load_context(self, context: Any) -> None:
        """Build the backbone from the logged model file."""
        from tasks.store.model_file import read_model_bytes

        self.backbone, self.config = read_model_bytes(Path(context.artifacts["weights"]).read_bytes())

    def predict(self, context: Any, model_input, params=None) -> npt.NDArray[np.float32]:  # type: ignore[no-untyped-def] # noqa: ANN001
        """Return the features of the images."""
        from pul_core.learning.extraction import extract_features

        return np.concatenate(list(extract_features(self.backbone, np.asarray(model_input, np.uint8))))


def log_model(run_id: str, path: str, *, height: int, width: int, name: str, requirements: list[str]) -> str:
    """Log a model file to an MLflow run, unless the run already has a model.

    Args:
        run_id: the MLflow run.
        path: path of the safetensors file.
        height: image height of the model in pixels.
        width: image width of the model in pixels.
        name: name of the logged model.
        requirements: pip requirements for loading the model.

    Returns:
        MLflow's id of the logged model.
    """
    client = MlflowClient()
    if model_id := client.get_run(run_id).data.tags.get("pul.model_id"):
        return str(model_id)
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, height, width, 3))])
    features = Schema([TensorSpec(np.dtype(np.float32), (-1, -1))])
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow recommends an input example
        logged = mlflow.pyfunc.log_model(
            name=name,
            python_model=__file__,
            artifacts={"weights": path},
            signature=ModelSignature(images, features),
            pip_requirements=requirements,
        )
    client.set_tag(run_id, "pul.model_id", logged.model_id)
    return str(logged.model_id)


set_model(ReIDModel())
