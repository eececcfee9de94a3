"""Reproducible k-means: the same number of threads gives the same bytes.

scikit-learn's k-means is not reproducible: it adds the partial sums of its threads in the order in which they finish. docs/adr/0003 has
the measurements.
"""

import numpy as np
import torch
from torch import Generator, Tensor

from pul_core.arrays import Features, unit_rows
from pul_core.clustering.centres import CHUNK, Clusters, find_centres, mean_points
from pul_core.errors import UserError
from pul_core.settings import KMeans


def default_num_clusters(num_images: int) -> int:
    """Return the default number of clusters: one for every 16 images, at least 2, at most one per image.

    Labelled sets have 4 to 31 training images per person (CUHK01 4, CUHK03 10, Market-1501 17, DukeMTMC-reID 24, MSMT17 31). 16 is within
    that range; it was not tuned.

    Example:
        >>> default_num_clusters(12936), default_num_clusters(3)
        (808, 2)
    """
    return max(1, min(num_images, max(2, round(num_images / 16))))


def cluster_by_kmeans(features: Features, settings: KMeans, *, seed: int) -> Clusters:
    """Cluster features by k-means and find the centre of each cluster.

    Args:
        features: (n, d), one row per image.
        settings: K and the options of k-means; K = 0 stands for ``default_num_clusters(n)``.
        seed: of the initial centroids of all restarts.

    Returns:
        Clusters numbered from 0 without gaps; fewer than K if fewer points are distinct.

    Raises:
        UserError: K is out of range, or a feature is not finite or a zero vector.

    Source: Fan et al. 2018, equations 1 and 2; greedy k-means++ initialisation (Arthur and Vassilvitskii 2007).

    Example:
        >>> points = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
        >>> cluster = cluster_by_kmeans(points, KMeans(num_clusters=2), seed=0).cluster
        >>> bool(cluster[0] == cluster[1] != cluster[2] == cluster[3])
        True
    """
    n = len(features)
    k = settings.num_clusters or default_num_clusters(n)
    if not 1 <= k <= n:
        raise UserError(f"num_clusters must be between 1 and the number of images ({n}), got {k}")
    unit = unit_rows(features, np.arange(n), "target")
    points = unit if settings.normalise else torch.from_numpy(np.array(features, order="C"))  # a copy: Arrow's buffers are read-only
    generator = Generator().manual_seed(seed)
    runs = [_run(points, k, settings.max_passes, generator) for _ in range(settings.num_restarts)]
    assignments, inertia, passes = min(runs, key=lambda run: run[1])
    assignments = assignments[_first_equal_point(points)]  # rounding may put equal points into different clusters
    _, assignments = torch.unique(assignments, return_inverse=True)  # closes the gaps of clusters that stayed empty
    return Clusters(assignments.numpy(), *find_centres(points, unit, assignments, settings.centre_from), inertia, passes)


def _run(points: Tensor, k: int, max_passes: int, generator: Generator) -> tuple[Tensor, float, int]:
    """Run k-means once; return the assignments, the inertia and the number of passes."""
    centroids = points[_plus_plus(points, k, generator)]
    assignments = torch.full((len(points),), -1)
    passes = 0
    while passes < max_passes:
        passes += 1
        previous, (assignments, distances) = assignments, _assign(points, centroids)
        if torch.equal(previous, assignments):
            break
        centroids, sizes = mean_points(points, assignments, k)
        empty = torch.nonzero(sizes == 0).flatten()
        if len(empty):  # an empty cluster restarts at one of the points farthest from their centroids
            centroids[empty] = points[distances.topk(len(empty)).indices]
    centroids, _ = mean_points(points, assignments, k)  # the last pass may have moved points
    blocks = zip(torch.split(points, CHUNK), torch.split(assignments, CHUNK), strict=True)
    inertia = sum(float((block - centroids[cluster]).square().sum(dtype=torch.float64)) for block, cluster in blocks)
    return assignments, inertia, passes


def _plus_plus(points: Tensor, k: int, generator: Generator) -> Tensor:
    """Choose k initial centroids; each is the best of 2 + ln k points drawn in proportion to their squared distance to the chosen ones."""
    n, num_draws = len(points), 2 + int(np.log(k))
    squares = points.square().sum(1)
    chosen = torch.empty(k, dtype=torch.int64)
    chosen[0] = torch.randint(n, (1,), generator=generator)
    closest = (squares + squares[chosen[0]] - 2 * (points @ points[chosen[0]])).clamp_(min=0)
    for position in range(1, k):
        cumulated = closest.double().cumsum(0)
        draws = torch.rand(num_draws, generator=generator, dtype=torch.float64) * cumulated[-1]
        candidates = torch.searchsorted(cumulated, draws).clamp_(max=n - 1)
        distances = (squares[:, None] + squares[candidates] - 2 * (points @ points[candidates].T)).clamp_(min=0)  # (n, num_draws)
        distances = torch.minimum(distances, closest[:, None])
        best = int(distances.sum(0).argmin())
        closest, chosen[position] = distances[:, best].clone(), candidates[best]
    return chosen


def _assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centroid of each point and the squared distance to it."""
    offsets = centroids.square().sum(1)
    nearest = [(offsets - 2 * (block @ centroids.T)).min(1) for block in torch.split(points, CHUNK)]
    distances = torch.cat([block.values for block in nearest]) + points.square().sum(1)
    return torch.cat([block.indices for block in nearest]), distances.clamp_(min=0)


def _first_equal_point(points: Tensor) -> Tensor:
    """Return, for each point, the index of the first point that is equal to it."""
    rows = np.ascontiguousarray(points).view(np.dtype((np.void, points.shape[1] * points.element_size()))).ravel()
    _, index, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return torch.from_numpy(index[inverse])
