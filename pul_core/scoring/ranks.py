"""Ranks of each query's correct matches, found by counting the negatives that are closer, one block of the gallery at a time.

The gallery is never sorted, and memory grows with the number of (query, correct match) pairs, not with queries x gallery. A *negative* is a
gallery image of another identity, distractors included. The metrics follow from the ranks and are in `evaluation`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pul_core.arrays import Features, Ints, Mask, unit_rows

TIE_TOLERANCE = 1e-6  # distances this close are equal: a matrix product rounds equal features differently from column to column
QUERY_BLOCK, GALLERY_BLOCK = 256, 4096  # rows and columns of a block of distances
MATCH_QUERY_BLOCK = 64  # queries whose matches are searched for at once; each is compared with the identities of all of them

Ties = Literal["pessimistic", "optimistic", "expected"]
# Maps gallery positions (c,) to a function that maps query positions (b,) to their distances (b, c).
DistanceFunction = Callable[[Ints], Callable[[Ints], torch.Tensor]]
# Maps query positions (b,) and gallery positions (c,) to the mask (b, c) of the pairs that the protocol ignores.
IgnoredPairs = Callable[[Ints, Ints], Mask]


class Matches(NamedTuple):
    """The correct matches of all queries, ordered by query and then by distance."""

    query_idx: Ints  # (p,) position of the query
    ordinal: Ints  # (p,) 1 for the query's closest correct match, 2 for the next one, ...
    distance: npt.NDArray[np.float32]  # (p,)


def cosine_distances(query: Features, gallery: Features) -> DistanceFunction:
    """Return the function that computes blocks of ``1 - cosine``.

    Args:
        query: (q, d) features; like the gallery's, they may be memory-mapped.
        gallery: (g, d) features.

    Returns:
        The distance function.

    Example:
        >>> distances = cosine_distances(np.eye(2, dtype=np.float32), np.array([[3, 0], [0, 2], [-1, 0]], np.float32))
        >>> distances(np.array([0, 2]))(np.array([0])).tolist()
        [[0.0, 2.0]]
    """

    def to_gallery(gallery_idx: Ints) -> Callable[[Ints], torch.Tensor]:
        gallery_columns = unit_rows(gallery, gallery_idx, "gallery").T
        return lambda query_idx: (unit_rows(query, query_idx, "query") @ gallery_columns).neg_().add_(1)

    return to_gallery


def find_matches(distances: DistanceFunction, query_pids: Ints, gallery_pids: Ints, ignored: IgnoredPairs) -> Matches:
    """Find the correct matches of every query: the gallery images of its identity that the protocol does not ignore.

    Args:
        distances: from queries to gallery.
        query_pids: (q,) identities; a query with an identity below 1 has no correct match.
        gallery_pids: (g,) identities.
        ignored: the pairs that the protocol ignores.

    Returns:
        The matches, ordered by query and then by distance.
    """
    by_pid = np.argsort(query_pids, kind="stable")
    query_parts, distance_parts = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for query_idx in map(np.sort, _blocks(by_pid[query_pids[by_pid] > 0], MATCH_QUERY_BLOCK)):
        for gallery_idx in _blocks(np.flatnonzero(np.isin(gallery_pids, query_pids[query_idx])), GALLERY_BLOCK):
            is_match = (query_pids[query_idx, None] == gallery_pids[gallery_idx]) & ~ignored(query_idx, gallery_idx)
            query_parts.append(np.repeat(query_idx, is_match.sum(1)))
            distance_parts.append(distances(gallery_idx)(query_idx).numpy()[is_match])
    query, distance = np.concatenate(query_parts), np.concatenate(distance_parts)
    order = np.lexsort((distance, query))
    query, distance = query[order], distance[order]
    ordinal = np.arange(1, len(query) + 1) - np.searchsorted(query, query)
    return Matches(query, ordinal, distance)


def count_closer_negatives(
    distances: DistanceFunction,
    matches: Matches,
    query_pids: Ints,
    gallery_pids: Ints,
    gallery_idx: Ints,
    ignored: IgnoredPairs,
    margins: tuple[float, ...],
) -> list[Ints]:
    """Count the negatives that are closer than each correct match, in one pass over the gallery.

    A positive margin also counts negatives that are at most that much farther than the match; a negative margin counts only those that are
    closer by more than its size.

    Args:
        distances: from queries to gallery.
        matches: the p correct matches.
        query_pids: (q,) identities.
        gallery_pids: (g,) identities; a gallery image of the query's identity is never a negative.
        gallery_idx: positions of the gallery images to search, ascending.
        ignored: the pairs that the protocol ignores.
        margins: in units of distance.

    Returns:
        For each margin the (p,) counts.

    Example:
        >>> distances = cosine_distances(np.array([[1, 0]], np.float32), np.array([[1, 0], [1, 0.2], [1, 1]], np.float32))
        >>> pids = np.array([5]), np.array([6, 5, 6])
        >>> ignore_none = lambda query_idx, gallery_idx: np.zeros((len(query_idx), len(gallery_idx)), bool)
        >>> matches = find_matches(distances, *pids, ignore_none)
        >>> count_closer_negatives(distances, matches, *pids, np.arange(3), ignore_none, (1e-6,))[0].tolist()
        [1]
    """
    matched_queries, start = np.unique(matches.query_idx, return_index=True)
    bounds = np.append(start, len(matches.query_idx))
    counts = [np.zeros(len(matches.query_idx), np.int64) for _ in margins]
    for columns in _blocks(gallery_idx, GALLERY_BLOCK):
        distances_to_columns = distances(columns)
        for first in range(0, len(matched_queries), QUERY_BLOCK):
            rows = matched_queries[first : first + QUERY_BLOCK]
            part = slice(bounds[first], bounds[first + len(rows)])
            block_row = np.repeat(np.arange(len(rows)), np.diff(bounds[first : first + len(rows) + 1]))
            cells = block_row, matches.ordinal[part] - 1
            not_negative = (query_pids[rows, None] == gallery_pids[columns]) | ignored(rows, columns)
            block = distances_to_columns(rows).masked_fill_(torch.from_numpy(not_negative), torch.inf)
            for count, margin in zip(counts, margins, strict=True):
                count[part] += _count_below(block, matches.distance[part], cells, margin)
    return counts


def _count_below(block: torch.Tensor, match_distance: npt.NDArray[np.float32], cells: tuple[Ints, Ints], margin: float) -> Ints:
    """Count, for each match, the distances in its row of the (b, c) block that are below the match's distance plus the margin.

    ``cells`` are the matches' (row, ordinal - 1) in a table of edges, one row per query, ascending.
    """
    edges = np.full((len(block), cells[1].max() + 1), np.inf, np.float32)
    edges[cells] = match_distance + np.float32(margin)
    # A distance's bucket is the number of edges below it; a distance that equals an edge precedes that edge only if the margin is positive.
    bucket = torch.searchsorted(torch.from_numpy(edges), block, out_int32=True, right=margin < 0)
    width = edges.shape[1] + 1
    bucket += torch.arange(0, len(block) * width, width, dtype=torch.int32)[:, None]
    bucket_sizes = torch.bincount(bucket.view(-1), minlength=len(block) * width).view(len(block), width)
    return bucket_sizes.cumsum(1).numpy()[cells]


def _blocks(positions: Ints, size: int) -> list[Ints]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]
