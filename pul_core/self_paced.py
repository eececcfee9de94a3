"""Label-free diagnostics: how much the reliable set and its pseudo-labels change between two iterations.

They show whether a reliable set of stable size also consists of the same images. Nothing in the method reads them.
"""

import numpy as np
from sklearn.metrics import adjusted_rand_score

from pul_core.arrays import Ints


def overlap(before: Ints, after: Ints) -> float:
    """Return the Jaccard index of two sets of images.

    ``|before and after| / |before or after|``: 1 for equal sets, two empty ones included, and 0 for disjoint sets.

    Args:
        before: (n,) rows of the images, without duplicates.
        after: (m,) the same in the next iteration.

    Returns:
        The index, in [0, 1].

    Source: Jaccard 1901; comparing successive reliable sets is ours.

    Example:
        >>> overlap(np.array([1, 2, 3]), np.array([2, 3, 4]))
        0.5
    """
    shared = len(np.intersect1d(before, after, assume_unique=True))
    union = len(before) + len(after) - shared
    return shared / union if union else 1.0


def label_agreement(before: Ints, labels_before: Ints, after: Ints, labels_after: Ints) -> float | None:
    """Return the adjusted Rand index of two labellings, on the images that both of them label.

    1 for the same grouping, 0 for the agreement expected by chance, negative for less. Class numbers need not correspond.

    Args:
        before: (n,) rows of the images, without duplicates.
        labels_before: (n,) their pseudo-labels.
        after: (m,) rows in the next iteration.
        labels_after: (m,) their pseudo-labels.

    Returns:
        The index, or None if fewer than two images are in both sets, because it is undefined then.

    Source: Hubert and Arabie 1985; computed by scikit-learn.

    Example:
        >>> label_agreement(np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1]), np.array([2, 1, 4, 3]), np.array([7, 7, 5, 5]))
        1.0
    """
    shared, before_idx, after_idx = np.intersect1d(before, after, assume_unique=True, return_indices=True)
    if len(shared) < 2:
        return None
    return float(adjusted_rand_score(labels_before[before_idx], labels_after[after_idx]))
