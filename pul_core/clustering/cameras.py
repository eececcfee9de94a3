"""What cameras do to features, where they are known: every camera shifts them, and an image's nearest are mostly of its own camera."""

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pul_core.arrays import Ints
from pul_core.clustering.neighbours import encode, nearest_neighbours, reciprocal


def centre_cameras(features: npt.NDArray[np.float32], cameras: Ints) -> npt.NDArray[np.float32]:
    """L2-normalise features and move those of each camera so that all cameras have the same mean.

    Args:
        features: (n, d), none of them zero.
        cameras: (n,) of the images; -1, unknown, is a camera like the others, so without cameras nothing moves.

    Returns:
        (n, d) float32.

    Source: ours; the linear part of what Zhuang et al. 2020, Camera-based Batch Normalization, do in every layer.

    Example:
        >>> features = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
        >>> centred = centre_cameras(features, np.array([0, 0, 1, 1]))
        >>> bool(np.allclose(centred[:2].mean(0), centred[2:].mean(0)))
        True
    """
    unit: npt.NDArray[np.float32] = features / np.linalg.norm(features, axis=1, keepdims=True).astype(np.float32)
    everybody = unit.mean(0)
    for camera in np.unique(cameras):
        own = cameras == camera
        unit[own] += everybody - unit[own].mean(0)
    return unit


def camera_aware_encoding(features: npt.NDArray[np.float32], cameras: Ints, *, num_neighbours: int, num_averaged: int) -> sparse.csr_matrix:
    """Encode each image by its k-reciprocal neighbours on its own camera and, looked for apart, on the others.

    Two images of one camera are near each other whoever they show. Searched for together, they push the same person on another camera
    out of the neighbourhood; searched for apart, each image gets a fixed share of neighbours elsewhere.

    Args:
        features: (n, d).
        cameras: (n,) of the images; with one camera only its own neighbours remain.
        num_neighbours: k on other cameras; two fifths of it on the own one.
        num_averaged: how many nearest images an encoding is averaged over, half of them on the own camera; 1 for none.

    Returns:
        (n, n) sparse float32, rows that sum to 1, as ``neighbours.reciprocal_encoding`` has them.

    Source: Chen et al. 2024, CA-Jaccard (camera-aware Jaccard distance), with fewer neighbours.

    Example:
        >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
        >>> encoding = camera_aware_encoding(features, np.array([0, 1, 0, 1]), num_neighbours=1, num_averaged=1)
        >>> encoding.toarray().round(1)[0].tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    on_own = max(1, round(0.4 * num_neighbours)) if num_neighbours > 1 else 0
    own = nearest_neighbours(features, max(on_own + 1, num_averaged), cameras=cameras).nearest
    others = nearest_neighbours(features, max(num_neighbours, num_averaged), cameras=cameras, same_camera=False).nearest
    wide = reciprocal(own[:, : on_own + 1]) + reciprocal(others[:, :num_neighbours])
    narrow = reciprocal(own[:, : on_own // 2 + 1]) + reciprocal(others[:, : num_neighbours // 2])
    averaged = np.concatenate((own[:, : num_averaged - num_averaged // 2], others[:, : num_averaged // 2]), axis=1)
    return encode(features, wide.tocsr(), narrow.tocsr(), averaged)
