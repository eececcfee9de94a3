"""Similar clusters: those that may show the same person, so that fine-tuning should not push them apart."""

import numpy as np

from pul_core.arrays import Features, Ints, unit_rows
from pul_core.clustering.neighbours import nearest_neighbours


def similar_clusters(centres: Features, num_similar: int, min_cosine: float = -1, *, device: str = "cpu") -> Ints:
    """Return the pairs of clusters whose centres are among each other's nearest centres, and close enough.

    Clustering often splits a person, mostly along cameras. The pieces become classes of their own, which a softmax over all classes would
    push apart. `pul_core.learning.training.train` leaves the clusters of these pairs out of each other's softmax.

    Args:
        centres: (k, d) feature of each cluster's centre, not zero.
        num_similar: number of nearest centres, N, the centre itself not included.
        min_cosine: smallest cosine of the two centres.
        device: where the centres are compared.

    Returns:
        (p, 2) pairs in ascending order, each in both directions; at most N of a cluster.

    Source: ours, after Huynh et al. 2022 (false negative elimination), who leave similar images out of a contrastive loss.

    Example:
        >>> similar_clusters(np.array([[1, 0], [0, 1], [1, 0.1], [0.5, 1]], np.float32), 1).tolist()
        [[0, 2], [1, 3], [2, 0], [3, 1]]
    """
    nearest = nearest_neighbours(centres, num_similar + 1, device=device).nearest[:, 1:]  # (k, N)
    first, second = np.repeat(np.arange(len(centres)), nearest.shape[1]), nearest.ravel()
    is_mutual = np.isin(first * len(centres) + second, second * len(centres) + first)
    first, second = first[is_mutual], second[is_mutual]
    unit = unit_rows(centres, np.arange(len(centres)), "centres").numpy()
    is_close = (unit[first] * unit[second]).sum(1) >= min_cosine
    pairs: Ints = np.stack((first, second), axis=1)[is_close]
    return np.unique(pairs, axis=0)
