"""Array types that the core shares, and L2 normalisation by rows. A leaf: it imports nothing of the project but its errors."""

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
    """Return a copy of some rows, each divided by its length.

    Raises:
        UserError: a row is a zero vector or not finite.
    """
    tensor = torch.from_numpy(np.array(take(features, rows), np.float32, order="C"))  # a copy: what Arrow lends may not be written to
    lengths = tensor.norm(dim=1, keepdim=True)
    if not torch.isfinite(lengths).all() or bool((lengths == 0).any()):
        raise UserError(f"a {name} feature is a zero vector or not finite")
    return tensor.div_(lengths)


def take(features: Features, rows: Ints) -> Features:
    """Return rows at ascending positions: a view where they follow each other, which a memory-mapped file reads in one go."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return features[rows[0] : rows[-1] + 1]
    return features[rows]
