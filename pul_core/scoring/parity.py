"""Parity of an exported model: how far its features differ from those of the model it was made from, and which differences are accepted."""

from typing import NamedTuple

import numpy as np

from pul_core.arrays import Features, Ints
from pul_core.identities import DISTRACTOR_PID, JUNK_PID


class Difference(NamedTuple):
    """How far features differ from their reference; ``lowest_cosine`` is for reports, the other two have bounds."""

    feature: float  # largest difference of a number, as a share of the largest number of the reference
    cosine: float  # largest difference of the cosine of two images
    lowest_cosine: float  # between the features of an image and its reference


class Bounds(NamedTuple):
    """The largest accepted differences: `EXACT` for float32 in another runtime, `INT8` and `INT8_WHITENED` for quantised models.

    Example:
        >>> EXACT, INT8
        (Bounds(feature=0.001, cosine=0.0001, rank_1=0.002), Bounds(feature=0.5, cosine=0.25, rank_1=0.02))
    """

    feature: float  # as in `Difference`
    cosine: float  # as in `Difference`
    rank_1: float  # loss of rank-1, as a fraction


EXACT = Bounds(feature=1e-3, cosine=1e-4, rank_1=0.002)  # float32 in another runtime: only the order of additions differs
INT8 = Bounds(feature=0.5, cosine=0.25, rank_1=0.02)  # 256 levels for each number between layers
INT8_WHITENED = Bounds(feature=1.1, cosine=0.5, rank_1=0.02)  # without what all images share, the same errors are larger (docs/log.md)


def compare_features(reference: Features, features: Features) -> Difference:
    """Compare the features of the same images.

    Args:
        reference: (n, d) features of the model.
        features: (n, d) features of the exported model, in the same order.

    Returns:
        The largest differences. They are infinite if a number is NaN or infinite.

    Example:
        >>> reference = np.array([[3, 4], [4, 3]], np.float32)
        >>> compare_features(reference, reference)
        Difference(feature=0.0, cosine=0.0, lowest_cosine=1.0)
        >>> difference = compare_features(reference, np.array([[3, 4], [4, 2]], np.float32))
        >>> [round(value, 4) for value in difference]
        [0.25, 0.0656, 0.9839]
    """
    if not np.isfinite(features).all():
        return Difference(np.inf, np.inf, -1.0)
    units, reference_units = (_unit(values) for values in (features, reference))
    return Difference(
        feature=float(np.abs(features - reference).max() / np.abs(reference).max()),
        cosine=float(np.abs(units @ units.T - reference_units @ reference_units.T).max()),
        lowest_cosine=min(1.0, round(float((units * reference_units).sum(1).min()), 12)),
    )


def exceeded(difference: Difference, rank_1_loss: float | None, bounds: Bounds) -> list[str]:
    """Return each difference that exceeds its bound, in words.

    Args:
        difference: see `compare_features`.
        rank_1_loss: rank-1 of the model less that of the exported one, as a fraction; None without labels.
        bounds: the accepted differences.

    Example:
        >>> exceeded(Difference(0.01, 1e-5, 0.9999), 0.0, EXACT)
        ['a feature differs by 0.01 of the largest one (bound 0.001)']
    """
    problems = []
    if difference.feature > bounds.feature:
        problems.append(f"a feature differs by {difference.feature:.2g} of the largest one (bound {bounds.feature:g})")
    if difference.cosine > bounds.cosine:
        problems.append(f"a cosine differs by {difference.cosine:.2g} (bound {bounds.cosine:g})")
    if rank_1_loss is not None and rank_1_loss > bounds.rank_1:
        problems.append(f"rank-1 is lower by {100 * rank_1_loss:.1f} points (bound {100 * bounds.rank_1:g})")
    return problems


def draw_people(query_pids: Ints, gallery_pids: Ints, limit: int, *, seed: int) -> tuple[Ints, Ints]:
    """Draw queries and a gallery of whole people, so that every query that has a correct match keeps it.

    People are added in random order as long as all images together are at most ``limit``; the gallery has no distractors and no junk.

    Args:
        query_pids: (q,) identity of each query.
        gallery_pids: (g,) identity of each gallery image.
        limit: of the number of images.
        seed: of the order of the people.

    Returns:
        Positions in ``query_pids`` and in ``gallery_pids``, ascending. At least one person is drawn if there is one in both.

    Example:
        >>> draw_people(np.array([1, 2, 3]), np.array([1, 1, 2, 2, 0, -1]), 3, seed=0)
        (array([0]), array([0, 1]))
    """
    people, sizes = np.unique(np.concatenate([query_pids, gallery_pids]), return_counts=True)
    is_person = ~np.isin(people, (DISTRACTOR_PID, JUNK_PID)) & np.isin(people, query_pids) & np.isin(people, gallery_pids)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(is_person))
    drawn = people[order[: max(1, int((np.cumsum(sizes[order]) <= limit).sum()))]]
    return np.flatnonzero(np.isin(query_pids, drawn)), np.flatnonzero(np.isin(gallery_pids, drawn))


def _unit(features: Features) -> np.ndarray:
    values = features.astype(np.float64)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))
