"""The gain of a run over direct transfer, with a confidence interval over the people of the test set."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from pul_core.arrays import Floats, Ints

CONFIDENCE = 0.95


class Gain(NamedTuple):
    """A mean difference over queries, as a fraction, with its 95 % confidence interval."""

    difference: float
    low: float
    high: float
    num_queries: int
    num_people: int


def paired_gain(before: Floats, after: Floats, pids: Ints) -> Gain | None:
    """Compare two models query by query.

    Queries of one person are not independent, so the standard error is that of sums over people (cluster-robust), with Student's t. It
    describes which people were tested, not what another seed would give.

    Args:
        before: (q,) e.g. the average precision of each query with the first model; NaN is left out.
        after: (q,) with the second model.
        pids: (q,) identities of the queries.

    Returns:
        The gain, or None if fewer than two people have a scored query.

    Source: Cameron and Miller 2015, section II.

    Example:
        >>> gain = paired_gain(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.4, 0.6, 0.6]), np.array([1, 1, 2, 2]))
        >>> round(gain.difference, 2), gain.num_people, gain.low < 0 < gain.high
        (0.2, 2, True)
    """
    scored = np.isfinite(before) & np.isfinite(after)
    differences = (after - before)[scored]
    people, person = np.unique(pids[scored], return_inverse=True)
    if len(people) < 2:
        return None
    mean = float(differences.mean())
    sums = np.bincount(person, differences - mean)
    groups = len(people)
    error = np.sqrt((sums**2).sum() * groups / (groups - 1)) / len(differences)
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, groups - 1) * error)
    return Gain(mean, mean - margin, mean + margin, len(differences), groups)
