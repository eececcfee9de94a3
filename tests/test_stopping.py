"""The stopping rule, compared with a slow restatement of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.settings import Stopping
from pul_core.stopping import EXPLANATIONS, reason_to_stop

RULE = {"num_clusters": 100, "num_images": 2000, "max_iterations": 10, "stability_tolerance": 0.02, "stability_patience": 2}


def stop_reason(sizes, *, num_clusters, num_images, by_density=False, **rule):
    """Apply the rule with the settings given by name."""
    return reason_to_stop(sizes, Stopping(**rule), num_clusters=num_clusters, num_images=num_images, by_density=by_density)


def oracle(sizes, *, num_clusters, num_images, max_iterations, stability_tolerance, stability_patience, stop_when_stable=True):
    """Count the stable changes backwards from the last size."""
    stable_changes, t = 0, len(sizes) - 1
    while t > 0 and abs(sizes[t] - sizes[t - 1]) / max(sizes[t - 1], 1) <= stability_tolerance:
        stable_changes, t = stable_changes + 1, t - 1
    if stop_when_stable and stable_changes >= stability_patience:
        if sizes[-1] <= 1.05 * num_clusters:
            return "stable_only_centres"
        if sizes[-1] >= 0.95 * num_images:
            return "stable_everything"
        return "stable"
    if len(sizes) >= max_iterations:
        if len(sizes) >= 4:
            a, b, c, d = sizes[-4:]
            all_large = all(abs(new - old) / max(old, 1) > stability_tolerance for old, new in ((a, b), (b, c), (c, d)))
            if all_large and (a < b > c < d or a > b < c > d):
                return "oscillating"
        return "limit"
    return None


# Mostly small and sometimes large changes, so that every reason occurs.
STEPS = st.lists(st.sampled_from([0.4, 0.7, 0.9, 0.985, 1.0, 1.0, 1.01, 1.015, 1.1, 1.5]), max_size=11)


@settings(max_examples=400, deadline=None)
@given(
    start=st.integers(0, 2000),
    steps=STEPS,
    tolerance=st.sampled_from([0.0, 0.01, 0.02, 0.2]),
    patience=st.integers(1, 4),
    limit=st.integers(1, 12),
    stop_when_stable=st.booleans(),
)
def test_the_rule_equals_the_oracle(start, steps, tolerance, patience, limit, stop_when_stable):
    sizes = [start]
    for step in steps:
        sizes.append(min(2000, round(sizes[-1] * step)))
    rule = RULE | {
        "max_iterations": limit,
        "stability_tolerance": tolerance,
        "stability_patience": patience,
        "stop_when_stable": stop_when_stable,
    }
    assert stop_reason(sizes, **rule) == oracle(sizes, **rule)


def first_reason(sizes, **rule):
    """Apply the rule after each iteration and return (iteration, reason) of the first one that ends the loop."""
    for t in range(1, len(sizes) + 1):
        if (reason := stop_reason(sizes[:t], **rule)) is not None:
            return t, reason
    return None


@pytest.mark.parametrize("patience", [1, 2])
def test_the_loop_continues_while_the_set_shrinks_and_ends_at_the_plateau(patience):
    """Sizes from a run on Market-1501: fine-tuned features are more spread out than the original ones, so the set shrinks at first."""
    sizes = [9864, 4907, 4078, 4090, 4095]
    rule = {"num_clusters": 750, "num_images": 12936, "max_iterations": 15, "stability_tolerance": 0.02, "stability_patience": patience}
    assert first_reason(sizes, **rule) == (3 + patience, "stable")


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ([100, 100, 100], "stable_only_centres"),
        ([105, 105, 105], "stable_only_centres"),
        ([106, 106, 106], "stable"),
        ([1899, 1899, 1899], "stable"),
        ([1900, 1900, 1900], "stable_everything"),
        ([2000, 2000, 2000], "stable_everything"),
        ([0, 0, 0], "stable_only_centres"),
    ],
)
@pytest.mark.fault("a reliable set that stays empty or total", "stops as `stable_only_centres` or `stable_everything`, with what to change")
def test_a_stable_set_of_only_centres_or_of_all_images_is_degenerate(sizes, reason):
    assert stop_reason(sizes, **RULE) == reason
    by_density = {"stable_everything": "stable"}.get(reason, reason)  # DBSCAN has rejected images before any are selected
    assert stop_reason(sizes, **RULE, by_density=True) == by_density


def test_a_change_equal_to_the_tolerance_counts_as_stable():
    rule = RULE | {"stability_tolerance": 0.25, "stability_patience": 1}
    assert stop_reason([400, 500], **rule) == "stable"
    assert stop_reason([400, 501], **rule) is None
    assert stop_reason([400, 300], **rule) == "stable"
    assert stop_reason([400, 299], **rule) is None


def test_patience_requires_stable_changes_in_a_row():
    rule = RULE | {"stability_patience": 3, "max_iterations": 99}
    assert first_reason([500, 500, 500, 700, 700, 700, 700], **rule) == (7, "stable")


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ([500, 700, 500, 700], "oscillating"),
        ([700, 500, 700, 500], "oscillating"),
        ([300, 500, 700, 500], "limit"),
        ([500, 700, 500, 505], "limit"),
        ([500, 600, 700, 800], "limit"),
    ],
)
@pytest.mark.fault("a reliable set that oscillates for ever", "stops at the limit as `oscillating`")
def test_oscillation_is_distinguished_from_reaching_the_limit(sizes, reason):
    rule = RULE | {"max_iterations": 4}
    assert first_reason(sizes, **rule) == (4, reason)


def test_too_few_sizes_to_oscillate_reach_the_limit():
    assert stop_reason([500, 700, 500], **RULE | {"max_iterations": 3}) == "limit"
    assert stop_reason([500], **RULE | {"max_iterations": 1}) == "limit"
    assert stop_reason([], **RULE) is None


def test_a_stable_size_at_the_limit_is_reported_as_stable():
    assert stop_reason([500, 500, 500], **RULE | {"max_iterations": 3}) == "stable"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=10, max_size=10))
def test_without_stop_when_stable_the_loop_always_runs_to_the_limit(sizes):
    iteration, reason = first_reason(sizes, **RULE, stop_when_stable=False)
    assert iteration == 10
    assert reason in ("limit", "oscillating")


def test_without_stop_when_stable_a_constant_size_does_not_end_the_loop():
    rule = RULE | {"stability_tolerance": 0, "stability_patience": 1, "stop_when_stable": False}
    assert first_reason([500] * 10, **rule) == (10, "limit")


def test_every_reason_has_an_explanation_and_degenerate_ones_say_what_to_change():
    assert {
        oracle(sizes, **RULE | {"max_iterations": 4}) for sizes in ([100] * 3, [2000] * 3, [500] * 3, [1, 9, 1, 9], [1, 2, 3, 4])
    } == set(EXPLANATIONS)
    for reason in ("stable_only_centres", "stable_everything"):
        assert "degenerate" in EXPLANATIONS[reason]
        assert "min_similarity" in EXPLANATIONS[reason]
