"""Diagnostics of clusters that require the true identities. They describe a run and never influence it."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from pul_core.arrays import Ints
from pul_core.identities import JUNK_PID


class ClusterQuality(NamedTuple):
    """How well clusters match identities. Images in no cluster and images of unknown identity are left out."""

    nmi: float  # normalised mutual information of clusters and identities
    purity: float  # share of images whose identity is the most frequent one of their cluster
    clusters_per_person: float  # mean number of clusters over which the images of a person are spread


def cluster_quality(clusters: Ints, pids: Ints) -> ClusterQuality | None:
    """Compare clusters with the true identities.

    Args:
        clusters: (n,) cluster of each image; -1 for an image in no cluster.
        pids: (n,) identity of each image; `JUNK_PID` if it is unknown.

    Returns:
        The diagnostics, or None if no image of a known identity is in a cluster.

    Source: Manning et al. 2008, section 16.3 (purity, NMI); the number of clusters per person is ours.

    Example:
        >>> quality = cluster_quality(np.array([0, 0, 0, 1, 2, -1]), np.array([7, 7, 8, 8, 8, 8]))
        >>> round(quality.purity, 3), quality.clusters_per_person
        (0.8, 2.0)
    """
    used = (clusters >= 0) & (pids > JUNK_PID)
    if not used.any():
        return None
    pairs, counts = np.unique(np.stack((clusters[used], pids[used])), axis=1, return_counts=True)
    largest = np.zeros(pairs[0].max() + 1, np.int64)
    np.maximum.at(largest, pairs[0], counts)
    return ClusterQuality(
        nmi=float(normalized_mutual_info_score(pids[used], clusters[used])),
        purity=float(largest.sum() / used.sum()),
        clusters_per_person=len(counts) / len(np.unique(pairs[1])),
    )
