"""Who is near whom: exact nearest neighbours by blocks, k-reciprocal neighbourhoods as sparse rows, and the Jaccard distance of these.

Memory grows with n x k. It does not know what a query is: re-ranking and clustering both stand on it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from pul_core.arrays import Ints, unit_rows
from pul_core.errors import UserError

ROWS, COLUMNS = 1024, 8192  # a block of similarities: 32 MB
PAIRS = 1 << 13  # pairs of features compared at once
OVERLAPS = 1 << 21  # pairs of entries of two encodings compared at once


class Neighbours(NamedTuple):
    """The nearest of each image, itself first. Distances are squared Euclidean ones of L2-normalised features: 2 - 2 cosine."""

    nearest: Ints  # (n, k), -1 where there are no more
    distance: npt.NDArray[np.float32]  # (n, k) ascending, infinite where there are no more
    farthest: npt.NDArray[np.float32]  # (n,) distance to the image farthest away


def nearest_neighbours(features: npt.NDArray[np.float32], k: int, *, cameras: Ints | None = None, same_camera: bool = True) -> Neighbours:
    """Find the k nearest images of every image, itself included, without an n x n matrix.

    Args:
        features: (n, d), may be memory-mapped.
        k: how many; all of them if there are fewer images.
        cameras: (n,) of the images: then only neighbours on an image's own camera count.
        same_camera: False for neighbours on other cameras instead, of which it is none itself.

    Returns:
        (n, min(k, n)) neighbours.

    Raises:
        UserError: a zero vector or a value that is not finite.

    Example:
        >>> found = nearest_neighbours(np.array([[1, 0], [0, 1], [1, 0.1]], np.float32), 2)
        >>> found.nearest.tolist(), found.farthest[:2].tolist()
        ([[0, 2], [1, 2], [2, 0]], [2.0, 2.0])
    """
    n, k = len(features), min(k, len(features))
    index, cosine = torch.empty((n, k), dtype=torch.int64), torch.full((n, k), -torch.inf)
    least = torch.full((n,), torch.inf)
    for first in range(0, n, COLUMNS):
        columns = np.arange(first, min(first + COLUMNS, n))
        wanted = unit_rows(features, columns, "target").T
        for start in range(0, n, ROWS):
            rows = np.arange(start, min(start + ROWS, n))
            part = slice(start, rows[-1] + 1)
            block = unit_rows(features, rows, "target") @ wanted
            least[part] = torch.minimum(least[part], block.min(1).values)
            own = np.intersect1d(rows, columns)
            block[own - start, own - first] = torch.inf  # before its twins
            if cameras is not None:
                block[torch.from_numpy((cameras[rows][:, None] == cameras[columns]) != same_camera)] = -torch.inf
            top = block.topk(min(k, block.shape[1]), dim=1)
            merged = torch.cat((cosine[part], top.values), 1).topk(k, dim=1)
            index[part] = torch.cat((index[part], top.indices + first), 1).gather(1, merged.indices)
            cosine[part] = merged.values
    index[cosine == -torch.inf] = -1
    distance = (2 - 2 * cosine).clamp_(min=0)
    return Neighbours(index.numpy(), distance.numpy(), (2 - 2 * least).clamp_(min=0).numpy())


def reciprocal_encoding(
    features: npt.NDArray[np.float32], neighbours: Neighbours, *, k1: int, k2: int, scale: npt.NDArray[np.float32] | None = None
) -> sparse.csr_matrix:
    """Encode each image by its k-reciprocal neighbours, weighted by exp(-distance) and averaged over its nearest ones.

    R(i, k) are the images among the k + 1 nearest of i (itself included) that have i among theirs. R(i, k1) is joined by R(j, k1 / 2) for
    each j in it if more than two thirds of R(j, k1 / 2) are in R(i, k1). The weights of a row sum to 1; k2 rows are averaged.

    Args:
        features: (n, d), may be memory-mapped.
        neighbours: at least k1 + 1 (and k2) of each image, unless there are fewer images.
        k1: size of the neighbourhood.
        k2: how many nearest images, itself included, an encoding is averaged over; 1 for none.
        scale: (n,) divides an image's distances; None for 1.

    Returns:
        (n, n) sparse float32, rows that sum to 1.

    Raises:
        UserError: too few neighbours were searched for.

    Source: Zhong et al. 2017, sections 3.2 to 3.4.

    Example:
        >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
        >>> reciprocal_encoding(features, nearest_neighbours(features, 2), k1=1, k2=1).toarray().round(2)[0].tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    n, found = neighbours.nearest.shape
    if found < min(max(k1 + 1, k2), n):
        raise UserError(f"{found} neighbours of each image were searched for, but k1 = {k1} and k2 = {k2} need {max(k1 + 1, k2)}")
    wide, narrow = reciprocal(neighbours.nearest[:, : k1 + 1]), reciprocal(neighbours.nearest[:, : round(k1 / 2) + 1])
    return encode(features, wide, narrow, neighbours.nearest[:, :k2], scale=scale)


def encode(
    features: npt.NDArray[np.float32],
    wide: sparse.csr_matrix,
    narrow: sparse.csr_matrix,
    averaged: Ints,
    *,
    scale: npt.NDArray[np.float32] | None = None,
) -> sparse.csr_matrix:
    """Weight each image's neighbourhood by exp(-distance), rows summing to 1, and average the rows of its nearest ones.

    Args:
        features: (n, d), may be memory-mapped.
        wide: (n, n) ones, who is in whose neighbourhood, symmetric and with the diagonal.
        narrow: (n, n) the same, smaller: j's joins i's if j is in i's and more than two thirds of it are there already.
        averaged: (n, k2) whose rows are averaged, itself included; -1 for nobody.
        scale: (n,) divides an image's distances; None for 1.

    Returns:
        (n, n) sparse float32, rows that sum to 1.
    """
    n = len(features)
    # shared[i, j]: how many images of j's narrow neighbourhood are in i's wide one, for the j that are in it too
    shared = (wide @ narrow.T).multiply(wide).tocoo()
    joins = shared.data > 2 / 3 * np.diff(narrow.indptr)[shared.col]
    joining = sparse.csr_matrix((np.ones(joins.sum(), np.float32), (shared.row[joins], shared.col[joins])), shape=(n, n))
    members = (wide + joining @ narrow).tocsr()
    members.sort_indices()
    row = np.repeat(np.arange(n), np.diff(members.indptr))
    distance = _pair_distances(features, row, members.indices)
    weight = np.exp(-distance / (1 if scale is None else scale[row]))
    total = np.bincount(row, weight, n)
    encoding = sparse.csr_matrix(((weight / total[row]).astype(np.float32), members.indices, members.indptr), shape=(n, n))
    if averaged.shape[1] > 1:
        mean = _ones_at(averaged)
        mean.data /= np.repeat(np.diff(mean.indptr), np.diff(mean.indptr))
        encoding = (mean @ encoding).tocsr()
    encoding.sort_indices()
    return encoding


def reciprocal(index: Ints) -> sparse.csr_matrix:
    """Return (n, n) ones where two images are among each other's nearest, (n, k) with -1 for nobody."""
    forward = _ones_at(index)
    return forward.multiply(forward.T).tocsr()


def _ones_at(index: Ints) -> sparse.csr_matrix:
    there = index >= 0
    ends = np.concatenate(([0], np.cumsum(there.sum(1))))
    return sparse.csr_matrix((np.ones(ends[-1], np.float32), index[there], ends), shape=(len(index), len(index)))


def _pair_distances(features: npt.NDArray[np.float32], left: Ints, right: Ints) -> npt.NDArray[np.float32]:
    """Return squared distances of pairs of images whose left ones ascend."""
    distance = np.empty(len(left), np.float32)
    for start in range(0, len(left), PAIRS):
        part = slice(start, start + PAIRS)
        first, at_first = np.unique(left[part], return_inverse=True)
        second, at_second = np.unique(right[part], return_inverse=True)
        a, b = unit_rows(features, first, "target"), unit_rows(features, second, "target")
        cosine = torch.cat([(a[i] * b[j]).sum(1) for i, j in zip(*(np.array_split(x, 8) for x in (at_first, at_second)), strict=True)])
        distance[part] = (2 - 2 * cosine).clamp_(min=0).numpy()
    distance[left == right] = 0
    return distance


def jaccard_distances(encoding: sparse.csr_matrix, rows: Ints, *, to: Ints | None = None) -> Iterator[sparse.csr_matrix]:
    """Yield Jaccard distances of some images to all, a few rows at a time, where they are below 1.

    With s the sum over all columns of the smaller weight of the two: ``1 - s / (2 - s)``. What a yielded row does not hold is 1, and what
    it holds may be 0: read ``indices`` and ``data``, not a dense copy.

    Args:
        encoding: (n, n) from ``reciprocal_encoding``.
        rows: positions of the images, in the order in which they are yielded.
        to: positions the distances lead to; None for all, (n,). They number the yielded columns.

    Yields:
        (some, len(to)) sparse float32, rows in order.

    Source: Zhong et al. 2017, equation 10.

    Example:
        >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
        >>> encoding = reciprocal_encoding(features, nearest_neighbours(features, 2), k1=1, k2=1)
        >>> (block,) = jaccard_distances(encoding, np.arange(4))
        >>> block.indices.tolist(), bool((block.data < 0.01).all())
        ([0, 1, 0, 1, 2, 3, 2, 3], True)
    """
    targets = (encoding if to is None else encoding[to]).tocsc()
    overlaps = np.diff(targets.indptr)  # how many images share each column
    work = np.concatenate(([0], np.cumsum(overlaps[encoding.indices])))[encoding.indptr]  # pairs of entries before each row
    start = 0
    while start < len(rows):
        size = np.cumsum(work[rows[start:] + 1] - work[rows[start:]])
        stop = start + max(1, int(np.searchsorted(size, OVERLAPS, side="right")))
        part = encoding[rows[start:stop]]
        yield _jaccard(part, targets, overlaps)
        start = stop


def _jaccard(part: sparse.csr_matrix, targets: sparse.csc_matrix, overlaps: Ints) -> sparse.csr_matrix:
    count = overlaps[part.indices]
    ends = np.cumsum(count)
    entry = np.arange(ends[-1] if len(ends) else 0) + np.repeat(targets.indptr[part.indices] - ends + count, count)
    smaller = np.minimum(np.repeat(part.data, count), targets.data[entry])
    row = np.repeat(np.repeat(np.arange(part.shape[0]), np.diff(part.indptr)), count)
    shared = sparse.coo_matrix((smaller, (row, targets.indices[entry])), shape=(part.shape[0], targets.shape[0])).tocsr()
    shared.sort_indices()
    shared.data = 1 - shared.data / (2 - shared.data)
    return shared
