"""The MLflow model flavour of a re-ID model: a Python model around the safetensors file, which any MLflow client can load and serve.

Nothing is pickled: MLflow stores this source file ("models from code") and imports it with the path of the weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

KINDS = ("image", "path", "pixels")


class ReIDModel(PythonModel):
    """Maps a table of images to features (n, d) float32.

    A row has one of the columns ``image`` (the bytes of an image file), ``path`` (a file on the machine that computes) and ``pixels``
    (an array (h, w, 3) uint8, RGB, of any size). With statistics by camera, the column ``camid`` is the camera of the image; -1, the
    default, is unknown.
    """

    _skip_type_hint_validation = True  # the signature is passed when the model is logged; MLflow must not infer one from type hints

    def load_context(self, context: Any) -> None:
        """Build the backbone from the logged model file, and read the statistics if there are any."""
        from tasks.store.model_file import read_model_bytes
        from tasks.store.statistics_file import deployed_statistics

        self.backbone, self.config = read_model_bytes(Path(context.artifacts["weights"]).read_bytes())
        statistics = context.artifacts.get("statistics")
        self.statistics = deployed_statistics(statistics) if statistics else None

    def predict(self, context: Any, model_input, params=None) -> npt.NDArray[np.float32]:  # type: ignore[no-untyped-def] # noqa: ANN001
        """Return the features of the images.

        Raises:
            MlflowException: a row has no image or several, or it cannot be decoded.
        """
        from pul_core.learning.extraction import extract_features

        table = pd.DataFrame(model_input)
        if not len(table):
            return np.empty((0, int(self.backbone.num_features)), np.float32)  # type: ignore[arg-type]
        images = np.stack([self._decode(number, row) for number, row in enumerate(table.to_dict("records"))])
        camids = table["camid"].to_numpy(np.int64) if "camid" in table else np.full(len(table), -1)
        features = extract_features(self.backbone, images, statistics=self.statistics, camids=camids, flip=self.config.flip)
        return np.concatenate(list(features))

    def _decode(self, number: int, row: Mapping[Any, Any]) -> npt.NDArray[np.uint8]:
        """Return the image of a row, resized; (h, w, 3) uint8."""
        from tasks.decode import decode_crop, resize_crop

        stated = {kind: row[kind] for kind in KINDS if row.get(kind) is not None and row[kind] is not np.nan}
        if len(stated) != 1:
            raise _refused(number, f"it has {len(stated)} images, expected one in the columns {', '.join(KINDS)}")
        size = self.config.height, self.config.width
        try:
            if "pixels" in stated:
                pixels = np.asarray(stated["pixels"], np.uint8)
                if pixels.ndim != 3 or pixels.shape[2] != 3:
                    raise ValueError(f"pixels have shape {pixels.shape}, expected (h, w, 3)")
                return resize_crop(pixels, *size)
            return decode_crop(stated["image"] if "image" in stated else Path(stated["path"]).read_bytes(), *size)
        except (OSError, ValueError, TypeError, OverflowError) as error:
            raise _refused(number, "its image cannot be read or decoded") from error


def _refused(number: int, reason: str) -> MlflowException:
    return MlflowException(f"row {number} is refused: {reason}", error_code=INVALID_PARAMETER_VALUE)


set_model(ReIDModel())
