"""Semi-supervised PUL: each labelled identity of the target is a class of its own, and all other images are clustered."""

from typing import NamedTuple

import numpy as np

from pul_core.arrays import Ints, Mask
from pul_core.errors import UserError


class TrainingSet(NamedTuple):
    """The images to fine-tune on, by ascending row, and their classes."""

    rows: Ints  # (m,)
    classes: Ints  # (m,) in [0, num_classes)
    labelled: Mask  # (m,) whether the class is a labelled identity
    num_classes: int


def first_identities(pids: Ints, *, count: int | None = None, share: float | None = None) -> Ints:
    """Choose the identities that are labelled: the first ones in ascending order, as in the authors' code, which labels 25 or 50.

    Args:
        pids: (n,) identities of the target's training images; 0 and below are not identities.
        count: number of identities to label.
        share: fraction of the identities to label, in (0, 1], used if ``count`` is None; rounded, at least one identity.

    Returns:
        (l,) labelled identities, ascending.

    Raises:
        UserError: there are fewer identities than ``count``.

    Source: Fan et al. 2018, the semi-supervised setting.

    Example:
        >>> first_identities(np.array([7, 3, 3, 9, -1]), count=2).tolist(), first_identities(np.array([7, 3, 3, 9]), share=0.3).tolist()
        ([3, 7], [3])
    """
    identities = np.unique(pids[pids > 0])
    num_labelled = count if count is not None else max(1, round((share or 0) * len(identities)))
    if num_labelled > len(identities):
        raise UserError(
            f"few_labels requires {num_labelled} identities, but the target's training images have only {len(identities)}: label fewer"
        )
    return identities[:num_labelled]


def num_unlabelled_clusters(num_clusters: int, num_labelled: int) -> int:
    """Return the number of clusters of the unlabelled images: the expected identities minus the labelled ones.

    Args:
        num_clusters: K, the expected number of identities, including the labelled ones.
        num_labelled: number of labelled identities.

    Returns:
        The number of clusters, at least 1.

    Raises:
        UserError: no cluster would be left.

    Source: the authors' code, which clusters into K minus the labelled identities.

    Example:
        >>> num_unlabelled_clusters(750, 25)
        725
    """
    if num_clusters <= num_labelled:
        raise UserError(
            f"num_clusters includes the {num_labelled} labelled identities and must be larger than their number, got {num_clusters}"
        )
    return num_clusters - num_labelled


def join_labelled(
    rows: Ints, pseudo_labels: Ints, num_classes: int, labelled_rows: Ints, labelled_classes: Ints, num_labelled: int
) -> TrainingSet:
    """Combine the labelled and the reliable images in one training set: the labelled identities are the first classes.

    Args:
        rows: (r,) rows of the reliable images.
        pseudo_labels: (r,) their classes in [0, num_classes).
        num_classes: number of pseudo-labels.
        labelled_rows: (l,) rows of the labelled images, none of them among ``rows``.
        labelled_classes: (l,) their classes in [0, num_labelled).
        num_labelled: number of labelled identities.

    Returns:
        The training set of m = r + l images.

    Source: Fan et al. 2018, the semi-supervised setting.

    Example:
        >>> joined = join_labelled(np.array([0, 3]), np.array([0, 1]), 2, np.array([1]), np.array([0]), 1)
        >>> joined.rows.tolist(), joined.classes.tolist(), joined.num_classes
        ([0, 1, 3], [1, 0, 2], 3)
    """
    all_rows = np.concatenate((rows, labelled_rows))
    classes = np.concatenate((pseudo_labels + num_labelled, labelled_classes))
    labelled = np.arange(len(all_rows)) >= len(rows)
    order = np.argsort(all_rows, kind="stable")
    return TrainingSet(all_rows[order], classes[order], labelled[order], num_classes + num_labelled)
