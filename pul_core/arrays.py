"""Array types that the core shares, row selection and L2 normalisation. A leaf module: it imports only the project's errors."""

import numpy as np
import numpy.typing as npt
import torch

from pul_core.errors import UserError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Features = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]


def unit_rows(features: Features, rows: Ints, name: str) -> torch.Tensor:
    """Return L2-normalised copies of the features at the given positions.

    Args:
        features: (n, d), may be memory-mapped.
        rows: (m,) positions, ascending.
        name: what the features are, for the error message, e.g. "query".

    Returns:
        (m, d) tensor of unit vectors.

    Raises:
        UserError: a feature is a zero vector or contains a value that is not finite.

    Example:
        >>> unit_rows(np.array([[0, 2], [9, 9], [3, 4]], np.float32), np.array([0, 2]), "query").tolist()
        [[0.0, 1.0], [0.6000000238418579, 0.800000011920929]]
    """
    tensor = torch.from_numpy(np.array(take_rows(features, rows), np.float32, order="C"))  # a copy, because Arrow's buffers are read-only
    lengths = tensor.norm(dim=1, keepdim=True)
    if not torch.isfinite(lengths).all() or bool((lengths == 0).any()):
        raise UserError(f"a {name} feature is a zero vector or not finite: check the model and the images that the features come from")
    return tensor.div_(lengths)


def take_rows(features: Features, rows: Ints) -> Features:
    """Return the features at ascending positions: a view if the positions are consecutive, so that a mapped file is read sequentially.

    Args:
        features: (n, d), may be memory-mapped.
        rows: (m,) positions, ascending.

    Returns:
        (m, d) features; a copy if the positions are not consecutive.

    Example:
        >>> take_rows(np.eye(3, dtype=np.float32), np.array([1, 2])).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return features[rows[0] : rows[-1] + 1]
    return features[rows]
