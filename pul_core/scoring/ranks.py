"""Where each query's right answers stand, by counting the wrong ones that are nearer, a block of the gallery at a time. Nothing is sorted.

It does not know what a score is. Memory grows with the number of (query, right answer) pairs, not with queries x gallery.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pul_core.arrays import Ints, Mask, unit_rows

TIE = 1e-6  # distances this close are equal: a matrix product rounds equal features differently from column to column
QUERIES, GALLERY = 256, 4096  # rows and columns of a block of distances
ASKED = 64  # queries whose right answers are searched for at once: each meets the identities of all of them

Ties = Literal["pessimistic", "optimistic", "expected"]
# Given gallery positions (c,), returns a function that maps query positions (b,) to their distances (b, c).
Distances = Callable[[Ints], Callable[[Ints], torch.Tensor]]
# Given query positions (b,) and gallery positions (c,), says which pairs the protocol does not look at (b, c).
LeftOut = Callable[[Ints, Ints], Mask]


class Hits(NamedTuple):
    """The right answers of all queries: one query after the other, each query's nearest first."""

    query: Ints  # (p,) position of the query
    place: Ints  # (p,) 1 for a query's nearest right answer, 2 for its next one, ...
    distance: npt.NDArray[np.float32]  # (p,)


def cosine_distances(query: npt.NDArray[np.float32], gallery: npt.NDArray[np.float32]) -> Distances:
    """Return the function that computes blocks of 1 - cosine.

    Args:
        query: (q, d) features; may be memory-mapped, like the gallery's.
        gallery: (g, d) features.

    Example:
        >>> ask = cosine_distances(np.eye(2, dtype=np.float32), np.array([[3, 0], [0, 2], [-1, 0]], np.float32))
        >>> ask(np.array([0, 2]))(np.array([0])).tolist()
        [[0.0, 2.0]]
    """

    def against(columns: Ints) -> Callable[[Ints], torch.Tensor]:
        wanted = unit_rows(gallery, columns, "gallery").T
        return lambda rows: (unit_rows(query, rows, "query") @ wanted).neg_().add_(1)

    return against


def find_hits(distances: Distances, query_pids: Ints, gallery_pids: Ints, left_out: LeftOut) -> Hits:
    """Find each query's right answers, for queries of some identities at a time.

    Args:
        distances: of queries and gallery.
        query_pids: (q,) identities; those below 1 ask for nobody.
        gallery_pids: (g,) identities.
        left_out: pairs the protocol does not look at.
    """
    by_pid = np.argsort(query_pids, kind="stable")
    queries, found = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for rows in map(np.sort, _slices(by_pid[query_pids[by_pid] > 0], ASKED)):
        for columns in _slices(np.flatnonzero(np.isin(gallery_pids, query_pids[rows])), GALLERY):
            right = (query_pids[rows, None] == gallery_pids[columns]) & ~left_out(rows, columns)
            queries.append(np.repeat(rows, right.sum(1)))
            found.append(distances(columns)(rows).numpy()[right])
    query, distance = np.concatenate(queries), np.concatenate(found)
    order = np.lexsort((distance, query))
    query, distance = query[order], distance[order]
    place = np.arange(1, len(query) + 1) - np.searchsorted(query, query)
    return Hits(query, place, distance)


def count_wrong(
    distances: Distances,
    hits: Hits,
    query_pids: Ints,
    gallery_pids: Ints,
    searched: Ints,
    left_out: LeftOut,
    margins: tuple[float, ...],
) -> list[Ints]:
    """Count the wrong answers before each right one, in one pass over the gallery.

    A positive margin counts wrong answers at most that much farther than the hit, a negative one those more than that much nearer.

    Args:
        distances: of queries and gallery.
        hits: the right answers, p of them.
        query_pids: (q,) identities.
        gallery_pids: (g,) identities; a gallery image of the query's identity is never a wrong answer.
        searched: positions of the gallery images that count, ascending.
        left_out: pairs the protocol does not look at.
        margins: in units of distance.

    Returns:
        For each margin (p,) counts.

    Example:
        >>> ask = cosine_distances(np.array([[1, 0]], np.float32), np.array([[1, 0], [1, 0.2], [1, 1]], np.float32))
        >>> query_pids, gallery_pids = np.array([5]), np.array([6, 5, 6])
        >>> nothing = lambda rows, columns: np.zeros((len(rows), len(columns)), bool)
        >>> hits = find_hits(ask, query_pids, gallery_pids, nothing)
        >>> count_wrong(ask, hits, query_pids, gallery_pids, np.arange(3), nothing, (1e-6,))[0].tolist()
        [1]
    """
    rows_with_hits, start = np.unique(hits.query, return_index=True)
    bounds = np.append(start, len(hits.query))
    counts = [np.zeros(len(hits.query), np.int64) for _ in margins]
    for columns in _slices(searched, GALLERY):
        ask = distances(columns)
        for first in range(0, len(rows_with_hits), QUERIES):
            rows = rows_with_hits[first : first + QUERIES]
            part = slice(bounds[first], bounds[first + len(rows)])
            row_of_hit = np.repeat(np.arange(len(rows)), np.diff(bounds[first : first + len(rows) + 1]))
            at = row_of_hit, hits.place[part] - 1
            skipped = (query_pids[rows, None] == gallery_pids[columns]) | left_out(rows, columns)
            block = ask(rows).masked_fill_(torch.from_numpy(skipped), torch.inf)
            for count, margin in zip(counts, margins, strict=True):
                count[part] += _count_before(block, hits.distance[part], at, margin)
    return counts


def _count_before(block: torch.Tensor, distance: npt.NDArray[np.float32], at: tuple[Ints, Ints], margin: float) -> Ints:
    """Count in each row of (b, c) distances those before each of the row's hits, which stand at (row, place) in ascending order."""
    edges = np.full((len(block), at[1].max() + 1), np.inf, np.float32)
    edges[at] = distance + np.float32(margin)
    # For each distance the number of edges before it; one that equals an edge counts as before that edge only if the margin is positive.
    bucket = torch.searchsorted(torch.from_numpy(edges), block, out_int32=True, right=margin < 0)
    width = edges.shape[1] + 1
    bucket += torch.arange(0, len(block) * width, width, dtype=torch.int32)[:, None]
    in_bucket = torch.bincount(bucket.view(-1), minlength=len(block) * width).view(len(block), width)
    before: Ints = in_bucket.cumsum(1).numpy()[at]
    return before


def _slices(positions: Ints, size: int) -> list[Ints]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]
