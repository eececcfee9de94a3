"""Selection of the reliable images: those close enough to a cluster centre to train on."""

from typing import NamedTuple

import numpy as np

from pul_core.arrays import Features, Ints
from pul_core.clustering.centres import Clusters
from pul_core.clustering.similar import similar_clusters
from pul_core.errors import UserError
from pul_core.settings import Selection


class ReliableSet(NamedTuple):
    """The images to fine-tune on, in ascending order, and their classes."""

    positions: Ints  # (m,) indices of the clustered images
    pseudo_labels: Ints  # (m,) in [0, num_classes)
    similarity: Features  # (m,) the cosine that was compared with lambda; 1 for an image in no cluster
    num_classes: int


class UnreliableError(UserError):
    """The reliable set is too small to train a classifier."""


def select_reliable(clusters: Clusters, settings: Selection) -> ReliableSet:
    """Select the images whose cosine to a centre exceeds lambda, and the centres themselves.

    ``reliable_i = cos(f_i, centre) > min_similarity  or  i is the centre of its cluster``. With ``close_to`` set to ``any_centre``, the
    largest cosine to any centre counts, and the centre of any cluster is reliable.

    Args:
        clusters: of n images.
        settings: lambda (``min_similarity``), and the centre that an image is compared with. With ``keep_unclustered``, each image in no
            cluster is a class of its own, numbered after the others.

    Returns:
        The reliable set.

    Raises:
        UnreliableError: fewer than two clusters have two reliable images.

    Source: Fan et al. 2018, equation 3, lambda = 0.85; Ge et al. 2020 (SpCL) for images in no cluster.

    Example:
        >>> similarity, similarity_any = np.array([[1, 0.9, 1, 0.9, 0.5], [1, 0.9, 1, 0.9, 0.8]], np.float32)
        >>> clusters = Clusters(np.array([0, 0, 1, 1, 1]), np.array([0, 2]), similarity, similarity_any)
        >>> select_reliable(clusters, Selection(min_similarity=0.85)).positions.tolist()
        [0, 1, 2, 3]
    """
    similarity = clusters.similarity if settings.close_to == "own_centre" else clusters.similarity_any
    reliable = similarity > np.float32(settings.min_similarity)
    inside = clusters.cluster[clusters.centre] == np.arange(len(clusters.centre))  # a centre may be a member of another cluster
    reliable[clusters.centre[inside] if settings.close_to == "own_centre" else clusters.centre] = True
    positions = np.flatnonzero(reliable)
    classes = clusters.cluster[positions]
    sizes = np.bincount(classes, minlength=len(clusters.centre))
    num_trainable = np.count_nonzero(sizes >= 2)
    if num_trainable < 2:
        raise UnreliableError(
            f"only {num_trainable} of {len(sizes)} clusters have two reliable images, and training requires two such clusters; "
            + _cause_and_advice(clusters.cluster, settings.min_similarity)
        )
    if not settings.keep_empty_classes:
        _, classes = np.unique(classes, return_inverse=True)
    num_classes = len(sizes) if settings.keep_empty_classes else int(np.count_nonzero(sizes))
    unclustered = np.flatnonzero(clusters.cluster < 0) if settings.keep_unclustered else np.empty(0, np.int64)
    all_positions = np.append(positions, unclustered)
    order = np.argsort(all_positions)
    return ReliableSet(
        all_positions[order],
        np.append(classes, num_classes + np.arange(len(unclustered)))[order].astype(np.int64),
        np.append(similarity[positions], np.ones(len(unclustered), np.float32))[order],
        num_classes + len(unclustered),
    )


def similar_classes(
    reliable: ReliableSet, clusters: Clusters, centres: Features, settings: Selection, *, device: str = "cpu"
) -> Ints | None:
    """Return the pairs of classes whose clusters are similar.

    Args:
        reliable: of the clusters.
        clusters: of n images.
        centres: (k, d) feature of the centre of each cluster, in the space that was clustered.
        settings: of the selection; ``num_similar`` is N of `pul_core.clustering.similar.similar_clusters`, whose smallest cosine is a
            quantile, ``similar_quantile``, of the cosines of images to the centre of their cluster.
        device: where the centres are compared.

    Returns:
        (p, 2) pairs in ascending order, each in both directions, or None if N is 0. A class without an image, or of an image in no
        cluster, is in none.

    Example:
        >>> clusters = Clusters(np.array([0, 0, 1, 1, 2]), np.array([0, 2, 4]), *np.full((2, 5), 0.9, np.float32))
        >>> reliable, centres = select_reliable(clusters, Selection()), np.array([[1, 0], [0, 1], [1, 0.1]], np.float32)
        >>> similar_classes(reliable, clusters, centres, Selection(num_similar=1)).tolist()
        [[0, 2], [2, 0]]
    """
    if not settings.num_similar:
        return None
    is_member = clusters.cluster >= 0
    is_member[clusters.centre] = False  # the cosine of a centre to itself is 1
    min_cosine = float(np.quantile(clusters.similarity[is_member], settings.similar_quantile)) if is_member.any() else 1.0
    cluster = clusters.cluster[reliable.positions]
    in_cluster = cluster >= 0
    numbers, first = np.unique(cluster[in_cluster], return_index=True)
    pairs = similar_clusters(centres[numbers], settings.num_similar, min_cosine, device=device)
    pairs = reliable.pseudo_labels[in_cluster][first][pairs]
    return np.unique(pairs, axis=0)


def _cause_and_advice(cluster: Ints, min_similarity: float) -> str:
    """Return why fewer than two clusters can be trained on, and what to change: each cause has another remedy.

    Args:
        cluster: (n,) cluster of each image; -1 for an image in no cluster, which only DBSCAN leaves.
        min_similarity: lambda.
    """
    sizes = np.bincount(cluster[cluster >= 0])
    num_pairs, largest = np.count_nonzero(sizes >= 2), int(sizes.max(initial=0))
    if num_pairs >= 2 and min_similarity > -1:
        return f"{num_pairs} have two images, but lambda leaves them out: lower min_similarity ({min_similarity:g}) or num_clusters"
    if largest >= 2 and 2 * largest >= len(cluster):
        return (
            f"one cluster has {largest} of the {len(cluster)} images: lower DBSCAN's max_distance, lower its num_neighbours to fewer than "
            "the images of a person, and check that images of one camera have the same camera; with k-means, raise num_clusters"
        )
    return (
        f"{len(cluster) - sizes[sizes >= 2].sum()} of the {len(cluster)} images are alone or in no cluster: raise DBSCAN's max_distance, "
        "lower its margin or min_samples, or give more images; with k-means, lower num_clusters"
    )
