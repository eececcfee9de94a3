"""A few labels on the target: some people are known, and stay in training under their own classes while all other images are clustered."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pul_core.errors import UserError


class TrainingSet(NamedTuple):
    """Images to fine-tune on, by ascending row, and the class of each."""

    rows: npt.NDArray[np.int64]  # (m,)
    classes: npt.NDArray[np.int64]  # (m,) in [0, num_classes)
    labelled: npt.NDArray[np.bool_]  # (m,) whether the class is a true identity
    num_classes: int


def first_identities(pids: npt.NDArray[np.int64], *, count: int | None = None, share: float | None = None) -> npt.NDArray[np.int64]:
    """Choose whose labels may be used: the first identities in ascending order, as the authors label the first 25 or 50.

    Args:
        pids: (n,) identities of the target's training images; 0 and below are nobody.
        count: how many identities.
        share: or which share of them, in (0, 1]; rounded, at least one.

    Returns:
        (l,) identities, ascending.

    Raises:
        UserError: there are fewer identities than ``count``.

    Source: Fan et al. 2018, the semi-supervised setting.

    Example:
        >>> first_identities(np.array([7, 3, 3, 9, -1]), count=2).tolist(), first_identities(np.array([7, 3, 3, 9]), share=0.3).tolist()
        ([3, 7], [3])
    """
    known = np.unique(pids[pids > 0])
    wanted = count if count is not None else max(1, round((share or 0) * len(known)))
    if wanted > len(known):
        raise UserError(f"{wanted} labelled identities are asked for, but the target's training images show only {len(known)}")
    return known[:wanted]


def num_unlabelled_clusters(num_clusters: int, num_labelled: int) -> int:
    """Return how many clusters the unlabelled images get when ``num_clusters`` people are expected in all.

    Raises:
        UserError: none would be left.

    Source: the authors' code clusters into K minus the labelled identities.

    Example:
        >>> num_unlabelled_clusters(750, 25)
        725
    """
    if num_clusters <= num_labelled:
        raise UserError(f"num_clusters ({num_clusters}) counts the {num_labelled} labelled identities too and must be larger")
    return num_clusters - num_labelled


def join_labelled(
    rows: npt.NDArray[np.int64],
    pseudo_labels: npt.NDArray[np.int64],
    num_classes: int,
    labelled_rows: npt.NDArray[np.int64],
    labelled_classes: npt.NDArray[np.int64],
    num_labelled: int,
) -> TrainingSet:
    """Put the labelled images beside the reliable ones under one softmax: labelled identities first, clusters after them.

    Args:
        rows: (m,) rows of the reliable images.
        pseudo_labels: (m,) their classes in [0, num_classes).
        num_classes: number of pseudo-labels.
        labelled_rows: (l,) rows of the labelled images, none of them among ``rows``.
        labelled_classes: (l,) their classes in [0, num_labelled).
        num_labelled: number of labelled identities.

    Returns:
        The training set.

    Source: Fan et al. 2018, the semi-supervised setting.

    Example:
        >>> joined = join_labelled(np.array([0, 3]), np.array([0, 1]), 2, np.array([1]), np.array([0]), 1)
        >>> joined.rows.tolist(), joined.classes.tolist(), joined.num_classes
        ([0, 1, 3], [1, 0, 2], 3)
    """
    together = np.concatenate((rows, labelled_rows))
    classes = np.concatenate((pseudo_labels + num_labelled, labelled_classes))
    labelled = np.arange(len(together)) >= len(rows)
    order = np.argsort(together, kind="stable")
    return TrainingSet(together[order], classes[order], labelled[order], num_classes + num_labelled)
