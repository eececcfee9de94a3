"""Which images of the clusters are reliable enough to learn from."""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pul_core.clustering.kmeans import Clustering
from pul_core.errors import UserError

CloseTo = Literal["own_centre", "any_centre"]


class ReliableSet(NamedTuple):
    """The images to fine-tune on, ascending, and the class each of them stands for."""

    positions: npt.NDArray[np.int64]  # (m,) into the clustered images
    pseudo_labels: npt.NDArray[np.int64]  # (m,) in [0, num_classes)
    similarity: npt.NDArray[np.float32]  # (m,) the cosine that was judged; 1 for an image of no cluster
    num_classes: int


class UnreliableError(ValueError):
    """The reliable set cannot train a classifier."""


def select_reliable(
    clustering: Clustering, *, min_similarity: float, close_to: CloseTo, keep_empty_classes: bool, keep_unclustered: bool = False
) -> ReliableSet:
    """Keep the images whose cosine to a centre exceeds lambda, and every centre whatever float says.

    ``reliable_i = cos(f_i, centre) > min_similarity  or  i is its cluster's centre``

    Args:
        clustering: of n images into k clusters.
        min_similarity: lambda, a cosine in [-1, 1].
        close_to: the centre of the image's ``own_centre`` cluster (paper), or ``any_centre`` (authors' code).
        keep_empty_classes: number classes like clusters even if some stay without an image (authors' code), instead of closing the gaps.
        keep_unclustered: images of no cluster are kept, too, each as a class of its own, numbered behind the others; their cosine is 1.

    Returns:
        The reliable set.

    Raises:
        UserError: lambda outside [-1, 1].
        UnreliableError: fewer than two clusters have two reliable images.

    Source: Fan et al. 2018, equation 3, lambda = 0.85; Ge et al. 2020 (SpCL) for images of no cluster.

    Example:
        >>> own, largest = np.array([[1, 0.9, 1, 0.9, 0.5], [1, 0.9, 1, 0.9, 0.8]], np.float32)
        >>> clustering = Clustering(np.array([0, 0, 1, 1, 1]), np.array([0, 2]), own, largest, 0.0, 1)
        >>> select_reliable(clustering, min_similarity=0.85, close_to="own_centre", keep_empty_classes=False).positions.tolist()
        [0, 1, 2, 3]
    """
    if not -1 <= min_similarity <= 1:
        raise UserError(f"min_similarity is a cosine and must be in [-1, 1], not {min_similarity}")
    similarity = clustering.similarity if close_to == "own_centre" else clustering.similarity_any
    reliable = similarity > np.float32(min_similarity)
    own_centres = clustering.centre[clustering.cluster[clustering.centre] == np.arange(len(clustering.centre))]
    reliable[own_centres if close_to == "own_centre" else clustering.centre] = True
    positions = np.flatnonzero(reliable)
    clusters = clustering.cluster[positions]
    sizes = np.bincount(clusters, minlength=len(clustering.centre))
    if np.count_nonzero(sizes >= 2) < 2:
        raise UnreliableError(
            f"only {np.count_nonzero(sizes >= 2)} of {len(sizes)} clusters have two reliable images (two clusters are needed): "
            f"lower min_similarity ({min_similarity:g}) or num_clusters, or raise DBSCAN's max_distance, or lower its margin"
        )
    classes, num_classes = clusters, len(sizes)
    if not keep_empty_classes:
        present, classes = np.unique(clusters, return_inverse=True)
        num_classes = len(present)
    alone = np.flatnonzero(clustering.cluster < 0) if keep_unclustered else np.empty(0, np.int64)
    everything = np.append(positions, alone)
    order = np.argsort(everything)
    return ReliableSet(
        everything[order],
        np.append(classes, num_classes + np.arange(len(alone)))[order].astype(np.int64),
        np.append(similarity[positions], np.ones(len(alone), np.float32))[order],
        num_classes + len(alone),
    )
