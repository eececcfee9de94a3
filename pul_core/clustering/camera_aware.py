"""Camera-aware k-reciprocal encoding: neighbours on the same camera and on other cameras are searched for separately."""

import numpy as np
from scipy import sparse

from pul_core.arrays import Features, Ints
from pul_core.clustering.jaccard import encode_neighbourhoods, reciprocal_neighbours
from pul_core.clustering.neighbours import neighbours_by_camera


def camera_aware_encoding(
    features: Features, camids: Ints, *, num_neighbours: int, num_averaged: int, device: str = "cpu"
) -> sparse.csr_matrix:
    """Encode each image by its k-reciprocal neighbours on its own camera and, separately, on the other cameras.

    Images from the same camera are similar even if they show different people, so a single search finds few images of the same person from
    other cameras. With two searches every image has a fixed number of neighbours on other cameras.

    Args:
        features: (n, d).
        camids: (n,) camera of each image; an unknown camera (-1) differs from every camera, also from another unknown one. If all images
            are from one known camera, only the neighbours on the same camera are used.
        num_neighbours: k on the other cameras; on the same camera it is 0.4 k.
        num_averaged: number of nearest images over which an encoding is averaged, half of them on the same camera; 1: no averaging.
        device: where cosines are computed.

    Returns:
        (n, n) sparse float32 whose rows sum to 1, like that of ``jaccard.reciprocal_encoding``.

    Source: Chen et al. 2024, CA-Jaccard (camera-aware Jaccard distance), with fewer neighbours.

    Example:
        >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
        >>> encoding = camera_aware_encoding(features, np.array([0, 1, 0, 1]), num_neighbours=1, num_averaged=1)
        >>> encoding.toarray().round(1)[0].tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    num_same = max(1, round(0.4 * num_neighbours)) if num_neighbours > 1 else 0
    sizes = max(num_same + 1, num_averaged), max(num_neighbours, num_averaged)
    same, others = neighbours_by_camera(features, camids, *sizes, device=device)
    wide = reciprocal_neighbours(same[:, : num_same + 1]) + reciprocal_neighbours(others[:, :num_neighbours])
    narrow = reciprocal_neighbours(same[:, : num_same // 2 + 1]) + reciprocal_neighbours(others[:, : num_neighbours // 2])
    averaged = np.concatenate((same[:, : num_averaged - num_averaged // 2], others[:, : num_averaged // 2]), axis=1)
    return encode_neighbourhoods(features, wide.tocsr(), narrow.tocsr(), averaged, device=device)
