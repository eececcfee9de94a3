"""Clusters that are stable under small changes of DBSCAN's epsilon.

These functions stay on the CPU: they count a few integers per image, which takes less time than a transfer is worth.
"""

import math

import numpy as np

from pul_core.arrays import Floats, Ints, Mask


def cluster_jaccard_per_image(first: Ints, second: Ints) -> Floats:
    """Return, for each image, the Jaccard index of its cluster in one clustering and its cluster in another.

    ``|A_i and B_i| / |A_i or B_i|``, with A_i and B_i the two clusters of image i.

    Args:
        first: (n,) cluster of each image; -1 for an image in no cluster, which counts as a cluster of one image.
        second: (n,) the same for the other clustering; its numbering may differ.

    Returns:
        (n,) in (0, 1].

    Example:
        >>> cluster_jaccard_per_image(np.array([0, 0, 0, -1]), np.array([1, 1, -1, 2])).round(2).tolist()
        [0.67, 0.67, 0.33, 1.0]
    """
    first, second = _with_singletons(first), _with_singletons(second)
    _, pair, sizes = np.unique(first * (second.max(initial=0) + 1) + second, return_inverse=True, return_counts=True)
    intersection = sizes[pair]
    jaccard: Floats = intersection / (np.bincount(first)[first] + np.bincount(second)[second] - intersection)
    return jaccard


def keep_stable_clusters(assignments: Ints, independence: Floats, compactness: Floats, *, independent_share: float) -> Ints:
    """Keep the clusters that are independent of their neighbours, and in each of them the images that are compact.

    The independence of a cluster is the largest among its images; at least ``independent_share`` of all clusters are kept, the most
    independent ones. In each of them only the images with the cluster's largest compactness are kept: all images, if none of them is
    linked at the smaller epsilon.

    Args:
        assignments: (n,) cluster of each image, from 0; -1 for an image in no cluster.
        independence: (n,) ``cluster_jaccard_per_image`` with a larger epsilon; low for clusters that are about to merge.
        compactness: (n,) the same with a smaller epsilon; low for images that are about to be split off.
        independent_share: smallest share of the clusters to keep, in (0, 1].

    Returns:
        (n,) clusters of at least two images, numbered from 0 in the order of their first image; -1 for all other images.

    Source: Ge et al. 2020 (SpCL), section 3.2. SpCL computes the threshold of independence in the first epoch and keeps it. Here it is
    computed in every iteration, so that an iteration depends on its features only.

    Example:
        >>> assignments = np.array([0, 0, 0, 1, 1, -1])
        >>> independence, compactness = np.array([0.5, 0.5, 0.5, 1, 1, 1]), np.array([0.7, 0.7, 0.3, 1, 1, 1])
        >>> [keep_stable_clusters(assignments, independence, compactness, independent_share=share).tolist() for share in (1.0, 0.5)]
        [[0, 0, -1, 1, 1, -1], [-1, -1, -1, 0, 0, -1]]
    """
    k = int(assignments.max(initial=-1)) + 1
    if k == 0:
        return assignments
    clustered, cluster = assignments >= 0, assignments.clip(min=0)
    cluster_independence, cluster_compactness = np.zeros(k), np.zeros(k)
    np.maximum.at(cluster_independence, cluster[clustered], independence[clustered])
    np.maximum.at(cluster_compactness, cluster[clustered], compactness[clustered])
    threshold = np.sort(cluster_independence)[k - math.ceil(round(independent_share * k, 6))]  # 0.7 * 10 is 7.000000000000001
    kept = clustered & (cluster_independence[cluster] >= threshold) & (compactness >= cluster_compactness[cluster])
    kept &= np.bincount(cluster[kept], minlength=k)[cluster] > 1
    return renumber_clusters(assignments, kept)


def renumber_clusters(assignments: Ints, kept: Mask) -> Ints:
    """Number the clusters of the kept images from 0 in the order of their first image; all other images get -1.

    Example:
        >>> renumber_clusters(np.array([5, 3, 3, 5, 1]), np.array([True, True, True, True, False])).tolist()
        [0, 1, 1, 0, -1]
    """
    renumbered = np.full(len(assignments), -1)
    _, first, dense = np.unique(assignments[kept], return_index=True, return_inverse=True)
    renumbered[kept] = np.argsort(np.argsort(first))[dense]
    return renumbered


def _with_singletons(assignments: Ints) -> Ints:
    """Make each image in no cluster a cluster of its own, numbered after the others."""
    return np.where(assignments < 0, assignments.max(initial=-1) + 1 + np.arange(len(assignments)), assignments)
