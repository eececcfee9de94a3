"""Ranked lists: the nearest gallery images of a few queries, each marked right, wrong or ignored, and the choice of these queries."""

from typing import Literal, NamedTuple

import numpy as np

from pul_core.arrays import Floats, Ints
from pul_core.identities import JUNK_PID, is_same_camera
from pul_core.scoring.protocols import FeatureSet
from pul_core.scoring.ranks import GALLERY_BLOCK, cosine_distances

Mark = Literal["right", "wrong", "ignored"]


class RankedList(NamedTuple):
    """The nearest gallery images of a query, the nearest first. Ignored images have no rank."""

    query_idx: int
    gallery_idx: Ints  # (k,)
    marks: list[Mark]  # (k,)
    distance: Floats  # (k,) 1 - cosine


def ranked_lists(query: FeatureSet, gallery: FeatureSet, query_idx: Ints, *, length: int = 10, device: str = "cpu") -> list[RankedList]:
    """Rank the gallery for a few queries, by the rules of Market-1501: junk, and the query's identity on its own camera, are ignored.

    A list ends with the image at rank ``length``; of the ignored images before that, the nearest ``length`` are listed. The gallery is read
    block by block. At equal distances, wrong images come first, as in pessimistic scores.

    Args:
        query: all queries.
        gallery: the gallery.
        query_idx: (m,) positions of the queries to rank the gallery for.
        length: number of images with a rank in each list.
        device: where distances are computed.

    Example:
        >>> gallery = FeatureSet(np.float32([[1, 0], [1, 0.1], [1, 0.2], [0, 1]]), np.array([7, 5, 7, 7]), np.array([1, 2, 2, 2]))
        >>> ranked_lists(FeatureSet(np.float32([[1, 0]]), np.array([7]), np.array([1])), gallery, np.array([0]), length=2)[0].marks
        ['ignored', 'wrong', 'right']
    """
    to_gallery = cosine_distances(query.features, gallery.features, device=device)
    nearest = [np.empty((0, 3)) for _ in range(2 * len(query_idx))]  # of each query: images with a rank, ignored ones
    for start in range(0, len(gallery.pids), GALLERY_BLOCK):
        columns = np.arange(start, min(start + GALLERY_BLOCK, len(gallery.pids)))
        block = to_gallery(columns)(np.asarray(query_idx)).double().cpu().numpy()
        for number, (position, distance) in enumerate(zip(query_idx, block, strict=True)):
            is_right = (gallery.pids[columns] == query.pids[position]) & (query.pids[position] > 0)
            same_camera = is_same_camera(gallery.camids[columns], query.camids[position])
            ignored = (gallery.pids[columns] == JUNK_PID) | (is_right & same_camera)
            for kind, chosen in enumerate((~ignored, ignored)):
                candidates = np.column_stack((distance, is_right, columns))[chosen]
                merged = np.concatenate((nearest[2 * number + kind], candidates))
                nearest[2 * number + kind] = merged[np.lexsort((merged[:, 1], merged[:, 0].round(6)))][:length]
    return [_joined(int(position), *nearest[2 * number : 2 * number + 2]) for number, position in enumerate(query_idx)]


def _joined(query_idx: int, ranked: Floats, ignored: Floats) -> RankedList:
    """Insert the ignored images into the ranked ones by their distance."""
    ignored = ignored[ignored[:, 0] <= ranked[:, 0].max(initial=-np.inf)]
    rows = np.concatenate((ignored, ranked))
    marks: list[Mark] = ["ignored" for _ in ignored]
    marks += ["right" if is_right else "wrong" for is_right in ranked[:, 1]]
    order = np.argsort(rows[:, 0].round(6), kind="stable")
    return RankedList(query_idx, rows[order, 2].astype(np.int64), [marks[at] for at in order], rows[order, 0])


def choose_queries(value: Floats, pids: Ints, count: int, *, largest: bool, then: Floats | None = None) -> Ints:
    """Return the positions of the queries with the largest or smallest values, at most one per identity, so that nobody fills the list.

    Args:
        value: (q,) e.g. the average precision; NaN queries are never chosen.
        pids: (q,) identities.
        count: number of queries.
        largest: whether the largest or the smallest values are chosen.
        then: (q,) among equal values, the largest of these come first, e.g. the number of correct matches.

    Example:
        >>> choose_queries(np.array([0.2, 0.9, 0.8, np.nan, 0.5]), np.array([1, 2, 2, 3, 4]), 2, largest=True).tolist()
        [1, 4]
    """
    order = np.lexsort((np.zeros(len(value)) if then is None else -then, -value if largest else value))
    order = order[np.isfinite(value[order])]
    _, first = np.unique(pids[order], return_index=True)
    return order[np.sort(first)[:count]]
