"""The stopping rule: the loop ends when the size of the reliable set is stable. The rule ignores labels and scores."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pul_core.settings import Stopping

Degenerate = Literal["stable_only_centres", "stable_everything"]
Reason = Literal["stable", Degenerate, "oscillating", "limit"]

EXPLANATIONS: dict[Reason, str] = {
    "stable": "the reliable set's size no longer changes",
    "stable_only_centres": "degenerate: few images are reliable other than the cluster centres; lower min_similarity or num_clusters",
    "stable_everything": "degenerate: nearly every image is reliable, so nothing is selected; raise min_similarity",
    "oscillating": "the reliable set's size oscillates and did not become stable within max_iterations",
    "limit": "max_iterations was reached before the reliable set's size was stable",
}


def reason_to_stop(
    sizes: Sequence[int], settings: Stopping, *, num_clusters: int, num_images: int, by_density: bool = False
) -> Reason | None:
    """Decide, once an iteration has selected its reliable set, whether that iteration is the last one.

    The size is stable if ``|n_t - n_(t-1)| / max(n_(t-1), 1) <= stability_tolerance``, ``stability_patience`` times in a row. A stable set
    within 5 % of the number of clusters, or of the number of images, is reported as degenerate (see `degeneration`). At the limit, three
    successive changes that exceed the tolerance and alternate in sign are reported as oscillating.

    Args:
        sizes: n_1 ... n_t, the size of the reliable set in each iteration so far.
        settings: tolerance, patience and limit.
        num_clusters: number of clusters in the last iteration.
        num_images: number of images that were clustered.
        by_density: as for `degeneration`.

    Returns:
        The reason to stop, or None to continue.

    Source: Fan et al. 2018, algorithm 1 ("until the scale of the reliable training set becomes stable"); the thresholds are ours.

    Example:
        >>> rule = Stopping(max_iterations=9, stability_tolerance=0.02, stability_patience=1)
        >>> [reason_to_stop(sizes, rule, num_clusters=100, num_images=2000) for sizes in ([900], [900, 700], [900, 700, 705])]
        [None, None, 'stable']
    """
    changes = [(after - before) / max(before, 1) for before, after in pairwise(sizes)]
    small = [abs(change) <= settings.stability_tolerance for change in changes]
    patience = settings.stability_patience
    if settings.stop_when_stable and len(small) >= patience and all(small[-patience:]):
        return degeneration(sizes[-1], num_clusters=num_clusters, num_images=num_images, by_density=by_density) or "stable"
    if len(sizes) < settings.max_iterations:
        return None
    last = changes[-3:]
    swings = len(last) == 3 and not any(small[-3:]) and last[0] * last[1] < 0 and last[1] * last[2] < 0
    return "oscillating" if swings else "limit"


def degeneration(size: int, *, num_clusters: int, num_images: int, by_density: bool = False) -> Degenerate | None:
    """Return how a reliable set of this size is degenerate: within 5 % of the number of clusters, or of the number of images; else None.

    Args:
        size: of the reliable set.
        num_clusters: number of clusters.
        num_images: number of images that were clustered.
        by_density: whether they were clustered by DBSCAN. It rejects images before any are selected, so nearly all of them are normal.

    Example:
        >>> [degeneration(size, num_clusters=100, num_images=2000) for size in (103, 900, 1950)]
        ['stable_only_centres', None, 'stable_everything']
        >>> degeneration(1950, num_clusters=100, num_images=2000, by_density=True) is None
        True
    """
    if size <= 1.05 * num_clusters:
        return "stable_only_centres"
    return "stable_everything" if size >= 0.95 * num_images and not by_density else None
