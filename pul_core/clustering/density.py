"""Features to clusters by density: as many as there are, and images that belong to none. The other way is k-means, `clustering`."""

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.cluster import DBSCAN

from pul_core.arrays import Ints
from pul_core.clustering.cameras import camera_aware_encoding
from pul_core.clustering.kmeans import Clustering, describe
from pul_core.clustering.neighbours import jaccard_distances, nearest_neighbours, reciprocal_encoding
from pul_core.clustering.stability import disband, overlap_of_own_clusters
from pul_core.errors import UserError

NO_CLUSTER = -1


def cluster_by_density(
    features: npt.NDArray[np.float32],
    cameras: Ints,
    *,
    num_neighbours: int,
    num_averaged: int,
    max_distance: float,
    min_samples: int,
    margin: float = 0.0,
    independent_share: float = 0.9,
) -> Clustering:
    """Cluster features by DBSCAN on the Jaccard distance of their k-reciprocal neighbours.

    Memory grows with n x k. With two cameras or more, neighbours on the own camera and on the others are searched for apart.

    Args:
        features: (n, d), one an image.
        cameras: (n,), -1 where nobody knows.
        num_neighbours: k of the neighbourhoods.
        num_averaged: how many nearest images an encoding is averaged over.
        max_distance: epsilon, a Jaccard distance in (0, 1): images nearer than this are linked.
        min_samples: images a dense spot has at least, itself included.
        margin: above 0, clusters are compared with those at epsilon less and plus this, and `disband` leaves what agrees.
        independent_share: see `disband`.

    Returns:
        Clusters numbered from 0 by their first image; -1 for an image that belongs to none, whose cosines are -1, so that no threshold
        selects it. There may be no cluster at all.

    Raises:
        UserError: features that are not finite, a zero vector, or a margin that leads out of (0, 1).

    Source: Ester et al. 1996 (DBSCAN, scikit-learn's); Zhong et al. 2017 (the distance); Chen et al. 2024 (with cameras); Ge et al. 2020
    (the margin).

    Example:
        >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, -1]], np.float32)
        >>> options = dict(num_neighbours=1, num_averaged=1, max_distance=0.5, min_samples=2)
        >>> cluster_by_density(features, np.zeros(5, int), **options).cluster.tolist()
        [0, 0, 1, 1, -1]
    """
    if margin and not 0 < margin < min(max_distance, 1 - max_distance):
        raise UserError(f"max_distance ({max_distance:g}) less and plus margin ({margin:g}) must be distances in (0, 1): lower the margin")
    linked = jaccard_distances_below(
        features, cameras, num_neighbours=num_neighbours, num_averaged=num_averaged, max_distance=max_distance + margin
    )
    found = dbscan(linked, max_distance=max_distance, min_samples=min_samples)
    if margin:
        looser, tighter = (dbscan(linked, max_distance=max_distance + change, min_samples=min_samples) for change in (margin, -margin))
        independence, compactness = overlap_of_own_clusters(found, looser), overlap_of_own_clusters(found, tighter)
        found = disband(found, independence, compactness, independent_share=independent_share)
    return describe(features, found)


def jaccard_distances_below(
    features: npt.NDArray[np.float32], cameras: Ints, *, num_neighbours: int, num_averaged: int, max_distance: float
) -> sparse.csr_matrix:
    """Return the Jaccard distances of all pairs of images up to a limit, camera-aware with two cameras or more.

    Args:
        features: (n, d), one an image.
        cameras: (n,), -1 where nobody knows.
        num_neighbours: k of the neighbourhoods.
        num_averaged: how many nearest images an encoding is averaged over.
        max_distance: pairs farther apart than this are left out.

    Returns:
        (n, n) sparse float32, symmetric up to rounding and with the diagonal. A distance that it holds may be 0.

    Raises:
        UserError: features that are not finite, or a zero vector.

    Example:
        >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
        >>> jaccard_distances_below(features, np.zeros(4, int), num_neighbours=1, num_averaged=1, max_distance=0.5).indices.tolist()
        [0, 1, 0, 1, 2, 3, 2, 3]
    """
    if len(np.unique(cameras)) > 1:
        encoding = camera_aware_encoding(features, cameras, num_neighbours=num_neighbours, num_averaged=num_averaged)
    else:
        neighbours = nearest_neighbours(features, max(num_neighbours + 1, num_averaged))
        encoding = reciprocal_encoding(features, neighbours, k1=num_neighbours, k2=num_averaged)
    return sparse.vstack([_below(block, max_distance) for block in jaccard_distances(encoding, np.arange(len(features)))], format="csr")


def dbscan(linked: sparse.csr_matrix, *, max_distance: float, min_samples: int) -> Ints:
    """Cluster images by DBSCAN on their distances.

    Args:
        linked: (n, n) from ``jaccard_distances_below`` with this limit or a larger one.
        max_distance: epsilon.
        min_samples: images a dense spot has at least, itself included.

    Returns:
        (n,) clusters from 0 in the order of their first image; -1 for an image of none.

    Example:
        >>> linked = sparse.csr_matrix(np.array([[0, 0.2, 0.6], [0.2, 0, 0.7], [0.6, 0.7, 0]], np.float32))
        >>> [dbscan(linked, max_distance=limit, min_samples=2).tolist() for limit in (0.1, 0.3, 0.6)]
        [[-1, -1, -1], [0, 0, -1], [0, 0, 0]]
    """
    found: Ints = DBSCAN(eps=max_distance, min_samples=min_samples, metric="precomputed").fit(linked).labels_.astype(np.int64)
    return found


def _below(block: sparse.csr_matrix, most: float) -> sparse.csr_matrix:
    """Keep the distances up to a limit; zeros are distances, too, and stay."""
    near = block.data <= most
    row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))[near]
    ends = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=block.shape[0]))))
    return sparse.csr_matrix((block.data[near].clip(min=0), block.indices[near], ends), shape=block.shape)
