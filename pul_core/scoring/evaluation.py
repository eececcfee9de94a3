"""How well features find a person again: average precision, CMC and mINP from the ranks of the right answers.

It does not know what a training set is, and nothing of a training may look at what it returns.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from pul_core.arrays import Ints, Mask
from pul_core.errors import UserError
from pul_core.identities import JUNK_PID, NO_CAMERA
from pul_core.scoring.ranks import TIE, Distances, Hits, LeftOut, Ties, cosine_distances, count_wrong, find_hits

MAX_RANK = 50

OwnCamera = Literal["same_identity", "everyone"]
Unscored = Literal["left_out", "zero"]
Floats = npt.NDArray[np.float64]


class Scores(NamedTuple):
    """One entry a query, in the queries' order; a query with no right answer has num_positives 0 and NaN in the first four columns.

    With expected ties the first four are expectations over the orders of equally near answers, and the last two say how many right and
    wrong answers are as near as the first hit. Otherwise those are 1 and 0.
    """

    ap: Floats  # (q,) plain average precision
    ap_trapezoidal: Floats  # (q,) the Oxford rule of the authors' and of the official MATLAB code
    inp: Floats  # (q,) inverse negative penalty: positives over the rank of the last one
    first_hit: Floats  # (q,) rank of the first right answer, from 1
    num_positives: Ints  # (q,)
    first_tied_right: Ints  # (q,)
    first_tied_wrong: Ints  # (q,)


class Summary(NamedTuple):
    """Means over the queries, as fractions."""

    cmc: Floats  # (max_rank,) cmc[k-1]: share of queries with a right answer among the first k
    mean_ap: float
    mean_ap_trapezoidal: float
    mean_inp: float
    num_scored: int
    num_unscored: int


def score_queries(
    query: npt.NDArray[np.float32],
    query_pids: Ints,
    query_camids: Ints | None,
    gallery: npt.NDArray[np.float32],
    gallery_pids: Ints,
    gallery_camids: Ints | None,
    *,
    own_camera: OwnCamera = "same_identity",
    ties: Ties = "pessimistic",
    distances: Distances | None = None,
) -> Scores:
    """Score each query, by default under the Market-1501 protocol.

    A query's gallery leaves out junk and what ``own_camera`` says. A positive's rank counts the wrong answers that are nearer; of those at
    the same distance (within 1e-6) ``ties`` counts all, none, or takes the mean over every order. With ranks r_1 < ... < r_m of the m
    positives: ``AP = mean(j / r_j)``, trapezoidal ``mean((j / r_j + (j - 1) / (r_j - 1)) / 2)`` with 1 for r_j = 1, ``INP = m / r_m``.

    Args:
        query: (q, d) features, may be memory-mapped.
        query_pids: (q,) identities; a distractor or junk asks for nobody.
        query_camids: (q,) cameras; -1, or None for all, is unknown, and then nothing is left out for camera reasons.
        gallery: (g, d) features, may be memory-mapped; it is read once, a block at a time.
        gallery_pids: (g,) identities; 0 is a distractor, -1 junk.
        gallery_camids: (g,) cameras.
        own_camera: what of the query's own camera is left out: images of the same identity, or everyone's.
        ties: pessimistic, optimistic or expected.
        distances: of query and gallery positions, if it is not 1 - cosine.

    Returns:
        A score for each query.

    Raises:
        UserError: a zero vector or a value that is not finite, or a policy that does not exist.

    Source: Zheng et al. 2015 (Market-1501); INP: Ye et al. 2021; expected ties: McSherry and Najork 2008; pessimistic ties are ours.

    Example:
        >>> gallery = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], np.float32)
        >>> query = np.array([[1, 0]], np.float32), np.array([7]), np.array([1])
        >>> scores = score_queries(*query, gallery, np.array([7, 7, 5, 7]), np.array([1, 2, 2, 2]))
        >>> scores.first_hit.tolist(), scores.num_positives.tolist(), round(float(scores.ap[0]), 3)
        ([1.0], [2], 0.833)
    """
    margins: dict[str, tuple[float, ...]] = {"pessimistic": (TIE,), "optimistic": (-TIE,), "expected": (TIE, -TIE)}
    if ties not in margins or own_camera not in ("same_identity", "everyone"):
        raise UserError(f"ties is {ties!r} and own_camera {own_camera!r}: choose of {', '.join(margins)} and of same_identity, everyone")
    left_out = _left_out(query_pids, cameras(query_camids, len(query)), gallery_pids, cameras(gallery_camids, len(gallery)), own_camera)
    distances = distances or cosine_distances(query, gallery)
    hits = find_hits(distances, query_pids, gallery_pids, left_out)
    searched = np.flatnonzero(gallery_pids != JUNK_PID)
    counts = count_wrong(distances, hits, query_pids, gallery_pids, searched, left_out, margins[ties])
    return _scores(hits, counts[0], len(query)) if len(counts) == 1 else _expected_scores(hits, counts[0], counts[1], len(query))


def cameras(camids: Ints | None, count: int) -> Ints:
    """Return cameras as numbers, all unknown if there are none."""
    return np.full(count, NO_CAMERA) if camids is None else camids


def _left_out(query_pids: Ints, query_camids: Ints, gallery_pids: Ints, gallery_camids: Ints, own_camera: OwnCamera) -> LeftOut:
    def pairs(rows: Ints, columns: Ints) -> Mask:
        asked, seen = query_camids[rows, None], gallery_camids[columns]
        own: Mask = (asked == seen) & (asked != NO_CAMERA)
        if own_camera == "same_identity":
            own &= query_pids[rows, None] == gallery_pids[columns]
        return own

    return pairs


def _scores(hits: Hits, wrong_before: Ints, q: int) -> Scores:
    positives = np.bincount(hits.query, minlength=q)
    rank = hits.place + wrong_before
    precision = hits.place / rank
    before = np.where(rank > 1, (hits.place - 1) / np.maximum(rank - 1, 1), 1.0)
    some = positives > 0
    last = np.cumsum(positives)[some] - 1
    first = last - positives[some] + 1
    ap, trapezoidal, inp, first_hit = (np.full(q, np.nan) for _ in range(4))
    ap[some] = np.bincount(hits.query, precision, q)[some] / positives[some]
    trapezoidal[some] = np.bincount(hits.query, (precision + before) / 2, q)[some] / positives[some]
    inp[some] = positives[some] / rank[last]
    first_hit[some] = rank[first]
    return Scores(ap, trapezoidal, inp, first_hit, positives, some.astype(np.int64), np.zeros(q, np.int64))


def average_precision(rank: Ints) -> tuple[float, float]:
    """Return plain and trapezoidal average precision of right answers at these ranks (ascending, from 1).

    Example:
        >>> [round(value, 3) for value in average_precision(np.array([1, 2, 4, 7]))]
        [0.83, 0.811]
    """
    place = np.arange(1, len(rank) + 1)
    scores = _scores(Hits(np.zeros(len(rank), np.int64), place, np.zeros(len(rank), np.float32)), rank - place, 1)
    return float(scores.ap[0]), float(scores.ap_trapezoidal[0])


def _expected_scores(hits: Hits, nearer_or_equal: Ints, nearer: Ints, q: int) -> Scores:
    """Average over every order of the answers that are equally near.

    Hits a tie or less apart make one level. A level of t hits and n wrong answers, T = t + n, that begins after R right answers and S in
    all, holds a right one at its place k with probability t / T; there the precision is (R + 1 + (k - 1) (t - 1) / (T - 1)) / (S + k).
    """
    gap = np.diff(hits.distance, prepend=np.float32(0))
    begins = np.flatnonzero((hits.place == 1) | (gap > TIE))
    ends = np.append(begins[1:], len(hits.query)) - 1
    query, t, right = hits.query[begins], ends - begins + 1, hits.place[begins] - 1
    so_far = nearer_or_equal[ends]  # wrong answers in this level or before it
    wrong = np.maximum(nearer[begins], np.where(right > 0, np.append(0, so_far[:-1]), 0))
    n = so_far - wrong
    size, seen = t + n, right + wrong
    slope = (t - 1) / np.maximum(size - 1, 1)
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, (seen + size).max(initial=0) + 1)))
    precisions = slope * size + (right + 1 - slope * (1 + seen)) * (harmonic[seen + size] - harmonic[seen])
    later = slope * size + (right - slope * seen) * (harmonic[seen + size - 1] - harmonic[np.maximum(seen - 1, 0)])
    before = np.where(seen > 0, later, 1 + slope * (size - 1))  # the convention: 1 before rank 1
    positives = np.bincount(hits.query, minlength=q)
    some = positives > 0
    last = np.searchsorted(query, np.flatnonzero(some), side="right") - 1
    first = np.searchsorted(query, np.flatnonzero(some))
    ap, trapezoidal, inp, first_hit = (np.full(q, np.nan) for _ in range(4))
    ap[some] = np.bincount(query, t / size * precisions, q)[some] / positives[some]
    trapezoidal[some] = np.bincount(query, t / size * (precisions + before) / 2, q)[some] / positives[some]
    inp[some] = positives[some] * [_mean_inverse_of_last(*level) for level in zip(t[last], size[last], seen[last], strict=True)]
    first_hit[some] = wrong[first] + (size[first] + 1) / (t[first] + 1)
    tied_right, tied_wrong = np.zeros(q, np.int64), np.zeros(q, np.int64)
    tied_right[some], tied_wrong[some] = t[first], n[first]
    return Scores(ap, trapezoidal, inp, first_hit, positives, tied_right, tied_wrong)


def _mean_inverse_of_last(t: int, size: int, seen: int) -> float:
    """Return the mean of 1 / rank of the last of t right answers in a random order of ``size`` answers after ``seen`` others."""
    k = np.arange(t, size + 1)
    chance = np.exp(_log_choose(k - 1, t - 1) - _log_choose(np.array(size), t))
    return float((chance / (seen + k)).sum())


def _log_choose(n: Ints, k: int | Ints) -> Floats:
    result: Floats = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return result


def hit_within(scores: Scores, max_rank: int = MAX_RANK) -> Floats:
    """Return for each query the chance of a right answer among the first 1, 2, ..., ``max_rank``: 0 or 1 unless ties are expected ones.

    Example:
        >>> nothing, one = np.array([np.nan]), np.array([1])
        >>> hit_within(Scores(nothing, nothing, nothing, np.array([3.0]), one, one, 2 * one), 4).round(3).tolist()  # second to fourth
        [[0.0, 0.333, 0.667, 1.0]]
    """
    some = scores.num_positives > 0
    t, size = (values[some, None] for values in (scores.first_tied_right, scores.first_tied_right + scores.first_tied_wrong))
    before = scores.first_hit[some, None] - (size + 1) / (t + 1)
    seen = np.clip(np.arange(1, max_rank + 1) - np.rint(before), 0, size)  # places of the first level that lie within the rank
    possible = size - seen >= t  # none of its right answers has to be among them
    miss = np.where(possible, np.exp(_log_choose(np.maximum(size - seen, t), t) - _log_choose(size, t)), 0)
    within = np.zeros((len(some), max_rank))
    within[some] = 1 - miss
    return within


def summarise(scores: Scores, split: Ints | None = None, *, unscored: Unscored = "left_out", max_rank: int = MAX_RANK) -> Summary:
    """Average the queries of each split, then the splits.

    Args:
        scores: one entry a query.
        split: (q,) which repetition of the protocol an entry belongs to; None if there is one.
        unscored: queries without a right answer are left out of the means, or count as zero; they are counted either way.
        max_rank: length of the CMC curve.

    Returns:
        Means as fractions.

    Raises:
        UserError: a split has no query with a right answer, or a policy that does not exist.

    Example:
        >>> one, none = np.array([1.0, np.nan]), np.array([0, 0])
        >>> scores = Scores(one, one, one, one, np.array([3, 0]), np.array([1, 0]), none)
        >>> summarise(scores, max_rank=1)
        Summary(cmc=array([1.]), mean_ap=1.0, mean_ap_trapezoidal=1.0, mean_inp=1.0, num_scored=1, num_unscored=1)
        >>> summarise(scores, unscored="zero", max_rank=1).mean_ap
        0.5
    """
    if unscored not in ("left_out", "zero"):
        raise UserError(f"unscored is {unscored!r}: choose left_out or zero")
    scored = scores.num_positives > 0
    split = np.zeros(len(scored), np.int64) if split is None else split
    values = np.column_stack((scores.ap, scores.ap_trapezoidal, scores.inp, hit_within(scores, max_rank)))
    values[~scored] = 0
    means = []
    for number in np.unique(split):
        if not (scored & (split == number)).any():
            raise UserError("no query has a right answer in the gallery (same identity, another camera): nothing can be scored")
        means.append(values[(split == number) & (scored | (unscored == "zero"))].mean(0))
    if not means:
        raise UserError("there is no query: nothing can be scored")
    ap, trapezoidal, inp, *cmc = np.mean(means, axis=0)
    return Summary(np.array(cmc), float(ap), float(trapezoidal), float(inp), int(scored.sum()), int((~scored).sum()))
