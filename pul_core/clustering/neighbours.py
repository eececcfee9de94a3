"""Exact k-nearest neighbours by cosine, of all images or by camera, in blocks of fixed shape: memory grows with n x k."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pul_core.arrays import Features, Ints, take_rows, unit_rows
from pul_core.identities import separate_unknown_cameras

ROWS, COLUMNS = 2048, 3072  # shape of a block of cosines: 24 MB (the C library returns freed memory of 32 MB or more to the system at once)
GROUPS = 16, 32  # numbers of rows and of columns of which only the largest cosine is compared at first
RESIDENT = 1 << 29  # features with at most so many numbers (2 GB) are normalised once and stay on the device


class Neighbours(NamedTuple):
    """The nearest neighbours of each image, itself first, and the distance to the farthest image."""

    nearest: Ints  # (n, k) indices, padded with -1
    farthest: Features  # (n,) squared Euclidean distance after L2-normalisation, 2 - 2 cosine


def nearest_neighbours(features: Features, k: int, *, device: str = "cpu") -> Neighbours:
    """Find the k nearest neighbours of every image, itself included, without an n x n matrix.

    The image itself comes first. Of images with equal cosines, the one with the smaller index comes first.

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
    """Yield (rows, columns, cosines), with each pair of images in one block; only the square blocks on the diagonal have it in both orders.

    An image's cosine to itself is infinite, so that it comes before its duplicates.
    """
    unit, n = unit_vectors(features, device), len(features)
    for first_row in range(0, n, ROWS):
        rows = slice(first_row, min(first_row + ROWS, n))
        block, first_column = unit(np.arange(rows.start, rows.stop)), first_row
        while first_column < n:
            columns = rows if first_column == first_row else slice(first_column, min(first_column + COLUMNS, n))
            cosines = block @ unit(np.arange(columns.start, columns.stop)).T
            if columns == rows:
                cosines.diagonal().fill_(torch.inf)
            yield rows, columns, cosines
            first_column = columns.stop


def unit_vectors(features: Features, device: str, name: str = "target") -> Callable[[Ints], Tensor]:
    """Return a function that maps ascending positions to unit vectors on the device.

    Features of up to 2 GB are normalised once, in a copy on the device; larger ones are read and normalised in each call.

    Args:
        features: (n, d), may be memory-mapped.
        device: where the vectors are.
        name: what the features are, for the error message.

    Returns:
        The function from (m,) positions to (m, d) vectors, which the caller must not change.

    Raises:
        UserError: a feature is not finite or a zero vector; the function may raise it, too.

    Example:
        >>> unit_vectors(np.array([[3, 4], [0, 2], [-1, 0]], np.float32), "cpu")(np.array([0, 2])).tolist()
        [[0.6000000238418579, 0.800000011920929], [-1.0, 0.0]]
    """
    if features.size > RESIDENT:
        return lambda rows: unit_rows(features, rows, name, device)
    resident = unit_rows(features, np.arange(len(features)), name, device)
    return lambda rows: take_rows(resident, rows)


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
    maxima = torch.unflatten(cosines, dim, (-1, size)).amax(dim + 1).movedim(dim, 1)
    order = torch.arange(maxima.shape[1], device=device)
    best = _indices(_keys(maxima, order).topk(min(nearest.shape[1], len(order)), sorted=False).values)
    members = (best[:, :, None] * size + torch.arange(size, device=device)).flatten(1)
    candidates = _keys(cosines.movedim(dim, 1).gather(1, members), members + first)
    nearest.copy_(torch.cat((nearest, candidates), 1).topk(nearest.shape[1]).values)
