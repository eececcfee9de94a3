"""The cameras of an indexed set, as numbers."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pul_core.evaluation import NO_CAMERA


def camids(images: pa.Table) -> npt.NDArray[np.int64]:
    """Return the camera of each row of an images.parquet, -1 where nobody knows."""
    return np.asarray(images["camid"].combine_chunks().cast(pa.int64()).fill_null(NO_CAMERA))
