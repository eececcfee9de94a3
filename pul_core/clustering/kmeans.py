"""Features to clusters, each with a centre: the feature nearest the centroid. Not the choice of what is reliable, which is `selection`.

k-means is written out here because the same call with as many threads must give the same bytes, even with more threads than cores:
scikit-learn's adds its threads' partial sums in the order they finish. Tests check it against scikit-learn's; docs/adr/0003 has figures.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from pul_core.errors import UserError

CHUNK = 4096  # rows of a distance block: memory grows with CHUNK x K, not with N x K
CentreFrom = Literal["members", "all"]


class Clustering(NamedTuple):
    """Who belongs to which cluster, and which image stands for each: k may be smaller than asked for where points coincide."""

    cluster: npt.NDArray[np.int64]  # (n,) in [0, k), or -1 for an image of no cluster
    centre: npt.NDArray[np.int64]  # (k,) index of the image nearest each centroid
    similarity: npt.NDArray[np.float32]  # (n,) cosine to the own cluster's centre
    similarity_any: npt.NDArray[np.float32]  # (n,) largest cosine to any centre
    inertia: float  # summed squared distance to the own centroid
    passes: int  # Lloyd passes of the best restart


def default_num_clusters(num_images: int) -> int:
    """Return the number of clusters used when none is given: one for every 16 images, at least 2, at most one an image.

    Labelled sets have 4 to 31 training images a person (CUHK01 4, CUHK03 10, Market-1501 17, DukeMTMC-reID 24, MSMT17 31); 16 is between
    them and an interim rule, not a finding.

    Example:
        >>> default_num_clusters(12936), default_num_clusters(3)
        (808, 2)
    """
    return max(1, min(num_images, max(2, round(num_images / 16))))


def cluster(
    features: npt.NDArray[np.float32],
    *,
    num_clusters: int,
    normalise: bool,
    num_restarts: int,
    max_passes: int,
    centre_from: CentreFrom,
    seed: int,
) -> Clustering:
    """Cluster features by k-means and find each cluster's centre.

    Args:
        features: (n, d), one an image.
        num_clusters: K, between 1 and n.
        normalise: L2-normalise the features first (ours); False clusters them raw (the authors' code).
        num_restarts: k-means runs from different seeds, the smallest inertia wins (the authors' scikit-learn: 10).
        max_passes: Lloyd passes a run at most.
        centre_from: the centre is the feature nearest the centroid among the cluster's ``members`` (paper) or ``all`` (code).
        seed: of the restarts.

    Returns:
        Clusters numbered from 0 without gaps, with centres and cosines.

    Raises:
        UserError: K out of range, features that are not finite, or a zero vector (it has no direction).

    Source: Fan et al. 2018, equations 1 and 2; k-means++ with greedy trials, Arthur and Vassilvitskii 2007.

    Example:
        >>> points = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
        >>> found = cluster(points, num_clusters=2, normalise=True, num_restarts=1, max_passes=10, centre_from="members", seed=0)
        >>> bool(found.cluster[0] == found.cluster[1] != found.cluster[2] == found.cluster[3])
        True
    """
    n = len(features)
    if not 1 <= num_clusters <= n:
        raise UserError(f"num_clusters must be between 1 and the number of images ({n}), not {num_clusters}")
    raw, unit = _checked(features)
    points = unit if normalise else raw

    generator = Generator().manual_seed(seed)
    runs = [_kmeans(points, num_clusters, max_passes, generator) for _ in range(max(1, num_restarts))]
    assigned, inertia, passes = min(runs, key=lambda run: run[1])
    assigned = assigned[_first_of_equals(points)]  # rounding may part equal points
    _, dense = torch.unique(assigned, return_inverse=True)  # drops clusters that stayed empty
    centroids, _ = _means(points, dense, int(dense.max()) + 1)
    centre = _nearest(points, dense, centroids, centre_from)
    own, largest = _similarities(unit, dense, unit[centre])
    return Clustering(dense.numpy(), centre.numpy(), own.numpy(), largest.numpy(), inertia, passes)


def describe(features: npt.NDArray[np.float32], found: npt.NDArray[np.int64]) -> Clustering:
    """Complete clusters that another algorithm found: centres among their members, and cosines.

    Args:
        features: (n, d), one an image.
        found: (n,) clusters from 0 without gaps; -1 for images of none, which get a cosine of -1.

    Raises:
        UserError: features that are not finite, or a zero vector.

    Example:
        >>> described = describe(np.array([[1, 0], [1, 0.1], [0, 1]], np.float32), np.array([0, 0, -1]))
        >>> described.centre.tolist(), described.similarity.round(2).tolist()
        ([1], [1.0, 1.0, -1.0])
    """
    _, unit = _checked(features)
    members = np.flatnonzero(found >= 0)
    own, largest = (np.full(len(found), -1, np.float32) for _ in range(2))
    if len(members) == 0:
        return Clustering(found, np.empty(0, np.int64), own, largest, 0.0, 1)
    points, assigned = unit[members], torch.from_numpy(found[members])
    centroids, _ = _means(points, assigned, int(assigned.max()) + 1)
    centre = _nearest(points, assigned, centroids, "members")
    cosines = _similarities(points, assigned, points[centre])
    own[members], largest[members] = (part.numpy() for part in cosines)
    return Clustering(found, members[centre.numpy()], own, largest, float((points - centroids[assigned]).square().sum()), 1)


def _checked(features: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Return the features as they are and L2-normalised."""
    raw = torch.from_numpy(np.array(features, order="C"))  # (n, d), a copy: what Arrow lends may not be written to
    lengths = raw.norm(dim=1, keepdim=True)
    if not torch.isfinite(lengths).all():
        raise UserError("features hold NaN or infinity, or numbers too large to square: the model's weights are damaged")
    if bool((lengths == 0).any()):
        raise UserError(f"the feature of image {int(lengths.argmin())} is a zero vector, which has no direction to compare")
    return raw, raw / lengths


def _kmeans(points: Tensor, k: int, max_passes: int, generator: Generator) -> tuple[Tensor, float, int]:
    centroids = points[_plus_plus(points, k, generator)]
    assigned = torch.full((len(points),), -1)
    passes = 0
    while passes < max_passes:
        passes += 1
        before, (assigned, distances) = assigned, _assign(points, centroids)
        if torch.equal(before, assigned):
            break
        centroids, counts = _means(points, assigned, k)
        empty = torch.nonzero(counts == 0).flatten()
        if len(empty):  # an empty cluster starts again at a point that is worst off
            centroids[empty] = points[distances.topk(len(empty)).indices]
    centroids, _ = _means(points, assigned, k)  # the last pass may have moved them
    blocks = zip(torch.split(points, CHUNK), torch.split(assigned, CHUNK), strict=True)
    inertia = sum(float((block - centroids[own]).square().sum(dtype=torch.float64)) for block, own in blocks)
    return assigned, inertia, passes


def _plus_plus(points: Tensor, k: int, generator: Generator) -> Tensor:
    """Draw each next centroid in proportion to the squared distance to those chosen; of 2 + ln k draws keep the best."""
    n, trials = len(points), 2 + int(np.log(k))
    squares = points.square().sum(1)
    chosen = torch.empty(k, dtype=torch.int64)
    chosen[0] = torch.randint(n, (1,), generator=generator)
    closest = (squares + squares[chosen[0]] - 2 * (points @ points[chosen[0]])).clamp_(min=0)
    for position in range(1, k):
        cumulated = closest.double().cumsum(0)
        draws = torch.rand(trials, generator=generator, dtype=torch.float64) * cumulated[-1]
        candidates = torch.searchsorted(cumulated, draws).clamp_(max=n - 1)
        distances = (squares[:, None] + squares[candidates] - 2 * (points @ points[candidates].T)).clamp_(min=0)  # (n, trials)
        distances = torch.minimum(distances, closest[:, None])
        best = int(distances.sum(0).argmin())
        closest, chosen[position] = distances[:, best].clone(), candidates[best]
    return chosen


def _assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return each point's nearest centroid and squared distance to it."""
    offsets = centroids.square().sum(1)
    found = [(offsets - 2 * (block @ centroids.T)).min(1) for block in torch.split(points, CHUNK)]
    distances = torch.cat([part.values for part in found]) + points.square().sum(1)
    return torch.cat([part.indices for part in found]), distances.clamp_(min=0)


def _first_of_equals(points: Tensor) -> Tensor:
    """Return for each point the index of one that is equal to it, the same for all that are equal."""
    rows = np.ascontiguousarray(points).view(np.dtype((np.void, points.shape[1] * points.element_size()))).ravel()
    _, index, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return torch.from_numpy(index[inverse])


def _means(points: Tensor, assigned: Tensor, k: int) -> tuple[Tensor, Tensor]:
    counts = torch.bincount(assigned, minlength=k)
    sums = torch.zeros(k, points.shape[1], dtype=points.dtype).index_add_(0, assigned, points)
    return sums / counts.clamp(min=1)[:, None], counts


def _nearest(points: Tensor, assigned: Tensor, centroids: Tensor, centre_from: CentreFrom) -> Tensor:
    """Return the index of the point nearest each centroid; of equally near ones the first."""
    if centre_from == "all":
        offsets = points.square().sum(1)
        return torch.cat([(offsets - 2 * (block @ points.T)).min(1).indices for block in torch.split(centroids, 64)])
    distances = (points - centroids[assigned]).square().sum(1)
    order = torch.from_numpy(np.lexsort((distances.numpy(), assigned.numpy())))  # stable: ties by index
    sizes = torch.bincount(assigned, minlength=len(centroids))
    return order[sizes.cumsum(0) - sizes]


def _similarities(unit: Tensor, assigned: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    own, largest = [], []
    for block, label in zip(torch.split(unit, CHUNK), torch.split(assigned, CHUNK), strict=True):
        cosines = block @ centres.T
        own.append(cosines.gather(1, label[:, None]).squeeze(1))
        largest.append(cosines.max(1).values)
    return torch.cat(own), torch.cat(largest)
