"""Exact k-nearest neighbours and the k-reciprocal Jaccard distance, for clustering and for re-ranking.

Everything is computed in blocks and stored as sparse rows: memory grows with n x k.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from pul_core.arrays import Features, Ints, unit_rows
from pul_core.identities import separate_unknown_cameras

ROWS, COLUMNS = 1024, 8192  # shape of a block of cosines: 32 MB
PAIRS = 1 << 13  # pairs of features per block
OVERLAPS = 1 << 21  # pairs of entries of two encodings per block


class Neighbours(NamedTuple):
    """The nearest neighbours of each image, itself first, and the distance to the farthest image."""

    nearest: Ints  # (n, k) indices, padded with -1
    farthest: Features  # (n,) squared Euclidean distance after L2-normalisation, 2 - 2 cosine


def nearest_neighbours(features: Features, k: int, *, camids: Ints | None = None, same_camera: bool = True) -> Neighbours:
    """Find the k nearest neighbours of every image, itself included, without an n x n matrix.

    Args:
        features: (n, d), may be memory-mapped.
        k: number of neighbours; at most n are returned.
        camids: (n,) camera of each image, to search each image's own camera only; None to search all images. An unknown camera (-1)
            differs from every camera, so that an image from one is alone on it.
        same_camera: False searches all other cameras instead, and the image itself is not among the neighbours.

    Returns:
        Neighbours with min(k, n) columns.

    Raises:
        UserError: a feature is not finite or a zero vector.

    Example:
        >>> neighbours = nearest_neighbours(np.array([[1, 0], [0, 1], [1, 0.1]], np.float32), 2)
        >>> neighbours.nearest.tolist(), neighbours.farthest[:2].tolist()
        ([[0, 2], [1, 2], [2, 0]], [2.0, 2.0])
    """
    n, k = len(features), min(k, len(features))
    camids = None if camids is None else separate_unknown_cameras(camids)
    nearest, cosine = torch.empty((n, k), dtype=torch.int64), torch.full((n, k), -torch.inf)
    smallest_cosine = torch.full((n,), torch.inf)
    for first_column in range(0, n, COLUMNS):
        columns = np.arange(first_column, min(first_column + COLUMNS, n))
        candidates = unit_rows(features, columns, "target").T
        for first_row in range(0, n, ROWS):
            rows = np.arange(first_row, min(first_row + ROWS, n))
            block_rows = slice(first_row, rows[-1] + 1)
            block = unit_rows(features, rows, "target") @ candidates
            smallest_cosine[block_rows] = torch.minimum(smallest_cosine[block_rows], block.min(1).values)
            diagonal = np.intersect1d(rows, columns)
            block[diagonal - first_row, diagonal - first_column] = torch.inf  # the image itself comes before its duplicates
            if camids is not None:
                block[torch.from_numpy((camids[rows][:, None] == camids[columns]) != same_camera)] = -torch.inf
            top = block.topk(min(k, block.shape[1]), dim=1)
            merged = torch.cat((cosine[block_rows], top.values), 1).topk(k, dim=1)
            nearest[block_rows] = torch.cat((nearest[block_rows], top.indices + first_column), 1).gather(1, merged.indices)
            cosine[block_rows] = merged.values
    nearest[cosine == -torch.inf] = -1
    return Neighbours(nearest.numpy(), (2 - 2 * smallest_cosine).clamp_(min=0).numpy())


def reciprocal_encoding(
    features: Features, neighbours: Neighbours, *, k1: int, k2: int, scale: Features | None = None
) -> sparse.csr_matrix:
    """Encode each image by its k-reciprocal neighbours, weighted by exp(-distance) and averaged over its nearest images.

    R(i, k) are the images j with j among the k + 1 nearest of i (itself included) and i among those of j. R(i, k1) is extended by
    R(j, k1 / 2) for each j in it if more than two thirds of R(j, k1 / 2) are in R(i, k1). The weights of a row sum to 1; then the rows of
    the k2 nearest images are averaged.

    Args:
        features: (n, d), may be memory-mapped.
        neighbours: at least max(k1 + 1, k2) of each image, unless there are fewer images.
        k1: size of the neighbourhoods.
        k2: number of nearest images, the image itself included, over which an encoding is averaged; 1: no averaging.
        scale: (n,) divisor of each image's distances; None for 1.

    Returns:
        (n, n) sparse float32 whose rows sum to 1.

    Raises:
        ValueError: there are too few neighbours.

    Source: Zhong et al. 2017, sections 3.2 to 3.4.

    Example:
        >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
        >>> reciprocal_encoding(features, nearest_neighbours(features, 2), k1=1, k2=1).toarray().round(2)[0].tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    n, num_neighbours = neighbours.nearest.shape
    if num_neighbours < min(max(k1 + 1, k2), n):
        raise ValueError(f"k1 = {k1} and k2 = {k2} require {max(k1 + 1, k2)} neighbours of each image, got {num_neighbours}")
    wide = reciprocal_neighbours(neighbours.nearest[:, : k1 + 1])
    narrow = reciprocal_neighbours(neighbours.nearest[:, : round(k1 / 2) + 1])
    return encode_neighbourhoods(features, wide, narrow, neighbours.nearest[:, :k2], scale=scale)


def encode_neighbourhoods(
    features: Features,
    wide: sparse.csr_matrix,
    narrow: sparse.csr_matrix,
    averaged: Ints,
    *,
    scale: Features | None = None,
) -> sparse.csr_matrix:
    """Extend each image's neighbourhood, weight it by exp(-distance) so that rows sum to 1, and average the rows of its nearest images.

    Args:
        features: (n, d), may be memory-mapped.
        wide: (n, n), 1 where two images are neighbours; symmetric and with the diagonal.
        narrow: (n, n), the same with smaller neighbourhoods. That of j extends the wide one of i if j is in the wide one of i and more than
            two thirds of the narrow one of j are, too.
        averaged: (n, k2) images whose rows are averaged, the image itself included; padded with -1.
        scale: (n,) divisor of each image's distances; None for 1.

    Returns:
        (n, n) sparse float32 whose rows sum to 1.
    """
    n = len(features)
    # shared[i, j]: size of the intersection of j's narrow neighbourhood and i's wide one, for the j in the latter
    shared = (wide @ narrow.T).multiply(wide).tocoo()
    extends = shared.data > 2 / 3 * np.diff(narrow.indptr)[shared.col]
    extensions = sparse.csr_matrix((np.ones(extends.sum(), np.float32), (shared.row[extends], shared.col[extends])), shape=(n, n))
    members = (wide + extensions @ narrow).tocsr()
    members.sort_indices()
    row = np.repeat(np.arange(n), np.diff(members.indptr))
    weight = np.exp(-_pair_distances(features, row, members.indices) / (1 if scale is None else scale[row]))
    encoding = sparse.csr_matrix(
        ((weight / np.bincount(row, weight, n)[row]).astype(np.float32), members.indices, members.indptr), shape=(n, n)
    )
    if averaged.shape[1] > 1:
        mean = _indicator_rows(averaged)
        mean.data /= np.repeat(np.diff(mean.indptr), np.diff(mean.indptr))
        encoding = (mean @ encoding).tocsr()
    encoding.sort_indices()
    return encoding


def reciprocal_neighbours(nearest: Ints) -> sparse.csr_matrix:
    """Return an (n, n) matrix that is 1 where two images are among each other's nearest, which are (n, k) and padded with -1."""
    forward = _indicator_rows(nearest)
    return forward.multiply(forward.T).tocsr()


def _indicator_rows(indices: Ints) -> sparse.csr_matrix:
    """Return an (n, n) matrix whose row i is 1 at the columns ``indices[i]``; -1 is padding."""
    valid = indices >= 0
    indptr = np.concatenate(([0], np.cumsum(valid.sum(1))))
    return sparse.csr_matrix((np.ones(indptr[-1], np.float32), indices[valid], indptr), shape=(len(indices), len(indices)))


def _pair_distances(features: Features, left: Ints, right: Ints) -> Features:
    """Return the squared distances of pairs of images, given by ascending left and any right indices."""
    distance = np.empty(len(left), np.float32)
    for start in range(0, len(left), PAIRS):
        pairs = slice(start, start + PAIRS)
        left_images, left_position = np.unique(left[pairs], return_inverse=True)
        right_images, right_position = np.unique(right[pairs], return_inverse=True)
        a, b = unit_rows(features, left_images, "target"), unit_rows(features, right_images, "target")
        parts = zip(np.array_split(left_position, 8), np.array_split(right_position, 8), strict=True)
        cosine = torch.cat([(a[i] * b[j]).sum(1) for i, j in parts])
        distance[pairs] = (2 - 2 * cosine).clamp_(min=0).numpy()
    distance[left == right] = 0
    return distance


def jaccard_distances(encoding: sparse.csr_matrix, rows: Ints, *, to: Ints | None = None) -> Iterator[sparse.csr_matrix]:
    """Yield the Jaccard distances below 1 of the images at ``rows`` to all images, a few rows at a time.

    ``1 - s / (2 - s)``, with s the sum over all columns of the smaller of the two weights. A distance that is not stored is 1, and a stored
    one may be 0: read ``indices`` and ``data``, not a dense copy.

    Args:
        encoding: (n, n) from ``reciprocal_encoding``.
        rows: (m,) indices of images, in the order in which they are yielded.
        to: (t,) indices of the images to measure the distances to, which are the columns that are yielded; None for all images.

    Yields:
        Blocks of sparse float32 rows with t columns, m rows in all.

    Source: Zhong et al. 2017, equation 10.

    Example:
        >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
        >>> encoding = reciprocal_encoding(features, nearest_neighbours(features, 2), k1=1, k2=1)
        >>> (block,) = jaccard_distances(encoding, np.arange(4))
        >>> block.indices.tolist(), bool((block.data < 0.01).all())
        ([0, 1, 0, 1, 2, 3, 2, 3], True)
    """
    targets = (encoding if to is None else encoding[to]).tocsc()
    column_sizes = np.diff(targets.indptr)  # number of target images with an entry in each column
    overlaps = np.concatenate(([0], np.cumsum(column_sizes[encoding.indices])))[encoding.indptr]  # pairs of entries before each row
    start = 0
    while start < len(rows):
        work = np.cumsum(overlaps[rows[start:] + 1] - overlaps[rows[start:]])
        stop = start + max(1, int(np.searchsorted(work, OVERLAPS, side="right")))
        yield _jaccard_block(encoding[rows[start:stop]], targets, column_sizes)
        start = stop


def _jaccard_block(block: sparse.csr_matrix, targets: sparse.csc_matrix, column_sizes: Ints) -> sparse.csr_matrix:
    """Pair each entry of the block with all target entries in its column, and sum the smaller weights for each pair of images."""
    counts = column_sizes[block.indices]
    ends = np.cumsum(counts)
    entries = np.arange(ends[-1] if len(ends) else 0) + np.repeat(targets.indptr[block.indices] - ends + counts, counts)
    smaller = np.minimum(np.repeat(block.data, counts), targets.data[entries])
    rows = np.repeat(np.repeat(np.arange(block.shape[0]), np.diff(block.indptr)), counts)
    shared = sparse.coo_matrix((smaller, (rows, targets.indices[entries])), shape=(block.shape[0], targets.shape[0])).tocsr()
    shared.sort_indices()
    shared.data = 1 - shared.data / (2 - shared.data)
    return shared
