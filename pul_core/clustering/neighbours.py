"""Exact k-nearest neighbours and the k-reciprocal Jaccard distance, for clustering and for re-ranking.

Everything is computed in blocks of fixed shape and stored as sparse rows: memory grows with n x k. Cosines and sums are computed on the
device. The sparse products stay in SciPy on the CPU: they are linear in n, and the size of a result is not known before it is computed.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import pad

from pul_core.arrays import Features, Ints, unit_rows
from pul_core.identities import separate_unknown_cameras

ROWS, COLUMNS = 2048, 3072  # shape of a block of cosines: 24 MB (the C library returns freed memory of 32 MB or more to the system at once)
GROUPS = 16, 32  # numbers of rows and of columns of which only the largest cosine is compared at first
RESIDENT = 1 << 29  # features with at most so many numbers (2 GB) are normalised once and stay on the device
PAIRS = 1 << 15  # pairs of images per block of their cosines
CELLS, OVERLAPS = 1 << 24, 1 << 20  # sums of minima per block, and minima that are added at once
ONE = 1 << 30  # a weight of 1 as an integer: sums of integers have the same bits in every order and on every device


class Neighbours(NamedTuple):
    """The nearest neighbours of each image, itself first, and the distance to the farthest image."""

    nearest: Ints  # (n, k) indices, padded with -1
    farthest: Features  # (n,) squared Euclidean distance after L2-normalisation, 2 - 2 cosine


def nearest_neighbours(features: Features, k: int, *, device: str = "cpu") -> Neighbours:
    """Find the k nearest neighbours of every image, itself included, without an n x n matrix.

    Of images that are equally near, the one with the smaller index comes first, after the image itself.

    Args:
        features: (n, d), may be memory-mapped.
        k: number of neighbours; at most n are returned.
        device: where the cosines are computed.

    Returns:
        Neighbours with min(k, n) columns.

    Raises:
        UserError: a feature is not finite or a zero vector.

    Example:
        >>> neighbours = nearest_neighbours(np.array([[1, 0], [0, 1], [1, 0.1]], np.float32), 2)
        >>> neighbours.nearest.tolist(), neighbours.farthest[:2].tolist()
        ([[0, 2], [1, 2], [2, 0]], [2.0, 2.0])
    """
    n = len(features)
    nearest, smallest = _no_neighbours(n, k, device), torch.full((n,), torch.inf, device=device)
    for rows, columns, cosines in _cosine_blocks(features, device):
        _keep_nearest(nearest, cosines, rows, columns)
        smallest[rows] = torch.minimum(smallest[rows], cosines.amin(1))
        smallest[columns] = torch.minimum(smallest[columns], cosines.amin(0))
    return Neighbours(_found(nearest), (2 - 2 * smallest).clamp_(min=0).cpu().numpy())


def neighbours_by_camera(features: Features, camids: Ints, num_same: int, num_others: int, *, device: str = "cpu") -> tuple[Ints, Ints]:
    """Find the nearest neighbours of every image on its own camera and, separately, on all other cameras, in one pass over the cosines.

    Args:
        features: (n, d), may be memory-mapped.
        camids: (n,) camera of each image. An unknown camera (-1) differs from every camera, so that an image from one is alone on it.
        num_same: number of neighbours on the same camera, the image itself included, which is first.
        num_others: number of neighbours on other cameras.
        device: where the cosines are computed.

    Returns:
        (n, min(num_same, n)) and (n, min(num_others, n)) indices, nearest first as in ``nearest_neighbours``, padded with -1.

    Raises:
        UserError: a feature is not finite or a zero vector.

    Example:
        >>> features = np.array([[1, 0], [0, 1], [1, 0.1]], np.float32)
        >>> same, others = neighbours_by_camera(features, np.array([1, 1, 2]), 2, 2)
        >>> same.tolist(), others.tolist()
        ([[0, 1], [1, 0], [2, -1]], [[2, -1], [2, -1], [0, 1]])
    """
    n = len(features)
    camera = torch.from_numpy(np.unique(separate_unknown_cameras(camids), return_inverse=True)[1].astype(np.int32)).to(device)
    same, others = _no_neighbours(n, num_same, device), _no_neighbours(n, num_others, device)
    for rows, columns, cosines in _cosine_blocks(features, device):
        on_same_camera = camera[rows, None] == camera[columns]
        _keep_nearest(same, torch.where(on_same_camera, cosines, -torch.inf), rows, columns)
        _keep_nearest(others, cosines.masked_fill_(on_same_camera, -torch.inf), rows, columns)
    return _found(same), _found(others)


def _cosine_blocks(features: Features, device: str) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (rows, columns, cosines) of every pair of images once, the first index being the smaller one; an image's own cosine is infinite.

    A block on the diagonal is square and holds its pairs in both orders.
    """
    unit, n = unit_vectors(features, device), len(features)
    for first_row in range(0, n, ROWS):
        rows = slice(first_row, min(first_row + ROWS, n))
        block, first_column = unit(np.arange(n)[rows]), first_row
        while first_column < n:
            columns = rows if first_column == first_row else slice(first_column, min(first_column + COLUMNS, n))
            cosines = block @ unit(np.arange(n)[columns]).T
            if columns == rows:
                cosines.diagonal().fill_(torch.inf)
            yield rows, columns, cosines
            first_column = columns.stop


def unit_vectors(features: Features, device: str) -> Callable[[Ints], Tensor]:
    """Return a function that maps ascending positions to unit vectors on the device.

    Features of up to 2 GB are normalised once, in a copy on the device; larger ones are read and normalised in each call.
    """
    if features.size > RESIDENT:
        return lambda rows: unit_rows(features, rows, "target", device)
    resident = unit_rows(features, np.arange(len(features)), "target", device)

    def select(rows: Ints) -> Tensor:
        if rows[-1] - rows[0] == len(rows) - 1:
            return resident[rows[0] : rows[-1] + 1]
        return resident[torch.from_numpy(rows).to(device)]

    return select


def _no_neighbours(n: int, k: int, device: str) -> Tensor:
    """Return the (n, min(k, n)) keys of neighbours before any is found. A larger key is nearer: cosine first, then the smaller index."""
    return torch.full((n, min(k, n)), torch.iinfo(torch.int64).min, device=device)


def _keys(cosines: Tensor, indices: Tensor) -> Tensor:
    """Return int64 keys in whose order the larger cosine comes first and, of equal ones, the smaller index."""
    bits = (cosines + 0.0).view(torch.int32)  # adding zero turns -0 into 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers, floats below 0 are in the wrong order
    return (ordered.to(torch.int64) << 32) - indices


def _indices(keys: Tensor) -> Tensor:
    return -keys & 0xFFFFFFFF


def _found(keys: Tensor) -> Ints:
    """Return the indices of the neighbours, and -1 where the cosine is minus infinity."""
    nothing = _keys(torch.tensor(-torch.inf, device=keys.device), torch.zeros((), dtype=torch.int64, device=keys.device))
    return torch.where(keys > nothing, _indices(keys), -1).cpu().numpy()


def _keep_nearest(nearest: Tensor, cosines: Tensor, rows: slice, columns: slice) -> None:
    """Merge a block of cosines into the keys of the nearest neighbours: of the rows among the columns, and the other way around."""
    _merge(nearest[rows], cosines, columns.start, 1)
    if columns != rows:
        _merge(nearest[columns], cosines, rows.start, 0)


def _merge(nearest: Tensor, cosines: Tensor, first: int, dim: int) -> None:
    """Merge the cosines along one dimension of a block, of the images from ``first`` on, into the keys (m, k) of the nearest neighbours.

    The k nearest are in the k groups with the largest maxima (of equal ones, the first groups): only these are sorted.
    """
    size, device = GROUPS[dim], cosines.device
    if excess := cosines.shape[dim] % size:
        padding = (0, size - excess) if dim else (0, 0, 0, size - excess)
        cosines = pad(cosines, padding, value=-torch.inf)
    maxima = cosines.unflatten(dim, (-1, size)).amax(dim + 1).movedim(dim, 1)
    order = torch.arange(maxima.shape[1], device=device)
    best = _indices(_keys(maxima, order).topk(min(nearest.shape[1], len(order)), sorted=False).values)
    members = (best[:, :, None] * size + torch.arange(size, device=device)).flatten(1)
    candidates = _keys(cosines.movedim(dim, 1).gather(1, members), members + first)
    nearest.copy_(torch.cat((nearest, candidates), 1).topk(nearest.shape[1]).values)


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
    first = 0
    while first < len(features):
        last = max(first + 1, int(np.searchsorted(pairs.indptr, pairs.indptr[first] + PAIRS, side="right")) - 1)
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
                check_invariants=False,
            )
        cosines = torch.sparse.sampled_addmm(pattern, unit(np.arange(first, last)), unit(columns).T, beta=0).values()
        distance[part] = (2 - 2 * cosines).clamp_(min=0).cpu().numpy()
        first = last
    distance[row == pairs.indices] = 0
    return distance


def jaccard_distances(
    encoding: sparse.csr_matrix, rows: Ints, *, to: Ints | None = None, max_distance: float = 1, device: str = "cpu"
) -> Iterator[sparse.csr_matrix]:
    """Yield the Jaccard distances of the images at ``rows`` to all images, a few rows at a time.

    ``1 - s / (2 - s)``, with s the sum over all columns of the smaller of the two weights, in units of 2^-30. A distance that is not stored
    is above the limit or 1, and a stored one may be 0: read ``indices`` and ``data``, not a dense copy. The distance from one image to
    another is exactly that from the other to it.

    Args:
        encoding: (n, n) from ``reciprocal_encoding``.
        rows: (m,) indices of images, in the order in which they are yielded.
        to: (t,) indices of the images to measure the distances to, which are the columns that are yielded; None for all images.
        max_distance: the limit; larger distances are not stored.
        device: where the sums are computed.

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
    target_rows, target_weights = torch.from_numpy(targets.indices).to(device), _whole_weights(targets.data, device)
    t = targets.shape[0]
    for first in range(0, len(rows), rows_per_block := max(64, CELLS // max(t, 1))):
        block = encoding[rows[first : first + rows_per_block]]
        sums = torch.zeros(block.shape[0] * t, dtype=torch.int32, device=device)
        counts = np.diff(targets.indptr)[block.indices]  # number of target images with an entry in the column of each entry of the block
        ends = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        shifts = torch.from_numpy(targets.indptr[block.indices] - ends[:-1]).to(device)
        cells = torch.from_numpy(np.repeat(np.arange(block.shape[0]) * t, np.diff(block.indptr))).to(device)
        counts, weights = torch.from_numpy(counts).to(device), _whole_weights(block.data, device)
        start = 0
        while start < len(weights):
            stop = max(start + 1, int(np.searchsorted(ends, ends[start] + OVERLAPS, side="right")) - 1)
            size = int(ends[stop] - ends[start])
            entry = torch.repeat_interleave(torch.arange(start, stop, device=device), counts[start:stop], output_size=size)
            target = shifts[entry] + torch.arange(ends[start], ends[stop], device=device)
            sums.scatter_add_(0, cells[entry] + target_rows[target], torch.minimum(weights[entry], target_weights[target]))
            start = stop
        yield _distances_of_sums(sums, block.shape[0], t, max_distance)


def _whole_weights(weights: Features, device: str) -> Tensor:
    return torch.from_numpy(weights).to(device).mul(ONE).round_().to(torch.int32)


def _distances_of_sums(sums: Tensor, m: int, t: int, max_distance: float) -> sparse.csr_matrix:
    """Return the (m, t) distances up to a limit, from the sums of all pairs."""
    cell = sums.nonzero().squeeze(1)
    shared = sums[cell].to(torch.float32) / ONE
    distance = (1 - shared / (2 - shared)).clamp_(min=0)
    near = distance <= max_distance
    cell_, data = cell[near].cpu().numpy(), distance[near].cpu().numpy()
    return sparse.csr_matrix((data, cell_ % t, np.searchsorted(cell_, np.arange(m + 1) * t)), shape=(m, t))
