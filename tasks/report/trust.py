"""The verdict on a run, from its end, its scores, its reliable set and its cameras."""

from typing import cast

from pul_core.reporting.cameras import CameraLinks
from pul_core.reporting.gain import Gain, paired_gain
from pul_core.reporting.verdict import RunFacts, Verdict, judge
from pul_core.stopping import Reason
from tasks.report.run_data import RunData
from tasks.store.artifacts import column
from tasks.tracking.results import degeneration_of


def verdict_on(run: RunData, clusters: CameraLinks | None, people: CameraLinks | None) -> Verdict:
    """Judge a run.

    Args:
        run: the run.
        clusters: links between cameras by the last clusters.
        people: links between cameras by true identities.
    """
    metrics = run.metrics[run.last_clustered] if run.last_clustered is not None else {}
    algorithm = run.parameters["clustering"]["algorithm"]
    size = metrics.get("reliable_set_size")
    facts = RunFacts(
        status=run.status,
        reason=cast(Reason | None, run.stop_reason),
        last_iteration=run.last,
        reliable=None if size is None else int(size),
        degenerate=degeneration_of(metrics, algorithm),
        scored=run.scores(run.last) is not None,
        gain=gain_of(run),
        clusters=clusters,
        people=people,
        by_density=algorithm == "dbscan",
    )
    return judge(facts, run.camera_name)


def gain_of(run: RunData) -> Gain | None:
    """Return the gain in mAP over direct transfer; None if it cannot be computed."""
    before, after = run.scores(0), run.scores(run.last)
    if before is None or after is None or run.pids is None or run.last == 0 or before["row"] != after["row"]:
        return None
    return paired_gain(column(before, "ap"), column(after, "ap"), run.pids[column(after, "row")])
