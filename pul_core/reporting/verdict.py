"""Whether to trust the result of a run, and why: findings with a level, of which the worst one decides."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from pul_core.reporting.cameras import CameraLinks
from pul_core.reporting.gain import Gain
from pul_core.stopping import EXPLANATIONS, Degenerate, Reason

Level = Literal["good", "unknown", "caution", "bad"]  # from the best to the worst
LEVELS: tuple[Level, ...] = ("good", "unknown", "caution", "bad")
HEADLINES: dict[Level, str] = {
    "good": "Sound: no check found a problem.",
    "unknown": "No check found a problem, but not everything could be checked.",
    "caution": "Usable with reservations.",
    "bad": "Do not rely on this result.",
}
ISOLATED_SHARE = 0.1  # a camera is isolated if at most this share of its clusters has an image of another camera
MIN_GROUPS = 10  # clusters of a camera below which a missing link to another camera says little


class RunFacts(NamedTuple):
    """What the checks read. The reliable set is that of the last iteration."""

    status: str  # of the run: finished, running, failed or killed
    reason: Reason | None  # why the loop stopped
    last_iteration: int
    reliable: int | None  # images in the reliable set; None before iteration 1
    degenerate: Degenerate | None  # how the reliable set is
    scored: bool  # whether there are labelled queries and a gallery
    gain: Gain | None  # mAP of the last iteration minus that of direct transfer
    clusters: CameraLinks | None  # None before iteration 1
    people: CameraLinks | None  # the same of the true identities; None without labels
    by_density: bool = False  # whether the clusters are those of DBSCAN


class Finding(NamedTuple):
    """The outcome of a check, in a sentence, and what to do about it. Code is in backticks."""

    level: Level
    text: str
    advice: str = ""  # a finding that is not good has one, unless its sentence says what to do


class Verdict(NamedTuple):
    """The level of the worst finding, and all findings, the worst first."""

    level: Level
    findings: list[Finding]

    @property
    def headline(self) -> str:
        """Return the verdict in a sentence."""
        return HEADLINES[self.level]


def judge(facts: RunFacts, camera_name: Callable[[int], str] = str) -> Verdict:
    """Check the end of the run, its gain, its reliable set and its cameras.

    Args:
        facts: of the run.
        camera_name: returns the name of a camera id.

    Example:
        >>> facts = RunFacts("finished", "limit", 4, 900, None, False, None, None, None)
        >>> verdict = judge(facts)
        >>> verdict.level, [finding.level for finding in verdict.findings]
        ('caution', ['caution', 'unknown'])
    """
    findings = [_end(facts), _gain(facts), *_reliable_set(facts), *_cameras(facts, camera_name)]
    findings.sort(key=lambda finding: -LEVELS.index(finding.level))
    return Verdict(findings[0].level, findings)


def _end(facts: RunFacts) -> Finding:
    after = f"after iteration {facts.last_iteration}"
    if facts.reason is None:
        waiting = "Wait until it has ended. " if facts.status == "running" else ""
        advice = f"{waiting}If it was interrupted, `pul resume RUN` continues it."
        return Finding("bad", f"The run did not finish (its status is {facts.status}); these are its results {after}.", advice)
    level: dict[Reason, Level] = {"stable": "good", "limit": "caution", "oscillating": "caution"}
    explanation = EXPLANATIONS[facts.reason]
    return Finding(
        level.get(facts.reason, "bad"), f"The run stopped {after}: {explanation}.", _advice_on_end(facts.reason, facts.by_density)
    )


def _advice_on_end(reason: Reason, by_density: bool) -> str:
    selection = "`dbscan.max_distance`" if by_density else "`selection.min_similarity`"
    if reason == "stable":
        return ""
    return {
        "limit": "Continue from the cache: `pul run --config`, with the config.json of this run, and a larger `--max-iterations`.",
        "oscillating": f"Change {selection}, or raise `stopping.stability_tolerance` if changes of this size do not matter to you.",
    }.get(reason) or _advice_on_degenerate_sets(by_density)


def _advice_on_degenerate_sets(by_density: bool) -> str:
    change = "Change `dbscan.max_distance`" if by_density else "Run again with another `--min-similarity` or `--num-clusters`"
    return f"{change} (docs/method.md)."


def _gain(facts: RunFacts) -> Finding:
    gain = facts.gain
    if not facts.scored:
        text = "The gain over direct transfer was not measured, because the target has no labelled queries and gallery."
        return Finding("unknown", text, "Look at the clusters with `pul report --with-images`, or label some people (docs/data.md).")
    if gain is None or facts.last_iteration == 0:
        text = "The gain over direct transfer was not measured: there are no two sets of scores to compare."
        advice = "`pul evaluate` scores an iteration." if facts.last_iteration else "Scores of an adapted model follow in iteration 1."
        return Finding("unknown", text, advice)
    text = (
        f"mAP {'rose' if gain.difference >= 0 else 'fell'} by {abs(100 * gain.difference):.1f} points from direct transfer "
        f"(95 % interval {_signed(gain.low)} to {_signed(gain.high)} over {gain.num_people:,} people in {gain.num_queries:,} queries)"
    )
    if gain.low > 0:
        return Finding("good", f"{text}.")
    if gain.high < 0:
        return Finding("bad", f"{text}: the original model is better.", "Use iteration 0, or look for clusters below that mix people.")
    advice = "Score more labelled people, or compare several seeds with `pul sweep` (docs/sweep.md)."
    return Finding("caution", f"{text}: this test set cannot tell the two models apart.", advice)


def _reliable_set(facts: RunFacts) -> list[Finding]:
    if facts.reliable is None:
        return [Finding("bad", "There is no adapted model yet, only the original one.", "`pul resume RUN` continues the run.")]
    if facts.degenerate is None or facts.reason == facts.degenerate:  # the end of the run says it already
        return []
    return [Finding("caution", f"The last reliable set is {EXPLANATIONS[facts.degenerate]}.", _advice_on_degenerate_sets(facts.by_density))]


def _cameras(facts: RunFacts, camera_name: Callable[[int], str]) -> list[Finding]:
    links, people = facts.clusters, facts.people
    if links is None:
        return []
    if len(links.camids) == 0:
        text = "Whether clusters cross cameras was not checked, because the cameras are unknown."
        return [Finding("unknown", text, "`--target-pattern` reads them from file names (docs/data.md).")]
    if len(links.camids) == 1:
        text = "The clusters are of a single camera, so nothing was learned about the change of camera."
        return [Finding("unknown", text, "Add images of another camera, or check how cameras are read with `pul data check`.")]
    expected = people.isolated(0) if people else []  # cameras whose people were seen nowhere else
    isolated = [camid for camid in links.isolated(ISOLATED_SHARE) if camid not in expected]
    if isolated:
        level: Level = "bad" if len(isolated) == len(links.camids) else "caution"
        names = _listed([camera_name(camid) for camid in isolated])
        text = f"At most {ISOLATED_SHARE:.0%} of the clusters of camera {names} have an image of another camera."
        return [Finding(level, text, _advice_on_cameras(facts.by_density))]
    alone = [camera_name(camid) for camid in links.isolated(ISOLATED_SHARE)]
    if alone:
        text = f"Nobody on camera {_listed(alone)} was seen by another camera, so its clusters cannot cross cameras."
        return [Finding("unknown", text, "Add images of people who pass that camera and another one.")]
    missing = [f"{camera_name(a)} and {camera_name(b)}" for a, b in unlinked_pairs(links, people)]
    if missing:
        more = f", or {len(missing) - 3} other pairs of cameras" if len(missing) > 3 else ""
        return [Finding("caution", f"No cluster joins cameras {', or '.join(missing[:3])}{more}.", _advice_on_cameras(facts.by_density))]
    return [Finding("good", f"Clusters cross all {len(links.camids)} cameras.")]


def _advice_on_cameras(by_density: bool) -> str:
    change = "raise `dbscan.max_distance`" if by_density else "use the recipe `modern`, or a smaller `--num-clusters`"
    return f"If the cameras see the same people, {change}; `pul data check` shows how the cameras were read."


def unlinked_pairs(links: CameraLinks, people: CameraLinks | None) -> list[tuple[int, int]]:
    """Return the pairs of cameras that no cluster joins, although each has several clusters and, if known, people were seen by both."""
    shared = set()
    if people is not None:
        shared = {(int(people.camids[i]), int(people.camids[j])) for i, j in np.argwhere(people.groups > 0)}
    totals = np.diag(links.groups)
    return [
        (int(links.camids[i]), int(links.camids[j]))
        for i, j in combinations(range(len(totals)), 2)
        if links.groups[i, j] == 0
        and min(totals[i], totals[j]) >= MIN_GROUPS
        and (people is None or (int(links.camids[i]), int(links.camids[j])) in shared)
    ]


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
