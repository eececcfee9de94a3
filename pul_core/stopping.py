"""When the loop ends: the size of the reliable set has become stable. Labels and scores have no say."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

Reason = Literal["stable", "stable_only_centres", "stable_everything", "oscillating", "limit"]

EXPLANATIONS: dict[Reason, str] = {
    "stable": "the reliable set's size no longer changes",
    "stable_only_centres": "degenerate: hardly more than the cluster centres are reliable; lower min_similarity or num_clusters",
    "stable_everything": "degenerate: hardly an image is left out, so nothing is selected; raise min_similarity or lower max_distance",
    "oscillating": "the reliable set's size swings to and fro and would not settle within max_iterations",
    "limit": "max_iterations was reached before the reliable set's size was stable",
}


def reason_to_stop(
    sizes: Sequence[int],
    *,
    num_clusters: int,
    num_images: int,
    max_iterations: int,
    stability_tolerance: float,
    stability_patience: int,
    stop_when_stable: bool = True,
) -> Reason | None:
    """Judge, after *select* of an iteration, whether that iteration is the last one.

    Stable is ``|n_t - n_(t-1)| / max(n_(t-1), 1) <= stability_tolerance``, ``stability_patience`` times in a row. A stable set within
    5 % of the number of clusters, or of the number of images, is degenerate and called so. At the limit, three successive changes beyond
    the tolerance that alternate in sign are called oscillating.

    Args:
        sizes: n_1 ... n_t, the reliable set's size in each iteration so far.
        num_clusters: of the last iteration.
        num_images: on which the clusters were made.
        max_iterations: the last iteration at the latest.
        stability_tolerance: relative change that counts as none.
        stability_patience: how often in a row.
        stop_when_stable: False always goes to ``max_iterations``, as the authors' code does.

    Returns:
        The reason, or None to go on.

    Source: Fan et al. 2018, algorithm 1 ("until the scale of the reliable training set becomes stable"); the numbers are ours.

    Example:
        >>> rule = dict(num_clusters=100, num_images=2000, max_iterations=9, stability_tolerance=0.02, stability_patience=1)
        >>> reason_to_stop([900], **rule), reason_to_stop([900, 700], **rule), reason_to_stop([900, 700, 705], **rule)
        (None, None, 'stable')
    """
    changes = [(after - before) / max(before, 1) for before, after in pairwise(sizes)]
    small = [abs(change) <= stability_tolerance for change in changes]
    if stop_when_stable and len(small) >= stability_patience and all(small[-stability_patience:]):
        if sizes[-1] <= 1.05 * num_clusters:
            return "stable_only_centres"
        return "stable_everything" if sizes[-1] >= 0.95 * num_images else "stable"
    if len(sizes) < max_iterations:
        return None
    last = changes[-3:]
    swings = len(last) == 3 and not any(small[-3:]) and last[0] * last[1] < 0 and last[1] * last[2] < 0
    return "oscillating" if swings else "limit"
