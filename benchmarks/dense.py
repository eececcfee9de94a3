"""Clusters of the k-reciprocal Jaccard distance the usual way: with several N x N matrices and a loop over the images.

This follows the published re-ranking code (Zhong et al. 2017), with the features' distances to all images instead of query and gallery; it
is what SpCL and Cluster Contrast do on a CPU. Memory grows with N x N: 12,936 images take 0.7 GB a matrix.
"""

import numpy as np
from sklearn.cluster import DBSCAN


def dense_jaccard(features: np.ndarray, *, k1: int, k2: int) -> np.ndarray:
    """Return the (n, n) Jaccard distances of the k-reciprocal neighbours."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = 2 - 2 * features @ features.T
    np.fill_diagonal(distances, -1)  # an image is its own first neighbour, also if another one is equal
    n, wide, narrow = len(features), k1 + 1, round(k1 / 2) + 1
    nearest = np.argpartition(distances, range(max(wide, k2)), axis=1)[:, : max(wide, k2)]
    np.fill_diagonal(distances, 0)

    def reciprocal(i: int, k: int) -> np.ndarray:
        forward = nearest[i, :k]
        return forward[(nearest[forward, :k] == i).any(1)]

    encoding = np.zeros((n, n), np.float32)
    for i in range(n):
        members = expanded = reciprocal(i, wide)
        for j in members:
            candidates = reciprocal(j, narrow)
            if len(np.intersect1d(candidates, members)) > 2 / 3 * len(candidates):
                expanded = np.append(expanded, candidates)
        expanded = np.unique(expanded)
        weights = np.exp(-distances[i, expanded].clip(min=0))
        encoding[i, expanded] = weights / weights.sum()
    del distances
    if k2 > 1:
        encoding = np.stack([encoding[nearest[i, :k2]].mean(0) for i in range(n)])
    rows_of = [np.flatnonzero(encoding[:, j]) for j in range(n)]
    jaccard = np.empty((n, n), np.float32)
    for i in range(n):
        shared = np.zeros(n, np.float32)
        for j in np.flatnonzero(encoding[i]):
            shared[rows_of[j]] += np.minimum(encoding[i, j], encoding[rows_of[j], j])
        jaccard[i] = 1 - shared / (2 - shared)
    return jaccard.clip(min=0)


def cluster_dense(features: np.ndarray, *, k1: int, k2: int, max_distance: float, min_samples: int) -> np.ndarray:
    """Return the cluster of each image, -1 for none."""
    jaccard = dense_jaccard(features, k1=k1, k2=k2)
    return np.asarray(DBSCAN(eps=max_distance, min_samples=min_samples, metric="precomputed", n_jobs=-1).fit_predict(jaccard))
