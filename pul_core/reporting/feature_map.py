"""The 2-D map of features: a sample of the images, and a PCA that is fitted once, so that positions of all iterations are comparable."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA

from pul_core.arrays import Features, Floats, Ints

MAX_POINTS = 3000


class MapAxes(NamedTuple):
    """The two principal axes of a map."""

    mean: Features  # (d,)
    axes: Features  # (2, d)
    explained: Floats  # (2,) share of the variance along each axis


def sample_positions(n: int, seed: int, max_points: int = MAX_POINTS) -> Ints:
    """Return the positions of at most ``max_points`` of n images, drawn uniformly and ascending.

    Example:
        >>> sample_positions(3, seed=0).tolist(), len(sample_positions(20_000, seed=0))
        ([0, 1, 2], 3000)
    """
    if n <= max_points:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, max_points, replace=False))


def fit_axes(samples: Sequence[Features]) -> MapAxes:
    """Fit the axes of a map to the features of all its iterations together, at most about 3,000 of them.

    Args:
        samples: for each iteration the (m, d) features of the sampled images, which are L2-normalised or centred.

    Source: principal component analysis, scikit-learn's randomised solver.

    Example:
        >>> line = np.array([[0, 0, 0], [1, 1, 0], [2, 2, 0], [3, 3, 0.1]], np.float32)
        >>> fit_axes([line]).explained.round(2).tolist()
        [1.0, 0.0]
    """
    step = max(1, len(samples))
    pooled = np.concatenate([sample[number % max(1, len(sample)) :: step] for number, sample in enumerate(samples)])
    pca = PCA(n_components=2, svd_solver="randomized", random_state=0).fit(pooled)
    return MapAxes(pca.mean_.astype(np.float32), pca.components_.astype(np.float32), pca.explained_variance_ratio_)


def project(features: Features, axes: MapAxes) -> Features:
    """Return the (n, 2) positions of (n, d) features on a map.

    Example:
        >>> axes = MapAxes(np.float32([1, 0, 0]), np.eye(3, dtype=np.float32)[:2], np.array([0.5, 0.5]))
        >>> project(np.float32([[1, 0, 9], [2, 3, 9]]), axes).tolist()
        [[0.0, 0.0], [1.0, 3.0]]
    """
    return np.asarray((features - axes.mean) @ axes.axes.T, np.float32)
