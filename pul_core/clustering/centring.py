"""Centring of features by camera: every camera gets the same mean feature."""

import numpy as np

from pul_core.arrays import Features, Ints


def centre_by_camera(features: Features, camids: Ints) -> Features:
    """L2-normalise the features, then shift those of each camera so that all cameras have the same mean.

    ``f_i / |f_i| - (mean over the images of i's camera) + (mean over all images)``

    Args:
        features: (n, d), without zero vectors.
        camids: (n,) camera of each image. All images with an unknown camera (``identities.NO_CAMERA``, -1) count as one camera, so the
            features are only normalised if no camera is known.

    Returns:
        (n, d) float32.

    Source: ours; the linear part of Camera-based Batch Normalization (Zhuang et al. 2020), which is applied there in every layer.

    Example:
        >>> features = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
        >>> centred = centre_by_camera(features, np.array([0, 0, 1, 1]))
        >>> bool(np.allclose(centred[:2].mean(0), centred[2:].mean(0)))
        True
    """
    centred: Features = features / np.linalg.norm(features, axis=1, keepdims=True).astype(np.float32)
    overall_mean = centred.mean(0)
    for camid in np.unique(camids):
        on_camera = camids == camid
        centred[on_camera] += overall_mean - centred[on_camera].mean(0)
    return centred
