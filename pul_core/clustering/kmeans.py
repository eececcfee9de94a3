"""Reproducible k-means: the same number of threads gives the same bytes.

scikit-learn's k-means is not reproducible: it adds the partial sums of its threads in the order in which they finish. docs/adr/0003 has
the measurements.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Generator, Tensor

from pul_core.arrays import Features, unit_rows
from pul_core.clustering.centres import CHUNK, Clusters, find_centres, mean_points, row_blocks
from pul_core.errors import UserError
from pul_core.settings import KMeans

COARSE_DIMS = 128  # principal dimensions in which seeds are chosen and k-means first runs to its end
CANDIDATES, ROUNDS = 4, 10  # candidates for each seed, and the rounds in which they are drawn


def default_num_clusters(num_images: int) -> int:
    """Return the default number of clusters: one for every 16 images, at least 2, at most one per image.

    Labelled sets have 4 to 31 training images per person (CUHK01 4, CUHK03 10, Market-1501 17, DukeMTMC-reID 24, MSMT17 31). 16 is within
    that range; it was not tuned.

    Example:
        >>> default_num_clusters(12936), default_num_clusters(3)
        (808, 2)
    """
    return max(1, min(num_images, max(2, round(num_images / 16))))


def cluster_by_kmeans(features: Features, settings: KMeans, *, seed: int, device: str = "cpu") -> Clusters:
    """Cluster features by k-means and find the centre of each cluster.

    Args:
        features: (n, d), one row per image.
        settings: K and the options of k-means; K = 0 stands for ``default_num_clusters(n)``.
        seed: of the initial centroids of all restarts.
        device: where it runs.

    Returns:
        Clusters numbered from 0 without gaps; fewer than K if fewer points are distinct.

    Raises:
        UserError: K is out of range, or a feature is not finite or a zero vector.

    Source: Fan et al. 2018, equations 1 and 2; seeds by k-means|| (Bahmani et al. 2012), reduced by greedy k-means++ (Arthur and
    Vassilvitskii 2007). The start in the principal dimensions and the skipped distances are ours; the result is a fixed point of Lloyd's
    passes in all dimensions.

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
    unit = unit_rows(features, np.arange(n), "target", device)
    points = unit if settings.normalise else torch.from_numpy(np.array(features, order="C")).to(device)  # a copy: Arrow's are read-only
    generator = Generator(device="cpu").manual_seed(seed)
    runs = [_run(points, k, settings.max_passes, generator) for _ in range(settings.num_restarts)]
    assignments, inertia, passes = min(runs, key=lambda run: run[1])
    assignments = assignments[_first_equal_point(points)]  # rounding may put equal points into different clusters
    _, assignments = torch.unique(assignments, return_inverse=True)  # closes the gaps of clusters that stayed empty
    return Clusters(assignments.cpu().numpy(), *find_centres(points, unit, assignments, settings.centre_from), inertia, passes)


def _run(points: Tensor, k: int, max_passes: int, generator: Generator) -> tuple[Tensor, float, int]:
    """Run k-means once; return the assignments, the inertia and the number of passes in all dimensions.

    In many dimensions it first runs in the principal ones, which is fast and ends with less inertia than seeds alone (docs/adr/0003).
    """
    if points.shape[1] > COARSE_DIMS:
        coarse = _principal_coordinates(points, generator)
        start, _ = _lloyd(coarse, coarse[_seeds(coarse, k, generator)], max_passes)
        assignments, passes = _lloyd(points, mean_points(points, start, k)[0], max_passes, start)
    else:
        assignments, passes = _lloyd(points, points[_seeds(points, k, generator)], max_passes)
    centroids, _ = mean_points(points, assignments, k)  # the last pass may have moved points
    inertia = torch.zeros((), dtype=torch.float64, device=points.device)
    for block in row_blocks(len(points), CHUNK):
        inertia += (points[block] - centroids[assignments[block]]).square().sum(dtype=torch.float64)
    return assignments, float(inertia), passes


def _principal_coordinates(points: Tensor, generator: Generator) -> Tensor:
    """Return the (n, COARSE_DIMS) coordinates of the points along approximate singular vectors, those with the largest values first.

    Source: the randomised range finder with one power iteration (Halko, Martinsson and Tropp 2011, algorithm 4.3); Ding and He 2004 relate
    the principal directions to the clusters of k-means.
    """
    directions = torch.randn(points.shape[1], COARSE_DIMS, generator=generator, device="cpu").to(points.device)
    directions, _ = torch.linalg.qr(points.T @ (points @ directions))
    coordinates = points @ directions
    _, rotation = torch.linalg.eigh(coordinates.T @ coordinates)
    return torch.mm(coordinates, rotation.flip(1))


def _seeds(points: Tensor, k: int, generator: Generator) -> Tensor:
    """Choose k initial centroids: candidates are drawn many at a time, then reduced to k with the number of points near each as weights.

    Choosing among all points one by one reads them k times, in operations that are too small for several threads or a GPU.
    """
    if CANDIDATES * k >= len(points):
        return _plus_plus(points, torch.ones(len(points), device=points.device), k, generator)
    candidates, nearest = _draw_candidates(points, CANDIDATES * k, generator)
    weights = torch.bincount(nearest, minlength=len(candidates)).to(points.dtype)
    return candidates[_plus_plus(points[candidates], weights, k, generator)]


def _draw_candidates(points: Tensor, num_candidates: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw candidates in rounds, in proportion to the squared distance to the nearest one of the rounds before.

    Returns:
        Indices of the points that were drawn, and the (n,) position of the one that is nearest to each point.
    """
    n, device = len(points), points.device
    squares = points.square().sum(1)
    candidates = torch.empty(num_candidates, dtype=torch.int64, device=device)
    closest, nearest = torch.ones(n, device=device), torch.zeros(n, dtype=torch.int64, device=device)  # the first ones are drawn uniformly
    for part in np.array_split(np.arange(num_candidates), min(ROUNDS, num_candidates)):
        size, first, last = len(part), int(part[0]), int(part[-1]) + 1
        draws = torch.rand(size, generator=generator, dtype=torch.float64, device="cpu").to(device)
        draws = (torch.arange(size, device=device) + draws) / size  # spread evenly
        cumulated = closest.cumsum(0, dtype=torch.float64)
        candidates[first:last] = torch.searchsorted(cumulated, draws * cumulated[-1]).clamp_(max=n - 1)
        drawn, offsets = points[candidates[first:last]], squares[candidates[first:last]]
        if not first:
            closest.fill_(torch.inf)
        for block in row_blocks(n, CHUNK):
            found = torch.addmm(offsets, points[block], drawn.T, alpha=-2).min(1)
            distances = (found.values + squares[block]).clamp_(min=0)
            nearest[block] = torch.where(distances < closest[block], found.indices + first, nearest[block])
            closest[block] = torch.minimum(distances, closest[block])
    return candidates, nearest


def _plus_plus(points: Tensor, weights: Tensor, k: int, generator: Generator) -> Tensor:
    """Choose k points (of n, d); each is the best of 2 + ln k that are drawn in proportion to weight x squared distance to the chosen ones.

    All random numbers are drawn at once, on the CPU: they are the same on every device, and no step waits for a transfer.
    """
    n, device = len(points), points.device
    draws = torch.rand(k, 2 + int(np.log(k)), generator=generator, dtype=torch.float64, device="cpu").to(device)
    squares = points.square().sum(1)
    chosen = torch.empty(k, dtype=torch.int64, device=device)
    closest = torch.ones(n, device=device)  # the first one is drawn by its weight alone
    for position in range(k):
        cumulated = (closest * weights).cumsum(0, dtype=torch.float64)
        drawn = torch.searchsorted(cumulated, draws[position] * cumulated[-1]).clamp_(max=n - 1)
        offsets = squares[drawn][:, None] + squares
        distances = torch.addmm(offsets, points[drawn], points.T, alpha=-2).clamp_(min=0)  # (num_draws, n)
        if position:
            distances = torch.minimum(distances, closest)
        best = (distances @ weights).argmin(0, keepdim=True)  # a tensor: the host does not wait for it
        closest, chosen[position : position + 1] = distances[best][0], drawn[best]
    return chosen


def _lloyd(points: Tensor, centroids: Tensor, max_passes: int, assignments: Tensor | None = None) -> tuple[Tensor, int]:
    """Assign points and move centroids in turn until no assignment changes; return the assignments and the number of passes.

    If assignments are passed, the centroids must be the means of their clusters: those whose members stay the same are not moved.
    The result is that of computing all distances in every pass. Centroids that did not move are at the same distance as before, and none
    of them was nearer than the point's own one: they matter only if that one moved and no centroid that moved is as near as it was.
    """
    n, k, device = len(points), len(centroids), points.device
    assignments = torch.full((n,), k, device=device) if assignments is None else assignments  # k: no cluster yet
    distances = torch.full((n,), torch.inf, device=device)  # squared, less the square of the point
    moved = torch.ones(k + 1, dtype=torch.bool, device=device)
    passes = 0
    while passes < max_passes and moved[:k].any():
        stale = moved[assignments]
        if passes:
            means, sizes = mean_points(points, assignments, k)
            centroids = torch.where(moved[:k, None], means, centroids)
            empty = torch.nonzero(sizes == 0).flatten()
            if len(empty):  # an empty cluster restarts at one of the points farthest from their centroids
                centroids[empty] = points[(distances + points.square().sum(1)).topk(len(empty)).indices]
                moved[empty] = True
        passes += 1
        previous, before = assignments, distances
        assignments, distances = assignments.clone(), distances.masked_fill(stale, torch.inf)
        _assign(points, row_blocks(n, CHUNK), centroids, moved[:k], assignments, distances)
        farther = torch.nonzero(stale & (distances > before)).flatten()
        _assign(points, torch.split(farther, CHUNK), centroids, ~moved[:k], assignments, distances)
        changed = assignments != previous
        moved = torch.zeros_like(moved)
        for clusters in (previous, assignments):
            moved[torch.where(changed, clusters, k)] = True
    return assignments, passes


def _assign(
    points: Tensor, blocks: Iterable[slice | Tensor], centroids: Tensor, among: Tensor, assignments: Tensor, distances: Tensor
) -> None:
    """Assign the points of the blocks to the nearest of the marked centroids, if it is nearer than ``distances``; both are updated."""
    numbers = torch.nonzero(among).flatten()
    centroids = centroids[numbers]
    offsets = centroids.square().sum(1)
    for block in blocks if len(numbers) else ():
        nearest = torch.addmm(offsets, points[block], centroids.T, alpha=-2).min(1)
        nearer = nearest.values < distances[block]
        distances[block] = torch.where(nearer, nearest.values, distances[block])
        assignments[block] = torch.where(nearer, numbers[nearest.indices], assignments[block])


def _first_equal_point(points: Tensor) -> Tensor:
    """Return, for each point, the index of the first point that is equal to it. Most points differ in the first few dimensions already."""
    first = torch.arange(len(points), device=points.device)
    _, inverse, counts = torch.unique(points[:, :16], dim=0, return_inverse=True, return_counts=True)
    rows = torch.nonzero(counts[inverse] > 1).flatten()
    if len(rows):
        _, inverse = torch.unique(points[rows], dim=0, return_inverse=True)
        first[rows] = torch.full_like(first, len(points)).scatter_reduce_(0, inverse, rows, "amin")[inverse]
    return first
