"""Ranks of each query's correct matches, found by counting the negatives that are closer, one block of the gallery at a time.

The gallery is never sorted, and memory grows with the number of (query, correct match) pairs, not with queries x gallery. A *negative* is a
gallery image of another identity, distractors included. The metrics follow from the ranks and are in `evaluation`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pul_core.arrays import Features, Ints, unit_rows
from pul_core.clustering.neighbours import unit_vectors

TIE_TOLERANCE = 1e-6  # distances this close are equal: a matrix product rounds equal features differently from column to column
QUERY_BLOCK, GALLERY_BLOCK = 256, 4096  # rows and columns of a block of distances
MATCH_QUERY_BLOCK = 64  # queries whose matches are searched for at once; each is compared with the identities of all of them

Ties = Literal["pessimistic", "optimistic", "expected"]
# Maps gallery positions (c,) to a function that maps query positions (b,) to their distances (b, c).
DistanceFunction = Callable[[Ints], Callable[[Ints], Tensor]]


class Ids(NamedTuple):
    """What decides which gallery images are correct matches of a query, and which ones the protocol ignores; one entry per image."""

    pid: npt.NDArray[np.int32]  # (n,) identity
    ignored: npt.NDArray[np.int32]  # (n,) number of a group: a query and a gallery image with the same number are ignored as a pair


class Matches(NamedTuple):
    """The correct matches of all queries, ordered by query and then by distance."""

    query_idx: Ints  # (p,) position of the query
    ordinal: Ints  # (p,) 1 for the query's closest correct match, 2 for the next one, ...
    distance: npt.NDArray[np.float32]  # (p,)


def cosine_distances(query: Features, gallery: Features, *, device: str = "cpu") -> DistanceFunction:
    """Return the function that computes blocks of ``1 - cosine``.

    Args:
        query: (q, d) features; like the gallery's, they may be memory-mapped.
        gallery: (g, d) features.
        device: where the distances are computed and stay.

    Returns:
        The distance function.

    Raises:
        UserError: a feature is a zero vector or not finite; the distance function may raise it, too.

    Example:
        >>> distances = cosine_distances(np.eye(2, dtype=np.float32), np.array([[3, 0], [0, 2], [-1, 0]], np.float32))
        >>> distances(np.array([0, 2]))(np.array([0])).tolist()
        [[0.0, 2.0]]
    """
    query_rows = unit_vectors(query, device, "query")

    def to_gallery(gallery_idx: Ints) -> Callable[[Ints], Tensor]:
        gallery_columns = unit_rows(gallery, gallery_idx, "gallery", device).T
        return lambda query_idx: (query_rows(query_idx) @ gallery_columns).neg_().add_(1)

    return to_gallery


def find_matches(distances: DistanceFunction, query: Ids, gallery: Ids, *, device: str = "cpu") -> Matches:
    """Find the correct matches of every query: the gallery images of its identity that the protocol does not ignore.

    Args:
        distances: from queries to gallery, on the same device.
        query: ids of the q queries; a query with an identity below 1 has no correct match.
        gallery: ids of the g gallery images.
        device: where the ids are compared.

    Returns:
        The matches, ordered by query and then by distance.
    """
    by_pid = np.argsort(query.pid, kind="stable")
    query_parts, distance_parts = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for query_idx in map(np.sort, _blocks(by_pid[query.pid[by_pid] > 0], MATCH_QUERY_BLOCK)):
        for gallery_idx in _blocks(np.flatnonzero(np.isin(gallery.pid, query.pid[query_idx])), GALLERY_BLOCK):
            same_pid, ignored = (_equal(*ids, query_idx, gallery_idx, device) for ids in zip(query, gallery, strict=True))
            is_match = same_pid & ~ignored
            query_parts.append(np.repeat(query_idx, is_match.sum(1).cpu().numpy()))
            distance_parts.append(distances(gallery_idx)(query_idx)[is_match].cpu().numpy())
    matched_query, distance = np.concatenate(query_parts), np.concatenate(distance_parts)
    order = np.lexsort((distance, matched_query))
    matched_query, distance = matched_query[order], distance[order]
    ordinal = np.arange(1, len(order) + 1) - np.searchsorted(matched_query, matched_query)
    return Matches(matched_query, ordinal, distance)


def count_closer_negatives(
    distances: DistanceFunction,
    matches: Matches,
    query: Ids,
    gallery: Ids,
    gallery_idx: Ints,
    margins: tuple[float, ...],
    *,
    device: str = "cpu",
) -> list[Ints]:
    """Count the negatives that are closer than each correct match, in one pass over the gallery.

    A positive margin also counts negatives that are at most that much farther than the match; a negative margin counts only those that are
    closer by more than its size.

    Args:
        distances: from queries to gallery, on the same device.
        matches: the p correct matches.
        query: ids of the q queries.
        gallery: ids of the g gallery images; one of the query's identity is never a negative.
        gallery_idx: positions of the gallery images to search, ascending.
        margins: in units of distance.
        device: where the negatives are counted.

    Returns:
        For each margin the (p,) counts.

    Example:
        >>> distances = cosine_distances(np.array([[1, 0]], np.float32), np.array([[1, 0], [1, 0.2], [1, 1]], np.float32))
        >>> ids = Ids(np.int32([5]), np.int32([0])), Ids(np.int32([6, 5, 6]), np.int32([1, 1, 1]))
        >>> matches = find_matches(distances, *ids)
        >>> count_closer_negatives(distances, matches, *ids, np.arange(3), (1e-6,))[0].tolist()
        [1]
    """
    matched_queries, start = np.unique(matches.query_idx, return_index=True)
    bounds = np.append(start, len(matches.query_idx))
    block_row = torch.from_numpy(np.repeat(np.arange(len(start)) % QUERY_BLOCK, np.diff(bounds))).to(device)
    column, distance = torch.from_numpy(matches.ordinal - 1).to(device), torch.from_numpy(matches.distance).to(device)
    counts = torch.zeros((len(margins), len(column)), dtype=torch.int64, device=device)
    for columns in _blocks(gallery_idx, GALLERY_BLOCK):
        distances_to_columns = distances(columns)
        for first in range(0, len(matched_queries), QUERY_BLOCK):
            rows = matched_queries[first : first + QUERY_BLOCK]
            part = slice(bounds[first], bounds[first + len(rows)])
            same_pid, ignored = (_equal(*ids, rows, columns, device) for ids in zip(query, gallery, strict=True))
            block = distances_to_columns(rows).masked_fill_(same_pid.logical_or_(ignored), torch.inf)
            edges = torch.full((len(rows), int(matches.ordinal[part].max())), torch.inf, device=device)
            cells = block_row[part], column[part]
            for count, margin in zip(counts, margins, strict=True):
                edges[cells] = distance[part] + margin
                count[part] += _count_below(block, edges, right=margin < 0)[cells]
    return list(counts.cpu().numpy())


def _count_below(block: Tensor, edges: Tensor, *, right: bool) -> Tensor:
    """Count the distances in each row of the (b, c) block that are below each edge of the row, or, without ``right``, equal to it.

    ``edges`` (b, e) are ascending.
    """
    # A distance's bucket is the number of edges below it; with ``right``, an edge that equals the distance counts as below.
    bucket = torch.searchsorted(edges, block, out_int32=True, right=right)
    width = edges.shape[1] + 1
    bucket += torch.arange(0, len(block) * width, width, dtype=torch.int32, device=block.device)[:, None]
    return torch.bincount(bucket.view(-1), minlength=len(block) * width).view(len(block), width).cumsum(1)


def _equal(query_ids: npt.NDArray[np.int32], gallery_ids: npt.NDArray[np.int32], query_idx: Ints, gallery_idx: Ints, device: str) -> Tensor:
    """Return the (b, c) mask, on the device, of the pairs of a query and a gallery image with the same number."""
    return torch.from_numpy(query_ids[query_idx]).to(device)[:, None] == torch.from_numpy(gallery_ids[gallery_idx]).to(device)


def _blocks(positions: Ints, size: int) -> list[Ints]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]
