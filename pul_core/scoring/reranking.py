"""k-reciprocal re-ranking: distances that combine cosine distance with the Jaccard distance of neighbourhoods.

Neighbourhoods include the other queries, so the result of a query depends on them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from pul_core.arrays import Features, Ints
from pul_core.clustering.jaccard import jaccard_distances, reciprocal_encoding
from pul_core.clustering.neighbours import nearest_neighbours
from pul_core.scoring.ranks import DistanceFunction, cosine_distances


class Reranking(NamedTuple):
    """The constants of k-reciprocal re-ranking; the defaults are those of Zhong et al. 2017."""

    k1: int = 20  # size of the neighbourhood
    k2: int = 6  # size of local query expansion
    weight: float = 0.3  # lambda: weight of the original distance


def reranked_distances(query: Features, gallery: Features, settings: Reranking = Reranking(), *, device: str = "cpu") -> DistanceFunction:
    """Return the function that computes blocks of re-ranked distances, in memory that grows with images x k1.

    ``(1 - lambda) jaccard + lambda original``, where the original distance is the squared Euclidean distance of L2-normalised features,
    divided by the query's largest distance to any query or gallery image.

    Args:
        query: (q, d) features.
        gallery: (g, d) features without junk, since every image is a neighbour of others.
        settings: k1, k2 and lambda.
        device: where the distances are computed and stay.

    Returns:
        The distance function.

    Raises:
        UserError: a feature is a zero vector or not finite.

    Source: Zhong et al. 2017.

    Example:
        >>> gallery = np.array([[1, 0.1], [1, 0.2], [0, 1]], np.float32)
        >>> distances = reranked_distances(np.array([[1, 0]], np.float32), gallery, Reranking(k1=2, k2=1))
        >>> distances(np.arange(3))(np.array([0])).argsort().tolist()
        [[0, 1, 2]]
    """
    features = np.concatenate((query, gallery))
    q = len(query)
    neighbours = nearest_neighbours(features, max(settings.k1 + 1, settings.k2), device=device)
    scale = np.maximum(neighbours.farthest, np.finfo(np.float32).tiny)
    encoding = reciprocal_encoding(features, neighbours, k1=settings.k1, k2=settings.k2, scale=scale, device=device)
    blocks = jaccard_distances(encoding, np.arange(q), to=np.arange(q, len(features)), device=device)
    jaccard = sparse.vstack([sparse.csr_matrix((0, len(gallery)), dtype=np.float32), *blocks], format="csc")
    del features, neighbours, encoding
    original = cosine_distances(query, gallery, device=device)

    def to_gallery(gallery_idx: Ints) -> Callable[[Ints], Tensor]:
        original_to_columns, jaccard_columns = original(gallery_idx), jaccard[:, gallery_idx].tocsr()

        def distances(query_idx: Ints) -> Tensor:
            stored = jaccard_columns[query_idx].tocoo()
            cells = torch.from_numpy(stored.row.astype(np.int64) * len(gallery_idx) + stored.col).to(device)
            block = original_to_columns(query_idx).mul_(torch.from_numpy(2 * settings.weight / scale[query_idx]).to(device)[:, None])
            jaccard_block = torch.ones(block.numel(), device=device)
            jaccard_block[cells] = torch.from_numpy(stored.data).to(device)
            return block.add_(jaccard_block.view_as(block), alpha=1 - settings.weight)

        return distances

    return to_gallery
