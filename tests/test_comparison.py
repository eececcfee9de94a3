"""The one-row summary of a run, compared with a loop over its iterations."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.scoring.comparison import LAST_ITERATION_METRICS, summarise_run

SCORE = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
ITERATION = st.fixed_dictionaries(
    {"rank_1": SCORE, "mAP": SCORE},
    optional={"num_images_seen": st.integers(0, 100), "seconds_fine_tune": st.integers(0, 9), "seconds_evaluate": st.integers(0, 9)},
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ITERATION, min_size=1, max_size=6))
def test_the_summary_equals_a_loop_over_the_iterations(iterations):
    best, images, seconds = None, 0, 0
    for number, metrics in enumerate(iterations):
        if metrics["mAP"] is not None and (best is None or metrics["mAP"] > iterations[best]["mAP"]):
            best = number
        images += metrics.get("num_images_seen", 0)
        seconds += metrics.get("seconds_fine_tune", 0) + metrics.get("seconds_evaluate", 0)
    row = summarise_run([metrics | {"seconds_original_model": 1000} for metrics in iterations])
    assert (row["oracle_best_iteration"], row["num_images_seen"], row["seconds"]) == (best, images, seconds)
    assert row["stop_iteration"] == len(iterations) - 1
    for name in ("rank_1", "mAP"):
        first, last = iterations[0][name], iterations[-1][name]
        assert (row[f"direct_{name}"], row[name]) == (first, last)
        assert row[f"oracle_best_{name}"] == (None if best is None else iterations[best][name])
        assert row[f"gain_{name}"] == (None if first is None or last is None else last - first)


def test_the_oracle_is_never_worse_than_the_last_iteration():
    row = summarise_run([{"rank_1": 0.4, "mAP": 0.5}, {"rank_1": 0.3, "mAP": 0.2}])
    assert (row["oracle_best_iteration"], row["oracle_best_mAP"], row["mAP"]) == (0, 0.5, 0.2)
    assert row["gain_mAP"] == pytest.approx(-0.3)


def test_without_scores_the_sizes_are_reported():
    row = summarise_run([{}, {"reliable_set_size": 30, "num_images_seen": 60}])
    assert (row["reliable_set_size"], row["num_images_seen"]) == (30, 60)
    assert {row[name] for name in row if name.endswith(("rank_1", "mAP")) or name.startswith("oracle")} == {None}
    assert set(LAST_ITERATION_METRICS) <= set(row)


def test_a_run_without_iterations_is_an_error():
    with pytest.raises(ValueError, match="no iterations to summarise"):
        summarise_run([])
