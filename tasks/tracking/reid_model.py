"""The MLflow model flavour of a re-ID model: a Python model around the safetensors file, which any MLflow client can load.

Nothing is pickled: MLflow stores this source file ("models from code") and imports it with the path of the weights.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class ReIDModel(PythonModel):
    """Maps images (n, h, w, 3) uint8 to features (n, d) float32.

    With statistics by camera, the parameter ``camids`` is the camera of all images or of each; -1, the default, is unknown.
    """

    _skip_type_hint_validation = True  # the signature is passed when the model is logged; MLflow must not infer one from type hints

    def load_context(self, context: Any) -> None:
        """Build the backbone from the logged model file, and read the statistics if there are any."""
        import pyarrow.parquet as pq

        from tasks.store.model_file import read_model_bytes
        from tasks.store.statistics_file import statistics_from

        self.backbone, self.config = read_model_bytes(Path(context.artifacts["weights"]).read_bytes())
        statistics = context.artifacts.get("statistics")
        self.statistics = statistics_from(pq.read_table(statistics)) if statistics else None

    def predict(self, context: Any, model_input, params=None) -> npt.NDArray[np.float32]:  # type: ignore[no-untyped-def] # noqa: ANN001
        """Return the features of the images."""
        from pul_core.learning.extraction import extract_features

        images = np.asarray(model_input, np.uint8)
        camids = np.broadcast_to(np.asarray((params or {}).get("camids", -1), np.int64), len(images))
        features = extract_features(self.backbone, images, statistics=self.statistics, camids=camids, flip=self.config.flip)
        return np.concatenate(list(features))


set_model(ReIDModel())
