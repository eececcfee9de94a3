"""Re-ID metrics of query and gallery features: average precision, CMC and mINP, from the ranks of each query's correct matches."""

from typing import Literal, NamedTuple

import numpy as np
from scipy.special import gammaln

from pul_core.arrays import Features, Floats, Ints
from pul_core.errors import UserError
from pul_core.identities import JUNK_PID, NO_CAMERA
from pul_core.scoring.ranks import (
    TIE_TOLERANCE,
    DistanceFunction,
    Ids,
    Matches,
    Ties,
    cosine_distances,
    count_closer_negatives,
    find_matches,
)

MAX_RANK = 50

SameCamera = Literal["ignore_same_identity", "ignore_all"]
Unscored = Literal["left_out", "zero"]


class Scores(NamedTuple):
    """One entry per query, in the order of the queries. A query without a correct match has num_positives 0 and NaN in the first 4 fields.

    With expected ties, the first 4 fields are expectations over all orders of equally distant gallery images, and the last 2 count the
    correct matches and the negatives that are as close as the first match. With other policies, the last 2 are 1 and 0.
    """

    ap: Floats  # (q,) plain average precision
    ap_trapezoidal: Floats  # (q,) average precision by the Oxford rule, as in the authors' and the official MATLAB code
    inp: Floats  # (q,) inverse negative penalty: number of correct matches / rank of the last one
    first_hit: Floats  # (q,) rank of the first correct match, from 1
    num_positives: Ints  # (q,) number of correct matches
    first_tied_right: Ints  # (q,) number of correct matches at the distance of the first one
    first_tied_wrong: Ints  # (q,) number of negatives at that distance


class Summary(NamedTuple):
    """Means over the queries, as fractions."""

    cmc: Floats  # (max_rank,) cmc[k-1]: share of queries with a correct match among the first k
    mean_ap: float
    mean_ap_trapezoidal: float
    mean_inp: float
    num_scored: int
    num_unscored: int


def score_queries(
    query: Features,
    query_pids: Ints,
    query_camids: Ints,
    gallery: Features,
    gallery_pids: Ints,
    gallery_camids: Ints,
    *,
    same_camera: SameCamera = "ignore_same_identity",
    ties: Ties = "pessimistic",
    distances: DistanceFunction | None = None,
    device: str = "cpu",
) -> Scores:
    """Score each query, by default under the Market-1501 protocol.

    Junk and the gallery images selected by ``same_camera`` are ignored. The rank of a correct match is one more than the number of correct
    matches and negatives that are closer. Of the negatives at the same distance (within 1e-6), ``ties`` counts all, counts none, or
    averages over all orders. With ranks r_1 < ... < r_m of the m correct matches: ``AP = mean(j / r_j)``, trapezoidal
    ``mean((j / r_j + (j - 1) / (r_j - 1)) / 2)`` whose second term is 1 for r_j = 1, ``INP = m / r_m``.

    Args:
        query: (q, d) features, may be memory-mapped.
        query_pids: (q,) identities; a distractor or junk query has no correct match.
        query_camids: (q,) cameras; -1 is unknown, and no image is ignored because of an unknown camera.
        gallery: (g, d) features, may be memory-mapped; read once, block by block.
        gallery_pids: (g,) identities; 0 is a distractor, -1 is junk.
        gallery_camids: (g,) cameras, as for the queries.
        same_camera: which gallery images of the query's camera are ignored: those of the query's identity, or all.
        ties: pessimistic, optimistic or expected.
        distances: from query to gallery positions, on the same device; None for 1 - cosine.
        device: where distances are computed and negatives are counted.

    Returns:
        The scores of each query.

    Raises:
        UserError: a feature is a zero vector or not finite.

    Source: Zheng et al. 2015 (Market-1501); INP: Ye et al. 2021; expected ties: McSherry and Najork 2008; pessimistic ties are ours.

    Example:
        >>> gallery = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], np.float32)
        >>> query = np.array([[1, 0]], np.float32), np.array([7]), np.array([1])
        >>> scores = score_queries(*query, gallery, np.array([7, 7, 5, 7]), np.array([1, 2, 2, 2]))
        >>> scores.first_hit.tolist(), scores.num_positives.tolist(), round(float(scores.ap[0]), 3)
        ([1.0], [2], 0.833)
    """
    margins: dict[Ties, tuple[float, ...]] = {
        "pessimistic": (TIE_TOLERANCE,),
        "optimistic": (-TIE_TOLERANCE,),
        "expected": (TIE_TOLERANCE, -TIE_TOLERANCE),
    }
    distances = distances or cosine_distances(query, gallery, device=device)
    ids = _ids(query_pids, query_camids, gallery_pids, gallery_camids, same_camera)
    matches = find_matches(distances, *ids, device=device)
    counts = count_closer_negatives(distances, matches, *ids, np.flatnonzero(gallery_pids != JUNK_PID), margins[ties], device=device)
    return _scores(matches, counts[0], len(query)) if len(counts) == 1 else _expected_scores(matches, counts[0], counts[1], len(query))


def _ids(query_pids: Ints, query_camids: Ints, gallery_pids: Ints, gallery_camids: Ints, same_camera: SameCamera) -> tuple[Ids, Ids]:
    """Return the ids of the queries and of the gallery, in 32 bits, which are compared faster; no image of an unknown camera is ignored."""
    pids, camids = np.append(query_pids, gallery_pids), np.append(query_camids, gallery_camids)
    (known_pids, pid), (_, camera) = (np.unique(numbers, return_inverse=True) for numbers in (pids, camids))
    groups = camera if same_camera == "ignore_all" else camera * len(known_pids) + pid
    ignored = np.unique(groups, return_inverse=True)[1]
    pid += 1 - np.count_nonzero(known_pids <= 0)  # identities above 0 stay above 0
    q, unknown = len(query_pids), camids == NO_CAMERA
    ignored[unknown] = np.where(np.arange(len(camids)) < q, -1, -2)[unknown]  # two numbers: an unknown camera differs from another one
    ids = pid.astype(np.int32), ignored.astype(np.int32)
    return Ids(*(part[:q] for part in ids)), Ids(*(part[q:] for part in ids))


def _scores(matches: Matches, closer_negatives: Ints, q: int) -> Scores:
    """Compute the scores of q queries from the number of negatives that are ranked before each match."""
    positives = np.bincount(matches.query_idx, minlength=q)
    rank = matches.ordinal + closer_negatives
    precision = matches.ordinal / rank
    precision_before = np.where(rank > 1, (matches.ordinal - 1) / np.maximum(rank - 1, 1), 1.0)
    num_matches = positives[positives > 0]
    inp: Floats = num_matches / rank[np.cumsum(num_matches) - 1]
    return _collect(matches.query_idx, precision, (precision + precision_before) / 2, positives, inp, rank[matches.ordinal == 1], 1, 0)


def _expected_scores(matches: Matches, closer_or_tied: Ints, closer: Ints, q: int) -> Scores:
    """Average the scores over all orders of the gallery images that are equally distant.

    Successive matches within the tie tolerance form one level. Consider a level of t matches and n negatives, T = t + n, which follows S
    gallery images, R of which are matches. Its k-th position holds a match with probability t / T, and the precision there is
    ``(R + 1 + (k - 1) (t - 1) / (T - 1)) / (S + k)``.

    Args:
        matches: the p correct matches.
        closer_or_tied: (p,) negatives that are closer than the match or tied with it.
        closer: (p,) negatives that are closer than the match and not tied with it.
        q: number of queries.
    """
    gap = np.diff(matches.distance, prepend=np.float32(0))
    starts = np.flatnonzero((matches.ordinal == 1) | (gap > TIE_TOLERANCE))
    ends = np.append(starts[1:], len(matches.query_idx)) - 1
    query_idx, t, matches_before = matches.query_idx[starts], ends - starts + 1, matches.ordinal[starts] - 1
    negatives_up_to = closer_or_tied[ends]  # negatives in this level or an earlier one
    negatives_before = np.maximum(closer[starts], np.where(matches_before > 0, np.append(0, negatives_up_to[:-1]), 0))
    n = negatives_up_to - negatives_before
    size, before = t + n, matches_before + negatives_before  # T, S
    slope = (t - 1) / np.maximum(size - 1, 1)
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, (before + size).max(initial=0) + 1)))
    # The sums, over the positions of a level, of the precision at the position and of the precision just before it.
    precision = slope * size + (matches_before + 1 - slope * (1 + before)) * (harmonic[before + size] - harmonic[before])
    shifted = slope * size + (matches_before - slope * before) * (harmonic[before + size - 1] - harmonic[np.maximum(before - 1, 0)])
    precision_before = np.where(before > 0, shifted, 1 + slope * (size - 1))  # by convention, the precision before rank 1 is 1
    positives = np.bincount(matches.query_idx, minlength=q)
    first = np.flatnonzero(matches_before == 0)
    last = np.append(first[1:], len(starts)) - 1
    inverse_ranks = [_mean_inverse_last_rank(*level) for level in zip(t[last], size[last], before[last], strict=True)]
    inp = positives[positives > 0] * np.array(inverse_ranks)
    first_hit = negatives_before[first] + (size[first] + 1) / (t[first] + 1)
    trapezoidal = t / size * (precision + precision_before) / 2
    return _collect(query_idx, t / size * precision, trapezoidal, positives, inp, first_hit, t[first], n[first])


def _collect(
    query_idx: Ints,
    precision: Floats,
    trapezoidal: Floats,
    positives: Ints,
    inp: Floats,
    first_hit: Floats,
    tied_matches: Ints | int,
    tied_negatives: Ints | int,
) -> Scores:
    """Average the precisions by query, and insert NaN for the queries without a correct match, which the last 4 arguments leave out."""
    q, scored = len(positives), positives > 0
    columns, tied = np.full((4, q), np.nan), np.zeros((2, q), np.int64)
    columns[0, scored] = np.bincount(query_idx, precision, q)[scored] / positives[scored]
    columns[1, scored] = np.bincount(query_idx, trapezoidal, q)[scored] / positives[scored]
    columns[2, scored], columns[3, scored] = inp, first_hit
    tied[0, scored], tied[1, scored] = tied_matches, tied_negatives
    return Scores._make((*columns, positives, *tied))


def _mean_inverse_last_rank(t: int, size: int, before: int) -> float:
    """Return the mean of 1 / rank of the last of t matches, over all orders of a level of ``size`` images after ``before`` others."""
    k = np.arange(t, size + 1)
    probability = np.exp(_log_choose(k - 1, t - 1) - _log_choose(np.array(size), t))
    return float((probability / (before + k)).sum())


def _log_choose(n: Ints, k: int | Ints) -> Floats:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def cmc_per_query(scores: Scores, max_rank: int = MAX_RANK) -> Floats:
    """Return each query's CMC curve: the probability of a correct match among the first k, which is 0 or 1 unless ties are expected.

    Args:
        scores: one entry per query.
        max_rank: length of the curve.

    Returns:
        (q, max_rank) probabilities; 0 for a query without a correct match.

    Example:
        >>> unused, one = np.array([np.nan]), np.array([1])
        >>> scores = Scores(unused, unused, unused, np.array([3.0]), one, one, 2 * one)  # the match is at rank 2, 3 or 4
        >>> cmc_per_query(scores, max_rank=4).round(3).tolist()
        [[0.0, 0.333, 0.667, 1.0]]
    """
    scored = scores.num_positives > 0
    t, size = (values[scored, None] for values in (scores.first_tied_right, scores.first_tied_right + scores.first_tied_wrong))
    before = scores.first_hit[scored, None] - (size + 1) / (t + 1)
    covered = np.clip(np.arange(1, max_rank + 1) - np.rint(before), 0, size)  # positions of the first match's level within the first k
    can_miss = size - covered >= t  # the other positions have room for all of the level's matches
    miss = np.where(can_miss, np.exp(_log_choose(np.maximum(size - covered, t), t) - _log_choose(size, t)), 0)
    curves = np.zeros((len(scored), max_rank))
    curves[scored] = 1 - miss
    return curves


def summarise(scores: Scores, split: Ints | None = None, *, unscored: Unscored = "left_out", max_rank: int = MAX_RANK) -> Summary:
    """Average the scores over the queries of each split, then over the splits.

    Args:
        scores: one entry per query.
        split: (q,) the repetition of the protocol that an entry belongs to; None if there is only one.
        unscored: queries without a correct match are left out of the means or count as zero; their number is reported in both cases.
        max_rank: length of the CMC curve.

    Returns:
        Means as fractions.

    Raises:
        UserError: a split has no query with a correct match.

    Example:
        >>> one, none = np.array([1.0, np.nan]), np.array([0, 0])
        >>> scores = Scores(one, one, one, one, np.array([3, 0]), np.array([1, 0]), none)
        >>> summarise(scores, max_rank=1)
        Summary(cmc=array([1.]), mean_ap=1.0, mean_ap_trapezoidal=1.0, mean_inp=1.0, num_scored=1, num_unscored=1)
        >>> summarise(scores, unscored="zero", max_rank=1).mean_ap
        0.5
    """
    scored = scores.num_positives > 0
    split = np.zeros(len(scored), np.int64) if split is None else split
    values = np.column_stack((scores.ap, scores.ap_trapezoidal, scores.inp, cmc_per_query(scores, max_rank)))
    values[~scored] = 0
    means = []
    for number in np.unique(split):
        if not (scored & (split == number)).any():
            raise UserError("no query has a correct match in the gallery (same identity, another camera): check identities and cameras")
        means.append(values[(split == number) & (scored | (unscored == "zero"))].mean(0))
    if not means:
        raise UserError("there is no query to score: check the data set's query images")
    ap, trapezoidal, inp, *cmc = np.mean(means, axis=0)
    return Summary(np.array(cmc), float(ap), float(trapezoidal), float(inp), int(scored.sum()), int((~scored).sum()))
