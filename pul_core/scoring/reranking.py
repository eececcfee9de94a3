"""k-reciprocal re-ranking: distances that also count whom query and gallery image have for neighbours. It uses the other queries too."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from pul_core.arrays import Ints
from pul_core.clustering.neighbours import jaccard_distances, nearest_neighbours, reciprocal_encoding
from pul_core.scoring.ranks import Distances, cosine_distances


class Reranking(NamedTuple):
    """The constants of Zhong et al. 2017."""

    k1: int = 20  # neighbourhood
    k2: int = 6  # local query expansion
    weight: float = 0.3  # lambda: share of the original distance


def reranked_distances(query: npt.NDArray[np.float32], gallery: npt.NDArray[np.float32], settings: Reranking = Reranking()) -> Distances:
    """Return the function that computes blocks of re-ranked distances, in memory that grows with images x k1.

    ``(1 - lambda) jaccard + lambda original``, where a query's original distance, squared Euclidean of L2-normalised features, is divided
    by the largest it has to any query or gallery image.

    Args:
        query: (q, d) features.
        gallery: (g, d) features, without junk: every image in it is a neighbour of others.
        settings: k1, k2 and lambda.

    Source: Zhong et al. 2017.

    Example:
        >>> gallery = np.array([[1, 0.1], [1, 0.2], [0, 1]], np.float32)
        >>> ask = reranked_distances(np.array([[1, 0]], np.float32), gallery, Reranking(k1=2, k2=1))
        >>> ask(np.arange(3))(np.array([0])).argsort().tolist()
        [[0, 1, 2]]
    """
    everyone = np.concatenate((query, gallery))
    q = len(query)
    neighbours = nearest_neighbours(everyone, max(settings.k1 + 1, settings.k2))
    scale = np.maximum(neighbours.farthest, np.finfo(np.float32).tiny)
    encoding = reciprocal_encoding(everyone, neighbours, k1=settings.k1, k2=settings.k2, scale=scale)
    blocks = jaccard_distances(encoding, np.arange(q), to=np.arange(q, len(everyone)))
    jaccard = sparse.vstack([sparse.csr_matrix((0, len(gallery)), dtype=np.float32), *blocks], format="csc")
    del everyone, neighbours, encoding
    jaccard.data -= 1  # what is not stored is then 0 and stands for 1
    original = cosine_distances(query, gallery)

    def against(columns: Ints) -> Callable[[Ints], torch.Tensor]:
        ask, nearer = original(columns), jaccard[:, columns].tocsr()

        def distances(rows: Ints) -> torch.Tensor:
            own = ask(rows).mul_(torch.from_numpy(2 * settings.weight / scale[rows])[:, None])
            return own.add_(torch.from_numpy(nearer[rows].toarray()).add_(1), alpha=1 - settings.weight)

        return distances

    return against
