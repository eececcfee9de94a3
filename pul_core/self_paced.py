"""Diagnostics of self-paced learning without labels: how much of the reliable set, and of what it is called, outlives an iteration.

They tell a set that has settled from one whose size alone has. They steer nothing.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import adjusted_rand_score

Rows = npt.NDArray[np.integer[Any]]


def overlap(before: Rows, after: Rows) -> float:
    """Return the Jaccard index of two sets of images.

    ``|before and after| / |before or after|``: 1 is the same set, 0 shares nothing. Two empty sets are the same.

    Args:
        before: (n,) row of each image, no row twice.
        after: (m,) the same of the next iteration.

    Source: Jaccard 1901; its use on successive reliable sets is ours.

    Example:
        >>> overlap(np.array([1, 2, 3]), np.array([2, 3, 4]))
        0.5
    """
    shared = len(np.intersect1d(before, after, assume_unique=True))
    union = len(before) + len(after) - shared
    return shared / union if union else 1.0


def label_agreement(before: Rows, labels_before: Rows, after: Rows, labels_after: Rows) -> float | None:
    """Return the adjusted Rand index of two labellings on the images that both of them label.

    1 puts the same images together, 0 is what chance does, negative is less. Numbers of classes need not correspond.

    Args:
        before: (n,) row of each image, no row twice.
        labels_before: (n,) its pseudo-label.
        after: (m,) the same of the next iteration.
        labels_after: (m,) its pseudo-label there.

    Returns:
        The index; None if fewer than two images are shared, where nothing can be put together.

    Source: Hubert and Arabie 1985, by scikit-learn.

    Example:
        >>> label_agreement(np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1]), np.array([2, 1, 4, 3]), np.array([7, 7, 5, 5]))
        1.0
    """
    shared, at_before, at_after = np.intersect1d(before, after, assume_unique=True, return_indices=True)
    if len(shared) < 2:
        return None
    return float(adjusted_rand_score(labels_before[at_before], labels_after[at_after]))
