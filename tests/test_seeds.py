"""Derived seeds: repeatable, in range, and different for different names."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.seeds import derive_seed

NAMES = st.lists(st.one_of(st.integers(-5, 10**6), st.text("abcxyz_", min_size=1, max_size=8)), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63), NAMES)
def test_a_seed_is_repeatable_and_in_the_range_of_every_generator(run_seed, names):
    seed = derive_seed(run_seed, *names)
    assert seed == derive_seed(run_seed, *names)
    assert 0 <= seed < 2**31


def test_successive_runs_iterations_and_steps_have_different_seeds():
    uses = list(product(range(20), range(1, 26), ("cluster", "train", "classifier")))
    assert len({derive_seed(run, iteration, step) for run, iteration, step in uses}) == len(uses)


def test_the_bits_of_consecutive_seeds_are_balanced():
    """A plain counter, or a digest that is too short, would have bits that rarely change."""
    seeds = [derive_seed(0, epoch) for epoch in range(2000)]
    for bit in range(31):
        assert 0.44 < sum(seed >> bit & 1 for seed in seeds) / len(seeds) < 0.56


def test_adjacent_names_are_separated():
    assert derive_seed(1, 2, 3) != derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed(0) != derive_seed(0, "") != derive_seed(0, "", "")
