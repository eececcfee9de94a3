"""Overlap and label agreement of successive reliable sets, compared with Python sets and a count of all pairs."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.self_paced import label_agreement, overlap

SETS = st.dictionaries(st.integers(0, 30), st.integers(0, 4), max_size=20)


def arrays(labels):
    return np.array(list(labels), np.int64), np.array(list(labels.values()), np.int64)


@settings(max_examples=200, deadline=None)
@given(SETS, SETS)
def test_overlap_is_the_jaccard_index_of_sets(before, after):
    union = set(before) | set(after)
    expected = len(set(before) & set(after)) / len(union) if union else 1
    assert overlap(arrays(before)[0], arrays(after)[0]) == pytest.approx(expected)


def adjusted_rand_of_pairs(a, b):
    """Hubert and Arabie: pairs that are together in both labellings, less the expected number, divided by the largest such difference."""
    pairs = list(combinations(range(len(a)), 2))
    together_a = sum(a[i] == a[j] for i, j in pairs)
    together_b = sum(b[i] == b[j] for i, j in pairs)
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    expected = together_a * together_b / len(pairs)
    maximum = (together_a + together_b) / 2
    return 1.0 if maximum == expected else (both - expected) / (maximum - expected)


@settings(max_examples=200, deadline=None)
@given(SETS, SETS)
def test_label_agreement_counts_pairs_of_shared_images(before, after):
    shared = sorted(set(before) & set(after))
    agreement = label_agreement(*arrays(before), *arrays(after))
    if len(shared) < 2:
        assert agreement is None
    else:
        assert agreement == pytest.approx(adjusted_rand_of_pairs([before[row] for row in shared], [after[row] for row in shared]))


@settings(max_examples=50, deadline=None)
@given(SETS, st.permutations(range(5)), st.randoms())
def test_row_order_and_class_numbers_are_ignored(labels, renamed, random):
    other = {row: renamed[label] for row, label in random.sample(sorted(labels.items()), len(labels))}
    assert overlap(arrays(labels)[0], arrays(other)[0]) == 1
    assert label_agreement(*arrays(labels), *arrays(other)) == (pytest.approx(1) if len(labels) >= 2 else None)


def test_swapped_halves_of_two_classes_agree_less_than_chance():
    rows = np.arange(4)
    assert label_agreement(rows, np.array([0, 0, 1, 1]), rows, np.array([0, 1, 0, 1])) == pytest.approx(-0.5)
