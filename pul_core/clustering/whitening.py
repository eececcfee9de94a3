"""Features in which no few directions drown the others: what light, pose and cameras do to everybody weighs less, and people more."""

import numpy as np
import numpy.typing as npt
import torch

from pul_core.arrays import unit_rows
from pul_core.errors import UserError

ROWS = 4096  # features looked at at once


def whiten(features: npt.NDArray[np.float32], *, power: float, shrinkage: float) -> npt.NDArray[np.float32]:
    """L2-normalise features, take their mean away and divide each principal direction by a power of its standard deviation.

    With v the variance along a direction and m the mean variance, that direction is divided by ``(v + shrinkage * m) ** (power / 2)``.

    Args:
        features: (n, d), none of them zero, may be memory-mapped.
        power: 0 only takes the mean away, 1 makes all directions alike.
        shrinkage: a ridge, as a share of m: keeps directions without variance from being blown up. With 0, and fewer images than
            dimensions, noise is all that is left.

    Returns:
        (n, d) float32, in the axes of the features; their lengths mean nothing.

    Raises:
        UserError: a zero vector, a value that is not finite, or features that are all alike.

    Source: PCA whitening as image retrieval uses it (Jegou and Chum 2012); the power and the shrinkage are ours (docs/log.md).

    Example:
        >>> features = np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]], np.float32)
        >>> found = whiten(features, power=1, shrinkage=0)
        >>> bool(np.allclose(found.T @ found / 4, np.eye(2), atol=0.001))
        True
    """
    n, d = features.shape
    blocks = [np.arange(start, min(start + ROWS, n)) for start in range(0, n, ROWS)]
    mean = torch.zeros(d, dtype=torch.float64)
    for rows in blocks:
        mean += unit_rows(features, rows, "target").double().sum(0) / n
    covariance = torch.zeros((d, d), dtype=torch.float64)
    for rows in blocks:
        moved = unit_rows(features, rows, "target").double() - mean
        covariance += moved.T @ moved / n
    variance, directions = torch.linalg.eigh(covariance)
    variance = variance.clamp(min=0)
    if float(variance.sum()) < 1e-12:  # unit vectors: what is left is rounding
        raise UserError("the features of all images are alike: the model tells nobody apart")
    variance += shrinkage * variance.mean()
    scale = torch.where(variance > 0, variance, 1) ** (-power / 2)
    transform = (directions * scale) @ directions.T
    whitened = np.empty((n, d), np.float32)
    for rows in blocks:
        whitened[rows[0] : rows[-1] + 1] = ((unit_rows(features, rows, "target").double() - mean) @ transform).float().numpy()
    return whitened
