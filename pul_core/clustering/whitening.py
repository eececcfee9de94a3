"""Partial PCA whitening of features."""

import numpy as np
import torch
from torch import Tensor

from pul_core.arrays import Features, unit_rows
from pul_core.errors import UserError

ROWS = 4096  # features per block


def whiten(features: Features, *, power: float, shrinkage: float, device: str = "cpu") -> Features:
    """L2-normalise features, subtract their mean, and divide each principal direction by a power of its standard deviation.

    A direction with variance v is divided by ``(v + shrinkage * m) ** (power / 2)``, with m the mean variance of all directions. What all
    images share, such as light, pose and cameras, dominates a few directions and weighs less afterwards.

    Args:
        features: (n, d), without zero vectors, may be memory-mapped.
        power: 0 subtracts the mean only; 1 gives all directions the same variance.
        shrinkage: regularisation as a share of m, which limits the amplification of directions with little variance. With 0, and fewer
            images than dimensions, the result is mostly noise.
        device: where it is computed, in blocks: memory on it grows with d^2, not with n.

    Returns:
        (n, d) float32, in the coordinates of the features; not normalised.

    Raises:
        UserError: a feature is not finite or a zero vector, or all features are identical.

    Source: PCA whitening in image retrieval (Jegou and Chum 2012); the power and the shrinkage are ours (docs/log.md).

    Example:
        >>> features = np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]], np.float32)
        >>> whitened = whiten(features, power=1, shrinkage=0)
        >>> bool(np.allclose(whitened.T @ whitened / 4, np.eye(2), atol=0.001))
        True
    """
    n, d = features.shape
    blocks = [np.arange(start, min(start + ROWS, n)) for start in range(0, n, ROWS)]
    mean = torch.zeros(d, dtype=torch.float64, device=device)
    covariance = torch.zeros((d, d), dtype=torch.float64, device=device)  # float32 would lose the directions with little variance
    for rows in blocks:
        unit = unit_rows(features, rows, "target", device).double()
        mean += unit.sum(0) / n
        covariance.addmm_(unit.T, unit, alpha=1 / n)
    covariance -= torch.outer(mean, mean)
    if float(covariance.trace()) < 1e-12:  # rounding errors of unit vectors
        raise UserError("the features of all images are identical: the model does not distinguish people, use another model")
    transform = whitening_transform(covariance, power=power, shrinkage=shrinkage).float()
    whitened = np.empty((n, d), np.float32)
    for rows in blocks:
        centred = unit_rows(features, rows, "target", device).double() - mean
        whitened[rows[0] : rows[-1] + 1] = (centred.float() @ transform).cpu().numpy()
    return whitened


def whitening_transform(covariance: Tensor, *, power: float, shrinkage: float) -> Tensor:
    """Return the symmetric matrix (d, d) float64 that whitens features of a covariance (d, d) float64; see `whiten`.

    Example:
        >>> whitening_transform(torch.diag(torch.tensor([4.0, 1]).double()), power=1, shrinkage=0).diagonal().tolist()
        [0.5, 1.0]
    """
    variance, directions = torch.linalg.eigh(covariance)
    variance = variance.clamp(min=0)
    variance += shrinkage * variance.mean()
    scale = torch.where(variance > 0, variance, 1) ** (-power / 2)
    transform: Tensor = (directions * scale) @ directions.T
    return transform
