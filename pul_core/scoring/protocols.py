"""Evaluation protocols by name: which queries search which gallery, how often, and what of a query's own camera is left out.

A protocol is a value; `evaluate` draws its splits and scores them. What each figure means is told in docs/protocols.md.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pul_core.arrays import Ints, take, unit_rows
from pul_core.errors import UserError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID, NO_CAMERA
from pul_core.scoring.evaluation import OwnCamera, Scores, cameras, score_queries
from pul_core.scoring.ranks import GALLERY, Ties, cosine_distances
from pul_core.scoring.reranking import Reranking, reranked_distances

ProtocolName = Literal["market1501", "cross_camera", "cuhk03_new", "cuhk03_old", "viper", "multi_query"]


class Protocol(NamedTuple):
    """What makes a protocol."""

    own_camera: OwnCamera = "same_identity"  # what of the query's own camera is left out
    num_splits: int = 1
    num_identities: int | Literal["all", "half"] = "all"  # drawn for each split
    single_shot: bool = False  # in each split an identity has one gallery image, from another camera than the query's
    pooled_queries: bool = False  # a query is the mean over all images of its identity on its camera


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "market1501": Protocol(),
    "cross_camera": Protocol(own_camera="everyone"),
    "cuhk03_new": Protocol(),
    "cuhk03_old": Protocol(num_splits=20, num_identities=100, single_shot=True),
    "viper": Protocol(num_splits=10, num_identities="half"),
    "multi_query": Protocol(pooled_queries=True),
}


class Side(NamedTuple):
    """The queries or the gallery."""

    features: npt.NDArray[np.float32]  # (n, d), may be memory-mapped
    pids: Ints  # (n,)
    camids: Ints | None = None  # (n,) -1, or None for all, is unknown


class Evaluation(NamedTuple):
    """Scores with what they are of: one entry a query of a split."""

    scores: Scores
    query: Ints  # position of the query
    split: Ints  # from 0


def evaluate(
    protocol: Protocol,
    query: Side,
    gallery: Side,
    *,
    ties: Ties = "pessimistic",
    reranking: Reranking | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score queries under a protocol.

    Args:
        protocol: one of ``PROTOCOLS``, or your own.
        query: what is searched for.
        gallery: what is searched in; junk is left out before anything else.
        ties: of ``score_queries``.
        reranking: k-reciprocal re-ranking within each split; None for plain cosine.
        seed: of the splits.

    Raises:
        UserError: too few identities for the protocol, no cameras where it needs them, or features that cannot be compared.

    Source: Zheng et al. 2015 (Market-1501, multi-query), Zhong et al. 2017 (CUHK03 new), Li et al. 2014 (CUHK03 old), Gray et al. 2007
    (VIPeR); how single gallery shots are drawn is ours.

    Example:
        >>> gallery = Side(np.array([[1, 0.1], [1, 0.9], [0, 1]], np.float32), np.array([1, 2, 2]), np.array([2, 2, 1]))
        >>> query = Side(np.eye(2, dtype=np.float32), np.array([1, 2]), np.array([1, 1]))
        >>> [evaluate(PROTOCOLS[name], query, gallery).scores.first_hit.tolist() for name in ("market1501", "cross_camera")]
        [[1.0, 1.0], [1.0, 1.0]]
    """
    query_camids, gallery_camids = cameras(query.camids, len(query.pids)), cameras(gallery.camids, len(gallery.pids))
    features = _pooled(query, query_camids, gallery, gallery_camids) if protocol.pooled_queries else query.features
    parts = []
    for split, asked, wanted in _splits(protocol, query.pids, query_camids, gallery.pids, gallery_camids, seed):
        if reranking:  # junk would be somebody's neighbour
            wanted = wanted[gallery.pids[wanted] != JUNK_PID]
        sides = take(features, asked), take(gallery.features, wanted)
        scores = score_queries(
            sides[0],
            query.pids[asked],
            query_camids[asked],
            sides[1],
            gallery.pids[wanted],
            gallery_camids[wanted],
            own_camera=protocol.own_camera,
            ties=ties,
            distances=reranked_distances(*sides, reranking) if reranking else cosine_distances(*sides),
        )
        parts.append((scores, asked, np.full(len(asked), split)))
    if not parts:
        raise UserError("there is no query: nothing can be scored")
    scores, asked, splits = zip(*parts, strict=True)
    return Evaluation(Scores(*map(np.concatenate, zip(*scores, strict=True))), np.concatenate(asked), np.concatenate(splits))


def _splits(
    protocol: Protocol, query_pids: Ints, query_camids: Ints, gallery_pids: Ints, gallery_camids: Ints, seed: int
) -> Iterator[tuple[int, Ints, Ints]]:
    """Yield a split's number, positions of queries and of the gallery they search; a split's queries may come in several parts."""
    if protocol.num_identities == "all":
        yield 0, np.arange(len(query_pids)), np.arange(len(gallery_pids))
        return
    shared = np.intersect1d(query_pids, gallery_pids)
    shared = shared[shared > DISTRACTOR_PID]
    count = len(shared) // 2 if protocol.num_identities == "half" else protocol.num_identities
    if not 1 <= count <= len(shared):
        raise UserError(f"the protocol needs {max(count, 2)} identities in both query and gallery, but there are {len(shared)}")
    for split in range(protocol.num_splits):
        rng = np.random.default_rng((seed, split))
        chosen = rng.choice(shared, count, replace=False)
        asked, wanted = (np.flatnonzero(np.isin(pids, chosen)) for pids in (query_pids, gallery_pids))
        if not protocol.single_shot:
            yield split, asked, wanted
            continue
        for camid in np.unique(query_camids[asked]):
            others = wanted[(gallery_camids[wanted] != camid) | (camid == NO_CAMERA)]
            shuffled = rng.permutation(others)
            _, first = np.unique(gallery_pids[shuffled], return_index=True)
            yield split, asked[query_camids[asked] == camid], np.sort(shuffled[first])


def _pooled(query: Side, query_camids: Ints, gallery: Side, gallery_camids: Ints) -> npt.NDArray[np.float32]:
    """Return for each query the mean of the L2-normalised features of all images, in both sides, of its identity on its camera."""
    if (query_camids == NO_CAMERA).any():
        raise UserError("multi_query needs the camera of every query: without it the right answers themselves would be pooled")
    pids, camids = np.append(query.pids, gallery.pids), np.append(query_camids, gallery_camids)
    _, group = np.unique(np.stack((pids, camids), 1), axis=0, return_inverse=True)
    asked, of_query = np.unique(group[: len(query.pids)], return_inverse=True)
    total = np.zeros((len(asked), query.features.shape[1]), np.float32)
    for features, groups in ((query.features, group[: len(query.pids)]), (gallery.features, group[len(query.pids) :])):
        rows = np.flatnonzero(np.isin(groups, asked))
        for start in range(0, len(rows), GALLERY):
            some = rows[start : start + GALLERY]
            place = np.searchsorted(asked, groups[some]), np.arange(len(some))
            adding = sparse.csr_matrix((np.ones(len(some), np.float32), place), shape=(len(asked), len(some)))
            total += adding @ unit_rows(features, some, "multi-query").numpy()
    pooled: npt.NDArray[np.float32] = total[of_query]
    return pooled
