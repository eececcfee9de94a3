"""Centring of features by camera: every known camera gets the same mean feature."""

import numpy as np
import torch

from pul_core.arrays import Features, Ints
from pul_core.clustering.centres import mean_points
from pul_core.identities import NO_CAMERA


def centre_by_camera(features: Features, camids: Ints, *, device: str = "cpu") -> Features:
    """L2-normalise the features, then shift those of each known camera so that all known cameras have the same mean.

    ``f_i / |f_i| - (mean over the images of i's camera) + (mean over all images)``

    The images of an unknown camera (``identities.NO_CAMERA``, -1) are only normalised. Two of them may be from different cameras, so their
    joint mean says nothing about either; a single image is no estimate of its camera's mean, and subtracting it would leave nothing. The
    best estimate of that mean is the mean over all images, which makes the shift zero.

    Args:
        features: (n, d), without zero vectors.
        camids: (n,) camera of each image; -1 is unknown.
        device: where the means are computed.

    Returns:
        (n, d) float32.

    Source: ours; the linear part of Camera-based Batch Normalization (Zhuang et al. 2020), which is applied there in every layer.

    Example:
        >>> features = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
        >>> centred = centre_by_camera(features, np.array([0, 0, 1, 1]))
        >>> bool(np.allclose(centred[:2].mean(0), centred[2:].mean(0)))
        True
    """
    centred = torch.from_numpy(np.array(features, np.float32)).to(device)  # a copy
    centred /= torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    cameras, camera = np.unique(camids, return_inverse=True)
    means, _ = mean_points(centred, torch.from_numpy(camera).to(device), len(cameras))
    shifts = centred.mean(0) - means
    shifts[torch.from_numpy(cameras == NO_CAMERA).to(device)] = 0
    centred += shifts[torch.from_numpy(camera).to(device)]
    return centred.cpu().numpy()
