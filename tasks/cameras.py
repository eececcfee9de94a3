"""The cameras of an indexed set, as numbers."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pul_core.evaluation import NO_CAMERA
from tasks.artifacts import Artifact, read_table


def camids(images: Artifact) -> npt.NDArray[np.int64]:
    """Return the camera of each row of an images.parquet, -1 where nobody knows."""
    known = read_table(images, ["camid"]).column("camid").combine_chunks()
    return np.asarray(known.cast(pa.int64()).fill_null(NO_CAMERA))
