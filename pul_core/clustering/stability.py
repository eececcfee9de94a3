"""Which clusters are the same a little tighter and a little looser: what agrees with itself is more likely to be one person."""

import math

import numpy as np
import numpy.typing as npt

from pul_core.arrays import Ints

Floats = npt.NDArray[np.float64]


def overlap_of_own_clusters(one: Ints, other: Ints) -> Floats:
    """Return, image by image, the Jaccard index of the clusters it belongs to in two clusterings.

    Args:
        one: (n,) clusters; -1 for an image of none, which counts as a cluster of its own.
        other: (n,) the same of the other clustering; its numbers need not correspond.

    Returns:
        (n,) in (0, 1].

    Example:
        >>> overlap_of_own_clusters(np.array([0, 0, 0, -1]), np.array([1, 1, -1, 2])).round(2).tolist()
        [0.67, 0.67, 0.33, 1.0]
    """
    one, other = _alone(one), _alone(other)
    _, pair, shared = np.unique(one * (other.max(initial=0) + 1) + other, return_inverse=True, return_counts=True)
    both = shared[pair]
    overlap: Floats = both / (np.bincount(one)[one] + np.bincount(other)[other] - both)
    return overlap


def disband(found: Ints, independence: Floats, compactness: Floats, *, independent_share: float) -> Ints:
    """Keep the clusters that are independent enough, and of each the images that are compact enough; the others belong to none.

    A cluster is as independent as its most independent image; ``independent_share`` of them all stay at least, the most independent ones.
    Of these, only images that share the cluster's largest compactness stay: all of them where it falls apart altogether.

    Args:
        found: (n,) clusters, -1 for none.
        independence: (n,) overlap with the image's cluster in a looser clustering: low where clusters are about to merge.
        compactness: (n,) the same in a tighter one: low where the image hangs on by a thread.
        independent_share: share of the clusters that is kept at least, in (0, 1].

    Returns:
        (n,) clusters from 0 in the order of their first image, of two images or more; -1 for an image of none.

    Source: Ge et al. 2020 (SpCL), section 3.2. They find out in the first epoch how independent nine tenths are, and keep that value; here
    it is found each time, so that an iteration depends on nothing but its features.

    Example:
        >>> found = np.array([0, 0, 0, 1, 1, -1])
        >>> independence, compactness = np.array([0.5, 0.5, 0.5, 1, 1, 1]), np.array([0.7, 0.7, 0.3, 1, 1, 1])
        >>> [disband(found, independence, compactness, independent_share=share).tolist() for share in (1.0, 0.5)]
        [[0, 0, -1, 1, 1, -1], [-1, -1, -1, 0, 0, -1]]
    """
    k = int(found.max(initial=-1)) + 1
    if k == 0:
        return found
    inside, own = found >= 0, found.clip(min=0)
    independent, compact = np.zeros(k), np.zeros(k)
    np.maximum.at(independent, found[inside], independence[inside])
    np.maximum.at(compact, found[inside], compactness[inside])
    least = np.sort(independent)[k - math.ceil(round(independent_share * k, 6))]  # 0.7 * 10 is 7.000000000000001
    stays = inside & (independent[own] >= least) & (compactness >= compact[own])
    stays &= np.bincount(found[stays], minlength=k)[own] > 1
    kept = np.full(len(found), -1)
    _, first, dense = np.unique(found[stays], return_index=True, return_inverse=True)
    kept[stays] = np.argsort(np.argsort(first))[dense]
    return kept


def _alone(clusters: Ints) -> Ints:
    """Number the images of no cluster behind the clusters, each on its own."""
    own: Ints = np.where(clusters < 0, clusters.max(initial=-1) + 1 + np.arange(len(clusters)), clusters)
    return own
