"""Sizes of clusters, in classes that double, and the choice of clusters and images to look at."""

from typing import NamedTuple

import numpy as np

from pul_core.arrays import Ints, Mask


class SizeClass(NamedTuple):
    """The clusters whose number of images is in a range."""

    label: str  # e.g. "5-8"
    clusters: int
    reliable: int  # images in these clusters that were selected
    rejected: int  # images in these clusters that were not


def size_classes(clusters: Ints, reliable: Mask) -> list[SizeClass]:
    """Count clusters and their images by size: 1, 2, 3-4, 5-8, 9-16 images and so on.

    Args:
        clusters: (n,) cluster of each image; -1 for an image in no cluster, which is left out.
        reliable: (n,) whether an image was selected.

    Example:
        >>> size_classes(np.array([0, 0, 0, 1, -1]), np.array([True, True, False, True, False]))
        [SizeClass(label='1', clusters=1, reliable=1, rejected=0), SizeClass(label='3-4', clusters=1, reliable=2, rejected=1)]
    """
    used = clusters >= 0
    sizes = np.bincount(clusters[used])
    num_reliable = np.bincount(clusters[used & reliable], minlength=len(sizes))
    exponent = np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64)
    classes = []
    for power in np.unique(exponent[sizes > 0]):
        chosen = (exponent == power) & (sizes > 0)
        low, high = 2 ** int(power) // 2 + 1, 2 ** int(power)
        kept, total = int(num_reliable[chosen].sum()), int(sizes[chosen].sum())
        classes.append(SizeClass(f"{low}-{high}" if high > max(low, 2) else str(high), int(chosen.sum()), kept, total - kept))
    return classes


def choose_clusters(clusters: Ints, count: int) -> Ints:
    """Return clusters of two or more images, spread evenly from the largest to the smallest.

    Args:
        clusters: (n,) cluster of each image; -1 for an image in no cluster.
        count: number of clusters.

    Example:
        >>> choose_clusters(np.array([0, 0, 1, 1, 1, 2, 3, 3, 3, 3]), 2).tolist()
        [3, 0]
    """
    sizes = np.bincount(clusters[clusters >= 0])
    by_size = np.argsort(-sizes, kind="stable")
    by_size = by_size[sizes[by_size] >= 2]
    return choose_evenly(by_size, count)


def choose_evenly(items: Ints, count: int) -> Ints:
    """Return at most ``count`` items, spread evenly from the first to the last.

    Args:
        items: (n,) in any order.
        count: number of items.

    Example:
        >>> choose_evenly(np.arange(10, 19), 3).tolist(), choose_evenly(np.arange(2), 3).tolist()
        ([10, 14, 18], [0, 1])
    """
    return items[np.unique(np.linspace(0, len(items) - 1, count).round().astype(np.int64))] if len(items) else items
