"""Array types that the core shares, selection of rows, and L2 normalisation. This module imports only the project's errors."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pul_core.errors import UserError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Features = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]
Vectors = TypeVar("Vectors", Features, torch.Tensor)


def unit_rows(features: Features, rows: Ints, name: str, device: str = "cpu") -> torch.Tensor:
    """Return L2-normalised copies of the features at the given positions.

    Args:
        features: (n, d), may be memory-mapped.
        rows: (m,) positions, ascending.
        name: what the features are, for the error message, e.g. "query".
        device: where the copies are normalised and stay.

    Returns:
        (m, d) tensor of unit vectors on the device.

    Raises:
        UserError: a feature is a zero vector or is not finite.

    Example:
        >>> unit_rows(np.array([[0, 2], [9, 9], [3, 4]], np.float32), np.array([0, 2]), "query").tolist()
        [[0.0, 1.0], [0.6000000238418579, 0.800000011920929]]
    """
    copies = np.array(take_rows(features, rows), np.float32, order="C")  # because Arrow's buffers are read-only
    tensor = torch.from_numpy(copies).to(device)
    lengths = tensor.norm(dim=1, keepdim=True)
    invalid = ~(torch.isfinite(lengths) & (lengths > 0)).cpu().numpy().ravel()
    if invalid.any():
        raise UserError(
            f"the feature of {name} image {rows[invalid][0]} is a zero vector or not finite: the weights are damaged, use another model"
        )
    return tensor.div_(lengths)


def take_rows(features: Vectors, rows: Ints) -> Vectors:
    """Return the features at ascending positions. Consecutive positions give a view, so that a memory-mapped file is read sequentially.

    Args:
        features: (n, d), may be memory-mapped or on another device.
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
