"""Centring of features by camera: every known camera gets the same mean feature."""

import numpy as np

from pul_core.arrays import Features, Ints
from pul_core.identities import NO_CAMERA


def centre_by_camera(features: Features, camids: Ints) -> Features:
    """L2-normalise the features, then shift those of each known camera so that all known cameras have the same mean.

    ``f_i / |f_i| - (mean over the images of i's camera) + (mean over all images)``

    The images of an unknown camera (``identities.NO_CAMERA``, -1) are only normalised. Two of them may be from different cameras, so their
    joint mean says nothing about either; a single image is no estimate of its camera's mean, and subtracting it would leave nothing. The
    best estimate of that mean is the mean over all images, which makes the shift zero.

    Args:
        features: (n, d), without zero vectors.
        camids: (n,) camera of each image; -1 is unknown.

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
    for camid in np.setdiff1d(camids, NO_CAMERA):
        on_camera = camids == camid
        centred[on_camera] += overall_mean - centred[on_camera].mean(0)
    return centred
