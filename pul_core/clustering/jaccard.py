"""k-reciprocal encoding of images and the Jaccard distance of encodings, as sparse rows: memory grows with n x k.

Distances of features and sums of minima are computed on the device. Sparse products stay on the CPU, in SciPy: their cost is linear in n,
and the size of each result, which a device would have to report first, is not known before it is computed.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from pul_core.arrays import Features, Ints
from pul_core.clustering.neighbours import Neighbours, unit_vectors

PAIRS = 1 << 15  # pairs of images per block
OVERLAPS, CELLS = 1 << 20, 1 << 22  # pairs of entries of two encodings, and sums of pairs of images, per block
ONE = 1 << 30  # a weight of 1 as an integer: sums of integers have the same bits in every order and on every device
BOUND_TOLERANCE = 1e-4  # above the rounding error of a sum of float32 products


def reciprocal_encoding(
    features: Features, neighbours: Neighbours, *, k1: int, k2: int, scale: Features | None = None, device: str = "cpu"
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
        device: where the distances are computed.

    Returns:
        (n, n) sparse float32 whose rows sum to 1.

    Raises:
        ValueError: there are too few neighbours.

    Source: Zhong et al. 2017, sections 3.2 to 3.4.

    Example:
        >>> from pul_core.clustering.neighbours import nearest_neighbours
        >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
        >>> reciprocal_encoding(features, nearest_neighbours(features, 2), k1=1, k2=1).toarray().round(2)[0].tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    n, num_neighbours = neighbours.nearest.shape
    if num_neighbours < min(max(k1 + 1, k2), n):
        raise ValueError(f"k1 = {k1} and k2 = {k2} require {max(k1 + 1, k2)} neighbours of each image, got {num_neighbours}")
    wide = reciprocal_neighbours(neighbours.nearest[:, : k1 + 1])
    narrow = reciprocal_neighbours(neighbours.nearest[:, : round(k1 / 2) + 1])
    return encode_neighbourhoods(features, wide, narrow, neighbours.nearest[:, :k2], scale=scale, device=device)


def encode_neighbourhoods(
    features: Features,
    wide: sparse.csr_matrix,
    narrow: sparse.csr_matrix,
    averaged: Ints,
    *,
    scale: Features | None = None,
    device: str = "cpu",
) -> sparse.csr_matrix:
    """Extend each image's neighbourhood, weight it by exp(-distance) so that rows sum to 1, and average the rows of its nearest images.

    Args:
        features: (n, d), may be memory-mapped.
        wide: (n, n), 1 where two images are neighbours; symmetric and with the diagonal.
        narrow: (n, n), the same with smaller neighbourhoods. That of j extends the wide one of i if j is in the wide one of i and more than
            two thirds of the narrow one of j are, too.
        averaged: (n, k2) images whose rows are averaged, the image itself included; padded with -1.
        scale: (n,) divisor of each image's distances; None for 1.
        device: where the distances are computed.

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
    weight = np.exp(-_pair_distances(features, members, row, device) / (1 if scale is None else scale[row]))
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


def _pair_distances(features: Features, pairs: sparse.csr_matrix, row: Ints, device: str) -> Features:
    """Return the squared distances of the pairs of images that are stored in the (n, n) matrix; ``row`` is the row of each."""
    unit, distance = unit_vectors(features, device), np.empty(len(row), np.float32)
    for first, last in _blocks(pairs.indptr, PAIRS):
        part = slice(pairs.indptr[first], pairs.indptr[last])
        columns, position = np.unique(pairs.indices[part], return_inverse=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(
                torch.from_numpy(pairs.indptr[first : last + 1] - pairs.indptr[first]).to(torch.int64),
                torch.from_numpy(position),
                torch.zeros(len(position)),
                (last - first, len(columns)),
                device=device,
                check_invariants=False,  # checking would make a device wait
            )
        cosines = torch.sparse.sampled_addmm(pattern, unit(np.arange(first, last)), unit(columns).T, beta=0).values()
        distance[part] = (2 - 2 * cosines).clamp_(min=0).cpu().numpy()
    distance[row == pairs.indices] = 0
    return distance


def near_jaccard_distances(encoding: sparse.csr_matrix, max_distance: float, *, device: str = "cpu") -> sparse.csr_matrix:
    """Return the Jaccard distances of all pairs of images up to a limit.

    The distance is ``1 - s / (2 - s)``, with s the sum over all columns of the smaller of the two weights, a and b. As ``min(a, b)`` is at
    most ``sqrt(a b)``, a sparse product shows which sums can be large enough; few others are computed.

    Args:
        encoding: (n, n) from ``reciprocal_encoding``.
        max_distance: the limit, below 1; larger distances are not stored.
        device: where the sums are computed.

    Returns:
        (n, n) sparse float32 with the diagonal, exactly symmetric. A stored distance may be 0: read ``indices`` and ``data``, not a dense
        copy.

    Source: Zhong et al. 2017, equation 10; the bound is ours.

    Example:
        >>> encoding = sparse.csr_matrix(np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0.2, 0.8]], np.float32))
        >>> [near_jaccard_distances(encoding, limit).indices.tolist() for limit in (0.5, 0.9)]
        [[0, 1, 0, 1, 2], [0, 1, 2, 0, 1, 2, 0, 1, 2]]
    """
    i, j = _candidate_pairs(encoding, 2 * (1 - max_distance) / (2 - max_distance))
    distance = _distances(_shared_weights(encoding, i, j, device)).cpu().numpy()
    near, diagonal = distance <= max_distance, np.arange(encoding.shape[0])
    i, j, distance = i[near], j[near], distance[near]
    data = np.concatenate((distance, distance, np.zeros(len(diagonal), np.float32)))
    return sparse.coo_matrix((data, (np.concatenate((i, j, diagonal)), np.concatenate((j, i, diagonal)))), shape=encoding.shape).tocsr()


def _candidate_pairs(encoding: sparse.csr_matrix, min_shared: float) -> tuple[Ints, Ints]:
    """Return the pairs of images i < j whose sum of sqrt(a b) is at least ``min_shared``."""
    roots = encoding.sqrt()
    columns = roots.T.tocsr()
    overlaps = np.concatenate(([0], np.cumsum(np.diff(columns.indptr)[roots.indices], dtype=np.int64)))[roots.indptr]
    pairs = [np.empty((2, 0), np.int64)]
    for first, last in _blocks(overlaps, OVERLAPS):
        bounds = (roots[first:last] @ columns).tocoo()
        possible = (bounds.data >= min_shared - BOUND_TOLERANCE) & (bounds.col > bounds.row + first)
        pairs.append(np.stack((bounds.row[possible].astype(np.int64) + first, bounds.col[possible])))
    i, j = np.concatenate(pairs, axis=1)
    return i, j


def _shared_weights(encoding: sparse.csr_matrix, i: Ints, j: Ints, device: str) -> Tensor:
    """Return the sum of the smaller weights of each pair of images, by looking up the entries of row j in row i."""
    n, sizes = encoding.shape[0], np.diff(encoding.indptr)
    cells = torch.from_numpy(np.repeat(np.arange(n) * n, sizes) + encoding.indices).to(device)  # ascending
    columns, weights = torch.from_numpy(encoding.indices).to(device), _whole_weights(encoding, device)
    shared = [torch.empty(0, dtype=torch.int64, device=device)]
    for start in range(0, len(i), PAIRS):
        left, right = i[start : start + PAIRS], j[start : start + PAIRS]
        pair, entry = _members(encoding.indptr[right], sizes[right], device)
        wanted = (torch.from_numpy(left * n).to(device).index_select(0, pair)).add_(columns.index_select(0, entry))
        found = torch.searchsorted(cells, wanted).clamp_(max=len(cells) - 1)
        smaller = torch.minimum(weights.index_select(0, found), weights.index_select(0, entry))
        totals = smaller.mul_(cells.index_select(0, found) == wanted).cumsum(0, dtype=torch.int64)
        shared.append(totals[torch.from_numpy(np.cumsum(sizes[right], dtype=np.int64) - 1).to(device)].diff(prepend=totals.new_zeros(1)))
    return torch.cat(shared)


def jaccard_distances(
    encoding: sparse.csr_matrix, rows: Ints, *, to: Ints | None = None, device: str = "cpu"
) -> Iterator[sparse.csr_matrix]:
    """Yield the Jaccard distances below 1 of the images at ``rows`` to all images, a few rows at a time.

    They are those of ``near_jaccard_distances`` without a limit. A distance that is not stored is 1, and a stored one may be 0.

    Args:
        encoding: (n, n) from ``reciprocal_encoding``.
        rows: (m,) indices of images, in the order in which they are yielded.
        to: (t,) indices of the images to measure the distances to, which are the columns that are yielded; None for all images.
        device: where the sums are computed.

    Yields:
        Blocks of sparse float32 rows with t columns, m rows in all.

    Source: Zhong et al. 2017, equation 10.

    Example:
        >>> encoding = sparse.csr_matrix(np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], np.float32))
        >>> (block,) = jaccard_distances(encoding, np.arange(3))
        >>> block.indices.tolist(), block.data.tolist()
        ([0, 1, 0, 1, 2], [0.0, 0.0, 0.0, 0.0, 0.0])
    """
    targets = (encoding if to is None else encoding[to]).tocsc()
    t, column_sizes = targets.shape[0], np.diff(targets.indptr)
    target_rows, target_weights = torch.from_numpy(targets.indices).to(device), _whole_weights(targets, device)
    block_rows = max(1, CELLS // max(t, 1))
    for block in (encoding[rows[start : start + block_rows]] for start in range(0, len(rows), block_rows)):
        shared = torch.zeros(block.shape[0] * t, dtype=torch.int32, device=device)
        first_cells = torch.from_numpy(np.repeat(np.arange(block.shape[0]) * t, np.diff(block.indptr))).to(device)
        weights, counts = _whole_weights(block, device), column_sizes[block.indices]
        for first, last in _blocks(np.concatenate(([0], np.cumsum(counts, dtype=np.int64))), OVERLAPS):
            entry, target = _members(targets.indptr[block.indices[first:last]], counts[first:last], device)
            cells = first_cells[first:last].index_select(0, entry).add_(target_rows.index_select(0, target))
            smaller = torch.minimum(weights[first:last].index_select(0, entry), target_weights.index_select(0, target))
            shared.scatter_add_(0, cells, smaller)
        cells = shared.nonzero().squeeze(1)
        data, cell = _distances(shared[cells]).cpu().numpy(), cells.cpu().numpy()
        yield sparse.csr_matrix((data, cell % t, np.searchsorted(cell, np.arange(block.shape[0] + 1) * t)), shape=(block.shape[0], t))


def _whole_weights(encoding: sparse.csr_matrix | sparse.csc_matrix, device: str) -> Tensor:
    return torch.from_numpy(encoding.data).to(device).mul(ONE).round_().to(torch.int32)


def _distances(shared: Tensor) -> Tensor:
    shared = shared.to(torch.float32) / ONE
    return (1 - shared / (2 - shared)).clamp_(min=0)


def _members(starts: Ints, counts: Ints, device: str) -> tuple[Tensor, Tensor]:
    """Return, for every member of the ranges [start, start + count), the number of its range and its position."""
    counts = counts.astype(np.int64)
    ends = np.cumsum(counts)
    ranges = torch.repeat_interleave(torch.from_numpy(counts).to(device), output_size=int(ends[-1]))
    shifts = torch.from_numpy(starts - ends + counts).to(device)
    return ranges, shifts.index_select(0, ranges).add_(torch.arange(len(ranges), device=device))


def _blocks(ends: Ints, size: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of consecutive items of at most ``size`` in all, or of a single larger one; ``ends`` (m + 1,) starts at 0."""
    first = 0
    while first < len(ends) - 1:
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + size, side="right")) - 1)
        yield first, last
        first = last
