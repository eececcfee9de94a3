"""How many people there may be, read off without a label: clusters at a row of distances, and two rules that read the curve.

It suggests K of k-means and epsilon of DBSCAN. It steers nothing, and does not know what the two are used for.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pul_core.arrays import Ints
from pul_core.clustering.density import dbscan, jaccard_distances_below

MAX_DISTANCES = tuple(percent / 100 for percent in range(20, 75, 5))  # 0.2, 0.25, ... 0.7
MIN_IMAGES = 10  # fewer are no crowd to read a curve from
ALIKE = 1e-5  # features that differ by less than this share of the largest value are the same but for rounding


class NothingToSuggestError(ValueError):
    """The images tell no number of people."""


class Curve(NamedTuple):
    """What DBSCAN finds at each distance."""

    max_distance: npt.NDArray[np.float64]  # (m,) ascending
    num_clusters: Ints  # (m,) of two images at least
    clustered: npt.NDArray[np.float64]  # (m,) share of the images that are in one
    largest: Ints  # (m,) images in the largest


class Suggestion(NamedTuple):
    """What to try for epsilon and for K."""

    max_distance: float  # epsilon
    num_clusters: int  # K
    num_clusters_at: float  # the distance K was read at: beyond it clusters merge


def clusters_by_distance(
    features: npt.NDArray[np.float32],
    cameras: Ints,
    *,
    num_neighbours: int,
    num_averaged: int,
    min_samples: int,
    max_distances: tuple[float, ...] = MAX_DISTANCES,
) -> Curve:
    """Cluster features by DBSCAN at each of some distances; the distances of pairs are computed once. Memory grows with n x k.

    Args:
        features: (n, d), one an image.
        cameras: (n,), -1 where nobody knows.
        num_neighbours: as `density.cluster_by_density` takes it, like the others.
        num_averaged: as there.
        min_samples: as there.
        max_distances: (m,) ascending, each in (0, 1).

    Returns:
        The curve.

    Raises:
        NothingToSuggestError: fewer than ten images, or all of them alike.
        UserError: features that are not finite, or a zero vector.

    Example:
        >>> angles = np.repeat([0.0, 1.0, 2.0], 4) + np.tile([0.0, 0.01, 0.02, 0.03], 3)
        >>> features = np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)
        >>> curve = clusters_by_distance(features, np.zeros(12, int), num_neighbours=3, num_averaged=1, min_samples=2)
        >>> curve.num_clusters.tolist()[:3], curve.clustered.tolist()[:3], curve.largest.tolist()[:3]
        ([3, 3, 3], [1.0, 1.0, 1.0], [4, 4, 4])
    """
    if len(features) < MIN_IMAGES:
        raise NothingToSuggestError(f"there is nothing to suggest from {len(features)} images: {MIN_IMAGES} are the least")
    if np.ptp(features, axis=0).max() <= ALIKE * np.abs(features).max():  # who is whose neighbour would be chance
        raise NothingToSuggestError("there is nothing to suggest: to this model the images are all alike, or each is alone on its camera")
    reach = max(max_distances)
    linked = jaccard_distances_below(features, cameras, num_neighbours=num_neighbours, num_averaged=num_averaged, max_distance=reach)
    sizes = []
    for limit in max_distances:
        found = dbscan(linked, max_distance=limit, min_samples=min_samples)
        counts = np.bincount(found[found >= 0])
        sizes.append(counts[counts >= 2])
    return Curve(
        max_distance=np.array(max_distances, np.float64),
        num_clusters=np.array([len(counts) for counts in sizes], np.int64),
        clustered=np.array([counts.sum() / len(features) for counts in sizes], np.float64),
        largest=np.array([counts.max(initial=0) for counts in sizes], np.int64),
    )


def read_curve(curve: Curve) -> Suggestion:
    """Read epsilon and K off a curve.

    Below some distance people are still in pieces or in no cluster, so clusters become more; beyond another one clusters merge, so they
    become fewer. Epsilon is the smallest distance with 95 % of the largest number of clusters. K is the number of clusters at the last
    distance, from the first with the largest number on, before that number falls by more than a fifth from one distance to the next;
    if it never does, at the last one of the curve.

    Args:
        curve: at least one distance; the rules were chosen with steps of 0.05.

    Returns:
        The suggestion; K is two at least.

    Raises:
        NothingToSuggestError: nowhere are there two clusters.

    Source: ours, chosen on held-out people of a source and on drawn people (docs/method.md).

    Example:
        >>> clusters = np.array([222, 248, 237, 205, 180, 120])
        >>> read_curve(Curve(np.array([0.35, 0.4, 0.45, 0.5, 0.55, 0.6]), clusters, np.ones(6), np.full(6, 12)))
        Suggestion(max_distance=0.4, num_clusters=180, num_clusters_at=0.55)
    """
    counts = curve.num_clusters
    most = int(counts.max())
    if most == 0:
        raise NothingToSuggestError(
            f"there is nothing to suggest: no two images are within {curve.max_distance[-1]:g} of each other, so there is no cluster"
        )
    if most == 1:
        raise NothingToSuggestError(
            "there is nothing to suggest: at no distance are there two clusters; the images are too few, or alike to this model"
        )
    early = int(np.argmax(100 * counts >= 95 * most))
    peak = int(counts.argmax())
    falls = np.flatnonzero(5 * (counts[peak:-1] - counts[peak + 1 :]) > counts[peak:-1])  # whole numbers: no rounding decides
    late = peak + int(falls[0]) if len(falls) else len(counts) - 1
    return Suggestion(float(curve.max_distance[early]), int(counts[late]), float(curve.max_distance[late]))
