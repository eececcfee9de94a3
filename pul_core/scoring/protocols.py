"""Evaluation protocols by name: which queries search which gallery, how many splits there are, and which same-camera images are ignored.

A protocol is a value; `score_protocol` draws its splits and scores them. docs/protocols.md explains every metric.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from scipy import sparse

from pul_core.arrays import Features, Ints, take_rows, unit_rows
from pul_core.errors import UserError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID, NO_CAMERA, is_same_camera
from pul_core.scoring.evaluation import SameCamera, Scores, score_queries
from pul_core.scoring.ranks import GALLERY_BLOCK, Ties
from pul_core.scoring.reranking import Reranking, reranked_distances

ProtocolName = Literal["market1501", "cross_camera", "cuhk03_new", "cuhk03_old", "viper", "multi_query"]


class Protocol(NamedTuple):
    """The rules of a protocol; the defaults are those of Market-1501."""

    same_camera: SameCamera = "ignore_same_identity"  # which gallery images of the query's camera are ignored
    num_splits: int = 1
    num_identities: int | Literal["all", "half"] = "all"  # identities drawn for each split
    single_shot: bool = False  # in each split, an identity has one gallery image, from another camera than the query's
    pooled_queries: bool = False  # a query is the mean of all images of its identity from its camera


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "market1501": Protocol(),
    "cross_camera": Protocol(same_camera="ignore_all"),
    "cuhk03_new": Protocol(),
    "cuhk03_old": Protocol(num_splits=20, num_identities=100, single_shot=True),
    "viper": Protocol(num_splits=10, num_identities="half"),
    "multi_query": Protocol(pooled_queries=True),
}


class FeatureSet(NamedTuple):
    """The features of the queries or of the gallery, with identities and cameras."""

    features: Features  # (n, d), may be memory-mapped
    pids: Ints  # (n,)
    camids: Ints  # (n,) -1 is unknown


class ProtocolScores(NamedTuple):
    """The scores under a protocol, one entry per query and split."""

    scores: Scores
    query_idx: Ints  # position of the query
    split: Ints  # from 0


def score_protocol(
    protocol: Protocol,
    query: FeatureSet,
    gallery: FeatureSet,
    *,
    ties: Ties = "pessimistic",
    reranking: Reranking | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> ProtocolScores:
    """Score queries against a gallery under a protocol.

    Args:
        protocol: one of ``PROTOCOLS``, or any other value.
        query: what is searched for.
        gallery: what is searched in; junk is ignored.
        ties: see ``score_queries``.
        reranking: constants of k-reciprocal re-ranking, within each split; None for plain cosine distance.
        seed: seed of the splits.
        device: where distances are computed and negatives are counted.

    Returns:
        The scores of each query in each split.

    Raises:
        UserError: too few identities or unknown cameras for the protocol, or a feature that is a zero vector or not finite.

    Source: Zheng et al. 2015 (Market-1501, multi-query), Zhong et al. 2017 (CUHK03 new), Li et al. 2014 (CUHK03 old), Gray et al. 2007
    (VIPeR); how single gallery shots are drawn is ours.

    Example:
        >>> gallery = FeatureSet(np.array([[1, 0.1], [1, 0.9], [0, 1]], np.float32), np.array([1, 2, 2]), np.array([2, 2, 1]))
        >>> query = FeatureSet(np.eye(2, dtype=np.float32), np.array([1, 2]), np.array([1, 1]))
        >>> [score_protocol(PROTOCOLS[name], query, gallery).scores.first_hit.tolist() for name in ("market1501", "cross_camera")]
        [[1.0, 1.0], [1.0, 1.0]]
    """
    features = _pooled(query, gallery) if protocol.pooled_queries else query.features
    parts = []
    for split, query_idx, gallery_idx in _splits(protocol, query, gallery, seed):
        if reranking:  # junk would be a neighbour of other images
            gallery_idx = gallery_idx[gallery.pids[gallery_idx] != JUNK_PID]
        query_features, gallery_features = take_rows(features, query_idx), take_rows(gallery.features, gallery_idx)
        distances = reranked_distances(query_features, gallery_features, reranking, device=device) if reranking else None
        scores = score_queries(
            query_features,
            query.pids[query_idx],
            query.camids[query_idx],
            gallery_features,
            gallery.pids[gallery_idx],
            gallery.camids[gallery_idx],
            same_camera=protocol.same_camera,
            ties=ties,
            distances=distances,
            device=device,
        )
        parts.append((scores, query_idx, np.full(len(query_idx), split)))
    score_parts, query_idx_parts, split_parts = zip(*parts, strict=True)
    scores = Scores(*map(np.concatenate, zip(*score_parts, strict=True)))
    return ProtocolScores(scores, np.concatenate(query_idx_parts), np.concatenate(split_parts))


def _splits(protocol: Protocol, query: FeatureSet, gallery: FeatureSet, seed: int) -> Iterator[tuple[int, Ints, Ints]]:
    """Yield (split number, query positions, gallery positions that they search); the queries of a split may come in several parts."""
    if protocol.num_identities == "all":
        yield 0, np.arange(len(query.pids)), np.arange(len(gallery.pids))
        return
    shared = np.intersect1d(query.pids, gallery.pids)
    shared = shared[shared > DISTRACTOR_PID]
    count = len(shared) // 2 if protocol.num_identities == "half" else protocol.num_identities
    if not 1 <= count <= len(shared):
        raise UserError(
            f"the protocol requires {max(count, 2)} identities in both query and gallery, got {len(shared)}: choose another protocol"
        )
    for split in range(protocol.num_splits):
        rng = np.random.default_rng((seed, split))
        drawn_pids = rng.choice(shared, count, replace=False)
        query_idx, gallery_idx = (np.flatnonzero(np.isin(pids, drawn_pids)) for pids in (query.pids, gallery.pids))
        if not protocol.single_shot:
            yield split, query_idx, gallery_idx
            continue
        for camid in np.unique(query.camids[query_idx]):
            other_cameras = gallery_idx[~is_same_camera(gallery.camids[gallery_idx], camid)]
            shuffled = rng.permutation(other_cameras)
            _, first = np.unique(gallery.pids[shuffled], return_index=True)
            yield split, query_idx[query.camids[query_idx] == camid], np.sort(shuffled[first])


def _pooled(query: FeatureSet, gallery: FeatureSet) -> Features:
    """Return, for each query, the sum of the L2-normalised features of all query and gallery images of its identity from its camera.

    The sum replaces the mean, because cosine distance ignores lengths. Without cameras the correct matches would be pooled, too. The sums
    stay on the CPU: they read each feature once, and on a GPU the order of additions would vary.
    """
    if (query.camids == NO_CAMERA).any():
        raise UserError("multi_query requires the camera of every query, but some are unknown: choose another protocol")
    q = len(query.pids)
    pids, camids = np.append(query.pids, gallery.pids), np.append(query.camids, gallery.camids)
    _, groups = np.unique(np.stack((pids, camids), 1), axis=0, return_inverse=True)
    query_groups, query_group_idx = np.unique(groups[:q], return_inverse=True)
    total = np.zeros((len(query_groups), query.features.shape[1]), np.float32)
    for features, image_groups in ((query.features, groups[:q]), (gallery.features, groups[q:])):
        rows = np.flatnonzero(np.isin(image_groups, query_groups))
        for start in range(0, len(rows), GALLERY_BLOCK):
            block = rows[start : start + GALLERY_BLOCK]
            cells = np.searchsorted(query_groups, image_groups[block]), np.arange(len(block))
            membership = sparse.csr_matrix((np.ones(len(block), np.float32), cells), shape=(len(query_groups), len(block)))
            total += membership @ unit_rows(features, block, "multi-query").numpy()
    return total[query_group_idx]
