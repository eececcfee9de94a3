"""When the loop ends, against a slow restatement of the rule in words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.stopping import EXPLANATIONS, reason_to_stop

RULE = {"num_clusters": 100, "num_images": 2000, "max_iterations": 10, "stability_tolerance": 0.02, "stability_patience": 2}


def oracle(sizes, *, num_clusters, num_images, max_iterations, stability_tolerance, stability_patience, stop_when_stable=True):
    """Walk back from the last size, one step at a time."""
    calm, t = 0, len(sizes) - 1
    while t > 0 and abs(sizes[t] - sizes[t - 1]) / max(sizes[t - 1], 1) <= stability_tolerance:
        calm, t = calm + 1, t - 1
    if stop_when_stable and calm >= stability_patience:
        if sizes[-1] <= 1.05 * num_clusters:
            return "stable_only_centres"
        if sizes[-1] >= 0.95 * num_images:
            return "stable_everything"
        return "stable"
    if len(sizes) >= max_iterations:
        if len(sizes) >= 4:
            a, b, c, d = sizes[-4:]
            wide = all(abs(new - old) / max(old, 1) > stability_tolerance for old, new in ((a, b), (b, c), (c, d)))
            if wide and (a < b > c < d or a > b < c > d):
                return "oscillating"
        return "limit"
    return None


# Sizes that mostly move a little, sometimes a lot, so that every reason is met.
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
def test_the_rule_equals_its_restatement(start, steps, tolerance, patience, limit, stop_when_stable):
    sizes = [start]
    for step in steps:
        sizes.append(min(2000, round(sizes[-1] * step)))
    rule = RULE | {
        "max_iterations": limit,
        "stability_tolerance": tolerance,
        "stability_patience": patience,
        "stop_when_stable": stop_when_stable,
    }
    assert reason_to_stop(sizes, **rule) == oracle(sizes, **rule)


def first_reason(sizes, **rule):
    """Run the loop: judge after each iteration and return (iteration, reason) of the first one that ends it."""
    for t in range(1, len(sizes) + 1):
        if (reason := reason_to_stop(sizes[:t], **rule)) is not None:
            return t, reason
    return None


@pytest.mark.parametrize("patience", [1, 2])
def test_a_first_shrink_is_not_the_end_and_the_plateau_after_it_is(patience):
    """Sizes seen in a run on Market-1501: fine-tuned features are more spread than the original ones, so the set first shrinks."""
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
def test_a_stable_set_of_hardly_anything_or_of_everything_is_called_degenerate(sizes, reason):
    assert reason_to_stop(sizes, **RULE) == reason


def test_the_tolerance_itself_still_counts_as_no_change():
    rule = RULE | {"stability_tolerance": 0.25, "stability_patience": 1}
    assert reason_to_stop([400, 500], **rule) == "stable"
    assert reason_to_stop([400, 501], **rule) is None
    assert reason_to_stop([400, 300], **rule) == "stable"
    assert reason_to_stop([400, 299], **rule) is None


def test_patience_asks_for_calm_in_a_row():
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
def test_swinging_is_told_from_plain_running_out(sizes, reason):
    rule = RULE | {"max_iterations": 4}
    assert first_reason(sizes, **rule) == (4, reason)


def test_too_few_sizes_to_swing_is_the_limit():
    assert reason_to_stop([500, 700, 500], **RULE | {"max_iterations": 3}) == "limit"
    assert reason_to_stop([500], **RULE | {"max_iterations": 1}) == "limit"
    assert reason_to_stop([], **RULE) is None


def test_stability_at_the_limit_is_stability():
    assert reason_to_stop([500, 500, 500], **RULE | {"max_iterations": 3}) == "stable"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=10, max_size=10))
def test_the_authors_fixed_number_of_iterations_is_always_run(sizes):
    iteration, reason = first_reason(sizes, **RULE, stop_when_stable=False)
    assert iteration == 10
    assert reason in ("limit", "oscillating")


def test_the_authors_loop_does_not_stop_on_a_constant_size():
    rule = RULE | {"stability_tolerance": 0, "stability_patience": 1, "stop_when_stable": False}
    assert first_reason([500] * 10, **rule) == (10, "limit")


def test_every_reason_is_explained_and_every_degenerate_one_says_what_to_change():
    assert {
        oracle(sizes, **RULE | {"max_iterations": 4}) for sizes in ([100] * 3, [2000] * 3, [500] * 3, [1, 9, 1, 9], [1, 2, 3, 4])
    } == set(EXPLANATIONS)
    for reason in ("stable_only_centres", "stable_everything"):
        assert "degenerate" in EXPLANATIONS[reason]
        assert "min_similarity" in EXPLANATIONS[reason]
