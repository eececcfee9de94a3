"""The result of k-means or DBSCAN: the cluster of each image, a centre image per cluster, and cosines to the centres."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pul_core.arrays import Features, Ints, unit_rows
from pul_core.settings import CentreFrom

CHUNK = 512  # rows per block of distances: memory grows with CHUNK x K, not with N x K; 512 was fastest on a CPU (docs/log.md)
CENTROIDS = 64  # centroids per block of distances to all images


class Clusters(NamedTuple):
    """The cluster of each of n images, and the image that is the centre of each of k clusters."""

    cluster: Ints  # (n,) in [0, k), or -1 for an image in no cluster
    centre: Ints  # (k,) index of the image nearest to each centroid
    similarity: Features  # (n,) cosine to the centre of the image's cluster, -1 for an image in no cluster
    similarity_any: Features  # (n,) largest cosine to any centre, -1 for an image in no cluster
    inertia: float = 0.0  # k-means: sum of the squared distances to the centroids
    passes: int = 0  # k-means: number of Lloyd passes of the best run


def clusters_with_centres(features: Features, assignments: Ints, *, device: str = "cpu") -> Clusters:
    """Complete assignments to `Clusters`: choose a centre among the members of each cluster, and compute the cosines.

    Args:
        features: (n, d), one row per image.
        assignments: (n,) cluster of each image, from 0 without gaps; -1 for an image in no cluster, whose cosines are set to -1.
        device: where the features are compared.

    Raises:
        UserError: a feature is not finite or a zero vector.

    Example:
        >>> clusters = clusters_with_centres(np.array([[1, 0], [1, 0.1], [0, 1]], np.float32), np.array([0, 0, -1]))
        >>> clusters.centre.tolist(), clusters.similarity.round(2).tolist()
        ([1], [1.0, 1.0, -1.0])
    """
    unit = unit_rows(features, np.arange(len(features)), "target", device)
    members = np.flatnonzero(assignments >= 0)
    centre = np.empty(0, np.int64)
    similarity, similarity_any = (np.full(len(assignments), -1, np.float32) for _ in range(2))
    if len(members):
        points = unit[torch.from_numpy(members).to(device)]
        cluster = torch.from_numpy(assignments[members]).to(device)
        centre, similarity[members], similarity_any[members] = find_centres(points, points, cluster, "members")
        centre = members[centre]
    return Clusters(assignments, centre, similarity, similarity_any)


def row_blocks(n: int, size: int) -> Iterator[slice]:
    """Yield consecutive blocks of n rows; the last may be smaller.

    Write what is computed of a block into a tensor that is allocated beforehand: small results that are kept between the blocks would keep
    the C library from using a block's memory for the next one.

    Example:
        >>> list(row_blocks(5, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def mean_points(points: Tensor, assignments: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the centroid (k, d) and the size (k,) of each cluster. The centroid of an empty cluster is 0.

    On a GPU the order of the additions, and the last bit of a sum, is fixed only under ``torch.use_deterministic_algorithms``.
    """
    sizes = torch.bincount(assignments, minlength=k)
    sums = points.new_zeros(k, points.shape[1]).index_add_(0, assignments, points)
    return sums / sizes.clamp(min=1)[:, None], sizes


def find_centres(points: Tensor, unit: Tensor, assignments: Tensor, centre_from: CentreFrom) -> tuple[Ints, Features, Features]:
    """Find the centre of each cluster, and the cosines of all images to their own centre and to the nearest one.

    Args:
        points: (n, d) in the space that was clustered.
        unit: (n, d) the same features, L2-normalised.
        assignments: (n,) clusters from 0 without gaps.
        centre_from: whether a centre is chosen among the ``members`` of its cluster or among ``all`` images.

    Returns:
        (k,) indices of the centre images; (n,) cosines to the image's own centre; (n,) largest cosines to any centre.
    """
    centroids, sizes = mean_points(points, assignments, int(assignments.max()) + 1)
    if centre_from == "all":
        offsets = points.square().sum(1)
        centre = torch.empty_like(sizes)
        for block in row_blocks(len(centroids), CENTROIDS):
            centre[block] = (offsets - 2 * (centroids[block] @ points.T)).min(1).indices
    else:
        distances = points.new_empty(len(points))
        for block in row_blocks(len(points), CHUNK):
            distances[block] = (points[block] - centroids[assignments[block]]).square().sum(1)
        order = distances.argsort(stable=True)  # both sorts are stable: the first of equally near images
        centre = order[assignments[order].argsort(stable=True)][sizes.cumsum(0) - sizes]
    centre_features = unit[centre]
    similarity, similarity_any = unit.new_empty(2, len(unit))
    for block in row_blocks(len(unit), CHUNK):
        cosines = unit[block] @ centre_features.T
        similarity[block] = cosines.gather(1, assignments[block, None]).squeeze(1)
        similarity_any[block] = cosines.amax(1)
    return centre.cpu().numpy(), similarity.cpu().numpy(), similarity_any.cpu().numpy()
