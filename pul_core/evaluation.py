"""How well features find a person again: CMC, mAP and mINP under the Market-1501 protocol, by counting, without sorting a gallery.

It does not know what a training set is, and nothing of a training may look at what it returns.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pul_core.identities import DISTRACTOR_PID, JUNK_PID

TIE = 1e-6  # cosines this close are equal: a matrix product rounds equal features differently from column to column
CHUNK = 256  # queries a block of similarities: memory grows with CHUNK x gallery


class Scores(NamedTuple):
    """One entry a query, in the queries' order; a query with no right answer has num_positives 0 and NaN in the other columns."""

    ap: npt.NDArray[np.float64]  # (q,) plain average precision
    ap_trapezoidal: npt.NDArray[np.float64]  # (q,) the Oxford rule of the authors' and of the official MATLAB code
    inp: npt.NDArray[np.float64]  # (q,) inverse negative penalty: positives over the rank of the last one
    first_hit: npt.NDArray[np.float64]  # (q,) rank of the first right answer, from 1
    num_positives: npt.NDArray[np.int64]  # (q,)


class Summary(NamedTuple):
    """Means over the scored queries, as fractions."""

    cmc: npt.NDArray[np.float64]  # (max_rank,) cmc[k-1]: share of queries with a right answer among the first k
    mean_ap: float
    mean_ap_trapezoidal: float
    mean_inp: float
    num_scored: int
    num_unscored: int


def score_queries(
    query: npt.NDArray[np.float32],
    query_pids: npt.NDArray[np.int64],
    query_camids: npt.NDArray[np.int64],
    gallery: npt.NDArray[np.float32],
    gallery_pids: npt.NDArray[np.int64],
    gallery_camids: npt.NDArray[np.int64],
) -> Scores:
    """Score each query by cosine under the Market-1501 protocol.

    A query's gallery leaves out junk and the same identity on the same camera. A positive's rank counts every wrong answer at least as
    similar (within 1e-6), so ties count against it. With ranks r_1 < ... < r_m of the m positives: ``AP = mean(j / r_j)``,
    trapezoidal ``mean((j / r_j + (j - 1) / (r_j - 1)) / 2)`` with 1 for r_j = 1, ``INP = m / r_m``.

    Args:
        query: (q, d) features.
        query_pids: (q,) identities.
        query_camids: (q,) cameras.
        gallery: (g, d) features.
        gallery_pids: (g,) identities; 0 is a distractor, -1 junk.
        gallery_camids: (g,) cameras.

    Returns:
        A score for each query.

    Raises:
        ValueError: a zero vector or a value that is not finite.

    Source: Zheng et al. 2015 (Market-1501); INP: Ye et al. 2021; the pessimistic ties are ours.

    Example:
        >>> gallery = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], np.float32)
        >>> query = np.array([[1, 0]], np.float32), np.array([7]), np.array([1])
        >>> scores = score_queries(*query, gallery, np.array([7, 7, 5, 7]), np.array([1, 2, 2, 2]))
        >>> scores.first_hit.tolist(), scores.num_positives.tolist(), round(float(scores.ap[0]), 3)
        ([1.0], [2], 0.833)
    """
    kept = gallery_pids != JUNK_PID
    wanted, pids, camids = _unit(gallery[kept], "gallery"), gallery_pids[kept], gallery_camids[kept]
    asked = _unit(query, "query")
    q = len(query)
    ap, trapezoidal, inp, first = (np.full(q, np.nan) for _ in range(4))
    positives = np.zeros(q, np.int64)
    by_pid = np.argsort(pids, kind="stable")
    starts, ends = (np.searchsorted(pids[by_pid], query_pids, side) for side in ("left", "right"))
    for begin in range(0, q, CHUNK):
        similarity = (asked[begin : begin + CHUNK] @ wanted.T).numpy()  # (chunk, g)
        for i, row in enumerate(similarity, begin):
            same = by_pid[starts[i] : ends[i]]
            right = same[camids[same] != query_camids[i]]
            if len(right) == 0 or query_pids[i] <= DISTRACTOR_PID:
                continue
            hits = -np.sort(-row[right])  # (m,) best first
            row[same] = -np.inf  # what is left are the wrong answers
            better = np.searchsorted(-hits, -row - TIE, side="left")  # for each wrong answer: how many hits are strictly before it
            wrong_before = np.cumsum(np.bincount(better, minlength=len(hits) + 1)[:-1])  # (m,)
            rank = np.arange(1, len(hits) + 1) + wrong_before
            ap[i], trapezoidal[i] = average_precision(rank)
            inp[i], first[i], positives[i] = len(hits) / rank[-1], rank[0], len(hits)
    return Scores(ap, trapezoidal, inp, first, positives)


def average_precision(rank: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return plain and trapezoidal average precision of right answers at these ranks (ascending, from 1).

    Example:
        >>> [round(value, 3) for value in average_precision(np.array([1, 2, 4, 7]))]
        [0.83, 0.811]
    """
    count = np.arange(1, len(rank) + 1)
    precision = count / rank
    before = np.where(rank > 1, (count - 1) / np.maximum(rank - 1, 1), 1.0)
    return float(precision.mean()), float(((precision + before) / 2).mean())


def summarise(scores: Scores, *, max_rank: int = 50) -> Summary:
    """Average the scored queries; those without a right answer are left out and counted.

    Args:
        scores: one entry a query.
        max_rank: length of the CMC curve.

    Returns:
        Means as fractions.

    Raises:
        ValueError: no query has a right answer.

    Example:
        >>> one = np.array([1.0, np.nan])
        >>> summarise(Scores(one, one, one, one, np.array([3, 0])), max_rank=1)
        Summary(cmc=array([1.]), mean_ap=1.0, mean_ap_trapezoidal=1.0, mean_inp=1.0, num_scored=1, num_unscored=1)
    """
    scored = scores.num_positives > 0
    if not scored.any():
        raise ValueError("no query has a right answer in the gallery (same identity, another camera): nothing can be scored")
    cmc = (scores.first_hit[scored][:, None] <= np.arange(1, max_rank + 1)).mean(0)
    ap, trapezoidal, inp = (float(values[scored].mean()) for values in (scores.ap, scores.ap_trapezoidal, scores.inp))
    return Summary(cmc, ap, trapezoidal, inp, int(scored.sum()), int((~scored).sum()))


def _unit(features: npt.NDArray[np.float32], name: str) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(features, order="C"))  # a copy: what Arrow lends may not be written to
    lengths = tensor.norm(dim=1, keepdim=True)
    if not torch.isfinite(lengths).all() or bool((lengths == 0).any()):
        raise ValueError(f"a {name} feature is a zero vector or not finite")
    return tensor.div(lengths)
