"""An iteration's model in MLflow: the safetensors file behind MLflow's generic Python flavour, for any MLflow client to load and ask.

No pickle: MLflow imports this file and hands it the path of the weights.
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
    """Images (n, h, w, 3) uint8 to features (n, d) float32."""

    _skip_type_hint_validation = True  # MLflow would advise hints for a signature of its own making; ours is given at logging

    def load_context(self, context: Any) -> None:
        """Build the backbone from the logged file."""
        from tasks.store.model_file import read_model_bytes

        self.backbone, self.config = read_model_bytes(Path(context.artifacts["weights"]).read_bytes())

    def predict(self, context: Any, model_input, params=None) -> npt.NDArray[np.float32]:  # type: ignore[no-untyped-def] # noqa: ANN001
        """Return the images' features."""
        from pul_core.learning.extraction import extract_features

        return np.concatenate(list(extract_features(self.backbone, np.asarray(model_input, np.uint8))))


def log_model(run_id: str, path: str, *, height: int, width: int, name: str, requirements: list[str]) -> str:
    """Log a model file to a run once, and return MLflow's id of it."""
    client = MlflowClient()
    known = client.get_run(run_id).data.tags.get("pul.model_id")
    if known:
        return str(known)
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, height, width, 3))])
    features = Schema([TensorSpec(np.dtype(np.float32), (-1, -1))])
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow would like to try the model on an example first
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
