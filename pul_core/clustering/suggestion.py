"""Suggestions for K of k-means and epsilon of DBSCAN, read from the number of clusters at several values of epsilon.

They use no labels, and nothing in the method uses them.
"""

from typing import NamedTuple

import numpy as np

from pul_core.arrays import Features, Floats, Ints
from pul_core.clustering.density import dbscan, jaccard_distances_below
from pul_core.errors import UserError

MAX_DISTANCES = tuple(percent / 100 for percent in range(20, 75, 5))  # 0.2, 0.25, ... 0.7
MIN_IMAGES = 10  # the curve of fewer images has no meaning
IDENTICAL_WITHIN = 1e-5  # rounding error of identical features, relative to the largest value


class NothingToSuggestError(UserError):
    """The features do not show how many people there are."""


class Curve(NamedTuple):
    """The clusters of DBSCAN as a function of epsilon."""

    max_distance: Floats  # (m,) epsilon, ascending
    num_clusters: Ints  # (m,) number of clusters with at least two images
    clustered: Floats  # (m,) share of the images in these clusters
    largest: Ints  # (m,) size of the largest cluster


class Suggestion(NamedTuple):
    """Suggested values of epsilon and K."""

    max_distance: float  # epsilon
    num_clusters: int  # K
    num_clusters_at: float  # the distance at which K was read, beyond which clusters merge


def clusters_by_distance(
    features: Features,
    camids: Ints,
    *,
    num_neighbours: int,
    num_averaged: int,
    min_samples: int,
    max_distances: tuple[float, ...] = MAX_DISTANCES,
    device: str = "cpu",
) -> Curve:
    """Cluster features by DBSCAN at several values of epsilon. The distances are computed once; memory grows with n x k.

    Args:
        features: (n, d), one row per image.
        camids: (n,) camera of each image; an unknown camera (-1) differs from every camera, also from another unknown one.
        num_neighbours: as in ``settings.Dbscan``.
        num_averaged: as in ``settings.Dbscan``.
        min_samples: as in ``settings.Dbscan``.
        max_distances: (m,) values of epsilon, ascending, each in (0, 1).
        device: where the distances are computed.

    Returns:
        The curve.

    Raises:
        NothingToSuggestError: there are fewer than ten images, or all features are identical.
        UserError: a feature is not finite or a zero vector.

    Example:
        >>> angles = np.repeat([0.0, 1.0, 2.0], 4) + np.tile([0.0, 0.01, 0.02, 0.03], 3)
        >>> features = np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)
        >>> curve = clusters_by_distance(features, np.zeros(12, int), num_neighbours=3, num_averaged=1, min_samples=2)
        >>> curve.num_clusters.tolist()[:3], curve.clustered.tolist()[:3], curve.largest.tolist()[:3]
        ([3, 3, 3], [1.0, 1.0, 1.0], [4, 4, 4])
    """
    if len(features) < MIN_IMAGES:
        raise NothingToSuggestError(f"there is nothing to suggest from {len(features)} images: at least {MIN_IMAGES} are needed")
    if np.ptp(features, axis=0).max() <= IDENTICAL_WITHIN * np.abs(features).max():  # the nearest neighbours would be random
        raise NothingToSuggestError(
            "there is nothing to suggest: all features are identical, because the model does not distinguish the images or because each "
            "camera has one image"
        )
    distances = jaccard_distances_below(
        features,
        camids,
        num_neighbours=num_neighbours,
        num_averaged=num_averaged,
        max_distance=max(max_distances),
        device=device,
    )
    sizes = []
    for max_distance in max_distances:
        assignments = dbscan(distances, max_distance=max_distance, min_samples=min_samples)
        counts = np.bincount(assignments[assignments >= 0])
        sizes.append(counts[counts >= 2])
    return Curve(
        max_distance=np.array(max_distances, np.float64),
        num_clusters=np.array([len(counts) for counts in sizes], np.int64),
        clustered=np.array([counts.sum() / len(features) for counts in sizes], np.float64),
        largest=np.array([counts.max(initial=0) for counts in sizes], np.int64),
    )


def read_curve(curve: Curve) -> Suggestion:
    """Read epsilon and K from a curve.

    At small distances the images of a person are in several clusters or in none, and the number of clusters grows with the distance; at
    large distances clusters merge, and it falls. Epsilon is the smallest distance with at least 95 % of the largest number of clusters. K
    is the number of clusters at the last distance before that number first falls by more than a fifth in one step, starting from the first
    distance with the largest number; if it never does, K is read at the last distance of the curve.

    Args:
        curve: at least one distance; the rules were chosen with steps of 0.05.

    Returns:
        The suggestion; K is at least 2.

    Raises:
        NothingToSuggestError: there are never two clusters.

    Source: ours, chosen on held-out people of a source and on synthetic people (docs/method.md).

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
            "there is nothing to suggest: there are not two clusters at any distance; there are too few images, or the model does not "
            "distinguish them"
        )
    first = int(np.argmax(100 * counts >= 95 * most))
    peak = int(counts.argmax())
    falls = np.flatnonzero(5 * (counts[peak:-1] - counts[peak + 1 :]) > counts[peak:-1])  # in integers, without rounding
    last = peak + int(falls[0]) if len(falls) else len(counts) - 1
    return Suggestion(float(curve.max_distance[first]), int(counts[last]), float(curve.max_distance[last]))
