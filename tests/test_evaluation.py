"""CMC, mAP and mINP, compared with a brute-force oracle that sorts the whole gallery for one query at a time."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.errors import UserError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID
from pul_core.scoring import ranks
from pul_core.scoring.evaluation import Scores, score_queries, summarise

# All 4-vectors of +-1 have length 2, and their cosines are exactly -1, -0.5, 0, 0.5 or 1 in float32: ties without rounding errors.
SIGNS = np.array(list(product([-1, 1], repeat=4)), np.float32)
drawn_sets = st.integers(0, 2**32 - 1).map(lambda seed: draw_sets(np.random.default_rng(seed)))
few_examples = settings(max_examples=60, deadline=None)


def draw_sets(rng, *, ties=True):
    """Draw queries and a gallery with junk, distractors, same-camera matches and queries without a match."""
    q, g = rng.integers(1, 9), rng.integers(1, 50)
    if ties:
        query, gallery = SIGNS[rng.integers(16, size=q)], SIGNS[rng.integers(16, size=g)]
    else:
        query, gallery = (rng.normal(size=(n, 8)).astype(np.float32) for n in (q, g))
    query_pids, query_camids = rng.integers(0, 8, q), rng.integers(1, 4, q)  # pid 0 is a distractor even in the query
    return query, query_pids, query_camids, gallery, rng.integers(-1, 7, g), rng.integers(1, 4, g)  # identity 7 has no match


def oracle(query, query_pids, query_camids, gallery, gallery_pids, gallery_camids):
    """Sort the whole gallery, negatives before matches of the same cosine, and walk down the ranking."""
    rows = []
    for feature, pid, camid in zip(query, query_pids, query_camids, strict=True):
        ranking = []
        for other, other_pid, other_camid in zip(gallery, gallery_pids, gallery_camids, strict=True):
            if other_pid == JUNK_PID or (other_pid == pid and other_camid == camid):
                continue
            a, b = feature.astype(np.float64), other.astype(np.float64)
            cosine = a @ b / np.sqrt((a @ a) * (b @ b))
            ranking.append((-cosine, other_pid == pid))
        is_match = [match for _, match in sorted(ranking)]
        if pid == DISTRACTOR_PID or not any(is_match):
            rows.append((np.nan, np.nan, np.nan, np.nan, 0, 0, 0))
            continue
        hits, area, trapezoids, precision_before = 0, 0.0, 0.0, 1.0
        for rank, match in enumerate(is_match, 1):
            hits += match
            if match:
                area += hits / rank / sum(is_match)
                trapezoids += (precision_before + hits / rank) / 2 / sum(is_match)
                last = rank
            precision_before = hits / rank
        rows.append((area, trapezoids, hits / last, is_match.index(True) + 1, hits, 1, 0))
    return Scores(*map(np.array, zip(*rows, strict=True)))


def assert_same(scores, expected, *, exactly=False):
    for name, left, right in zip(Scores._fields, scores, expected, strict=True):
        if exactly or name in ("first_hit", "num_positives"):
            np.testing.assert_array_equal(left, right, err_msg=name)
        else:
            np.testing.assert_allclose(left, right, rtol=1e-12, err_msg=name)


@settings(max_examples=200, deadline=None)
@given(drawn_sets)
def test_scores_equal_a_brute_force_ranking_with_ties(data):
    assert_same(score_queries(*data), oracle(*data))


@pytest.mark.parametrize("seed", range(15))
def test_scores_equal_a_brute_force_ranking_without_ties(seed):
    data = draw_sets(np.random.default_rng(seed), ties=False)
    assert_same(score_queries(*data), oracle(*data))


def test_the_drawn_sets_contain_every_case():
    many = [draw_sets(np.random.default_rng(seed)) for seed in range(50)]
    scored = [oracle(*data).num_positives for data in many]
    assert any((positives > 1).any() for positives in scored)
    assert any((positives == 0).any() for positives in scored)
    assert any((data[1] == DISTRACTOR_PID).any() and (data[4] == DISTRACTOR_PID).any() for data in many)
    assert any(np.isin(data[4], data[1]).any() and (data[4] == JUNK_PID).any() for data in many)


def test_queries_are_scored_in_blocks(monkeypatch):
    rng = np.random.default_rng(5)
    data = [np.concatenate([part] * 5) for part in draw_sets(rng)[:3]] + [*draw_sets(rng)[3:]]
    expected = score_queries(*data)
    monkeypatch.setattr(ranks, "QUERY_BLOCK", 3)
    monkeypatch.setattr(ranks, "GALLERY_BLOCK", 7)
    assert_same(score_queries(*data), expected, exactly=True)


def score_ranking(gallery_pids):
    """Score one query of identity 3 whose gallery is ranked in the given order."""
    angles = np.linspace(0.1, 1.2, len(gallery_pids))
    gallery = np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float32)
    query = np.array([[1, 0]], np.float32), np.array([3]), np.array([1])
    return score_queries(*query, gallery, np.array(gallery_pids), np.full(len(gallery), 2))


def test_matches_at_ranks_1_2_4_7():
    """The worked example of docs/protocols.md: 0.830 plain, 0.811 trapezoidal."""
    scores = score_ranking([3, 3, 8, 3, DISTRACTOR_PID, 9, 3])
    assert scores.ap[0] == pytest.approx((1 + 1 + 3 / 4 + 4 / 7) / 4)
    assert scores.ap[0] == pytest.approx(0.830, abs=5e-4)
    assert scores.ap_trapezoidal[0] == pytest.approx(0.811, abs=5e-4)
    assert scores.inp[0] == pytest.approx(4 / 7)
    assert scores.first_hit[0] == 1


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(1, 60), min_size=1, max_size=20).map(sorted))
def test_trapezoidal_is_never_higher_than_plain_and_both_are_one_only_for_a_perfect_ranking(match_ranks):
    scores = score_ranking([3 if rank in match_ranks else 8 for rank in range(1, 61)])
    plain, trapezoidal = scores.ap[0], scores.ap_trapezoidal[0]
    assert (scores.num_positives[0], scores.first_hit[0]) == (len(match_ranks), match_ranks[0])
    assert 0 < trapezoidal <= plain <= 1
    assert (plain == 1) == (trapezoidal == 1) == (match_ranks == list(range(1, len(match_ranks) + 1)))


@few_examples
@given(drawn_sets, st.integers(0, 2**32 - 1))
def test_the_lengths_of_the_features_are_ignored(data, seed):
    rng = np.random.default_rng(seed)
    query, gallery = (x * 2.0 ** rng.integers(-6, 7, (len(x), 1)) for x in (data[0], data[3]))  # powers of two: no rounding, ties stay
    scaled = score_queries(query.astype(np.float32), *data[1:3], gallery.astype(np.float32), *data[4:])
    assert_same(scaled, score_queries(*data), exactly=True)


@pytest.mark.parametrize("seed", range(5))
def test_any_positive_scaling_of_untied_features_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    data = draw_sets(rng, ties=False)
    query, gallery = (x * rng.uniform(0.1, 30, (len(x), 1)).astype(np.float32) for x in (data[0], data[3]))
    assert_same(score_queries(query, *data[1:3], gallery, *data[4:]), score_queries(*data), exactly=True)


@few_examples
@given(drawn_sets, st.randoms(use_true_random=False))
def test_the_order_of_the_gallery_does_not_matter_even_with_ties(data, random):
    order = list(range(len(data[3])))
    random.shuffle(order)
    assert_same(score_queries(*data[:3], *(part[order] for part in data[3:])), score_queries(*data), exactly=True)


@pytest.mark.parametrize("d", [17, 64, 512, 2048])
def test_the_order_of_a_gallery_with_identical_features_does_not_matter(d):
    rng = np.random.default_rng(d)
    for g in (4, 5, 33, 101, 1003):
        gallery = rng.normal(size=(3, d)).astype(np.float32)[rng.integers(3, size=g)]  # three different features, each many times
        pids, camids = rng.integers(1, 3, g), np.full(g, 2)
        pids[0] = 1
        query = rng.normal(size=(1, d)).astype(np.float32), np.array([1]), np.array([1])
        expected = score_queries(*query, gallery, pids, camids)
        for _ in range(3):
            order = rng.permutation(g)
            assert_same(score_queries(*query, gallery[order], pids[order], camids[order]), expected, exactly=True)


@few_examples
@given(drawn_sets)
def test_scores_are_in_the_order_of_the_queries(data):
    backwards = score_queries(*(part[::-1].copy() for part in data[:3]), *data[3:])
    assert_same(Scores(*(column[::-1] for column in backwards)), score_queries(*data), exactly=True)


@few_examples
@given(drawn_sets, st.lists(st.tuples(st.integers(0, 15), st.integers(1, 3), st.integers(0, 49)), min_size=1, max_size=9))
def test_junk_changes_nothing(data, junk):
    gallery, pids, camids = data[3:]
    for sign_row, camid, position in junk:
        position = min(position, len(gallery))
        gallery = np.insert(gallery, position, SIGNS[sign_row], axis=0)
        pids, camids = np.insert(pids, position, JUNK_PID), np.insert(camids, position, camid)
    assert_same(score_queries(*data[:3], gallery, pids, camids), score_queries(*data), exactly=True)


@few_examples
@given(drawn_sets, st.integers(0, 15), st.integers(1, 3))
def test_a_distractor_never_improves_a_score(data, sign_row, camid):
    before = score_queries(*data)
    gallery = np.concatenate([data[3], SIGNS[sign_row : sign_row + 1]])
    after = score_queries(*data[:3], gallery, np.append(data[4], DISTRACTOR_PID), np.append(data[5], camid))
    scored = before.num_positives > 0
    np.testing.assert_array_equal(after.num_positives, before.num_positives)
    assert (after.first_hit[scored] >= before.first_hit[scored]).all()
    for name in ("ap", "ap_trapezoidal", "inp"):
        assert (getattr(after, name)[scored] <= getattr(before, name)[scored] + 1e-12).all()


def test_a_distractor_closer_than_the_match_lowers_its_rank():
    query = np.array([[1, 0]], np.float32), np.array([4]), np.array([1])
    gallery = np.array([[1, 0.5], [1, 0.1]], np.float32)
    alone = score_queries(*query, gallery[:1], np.array([4]), np.array([2]))
    beside = score_queries(*query, gallery, np.array([4, DISTRACTOR_PID]), np.array([2, 2]))
    assert (alone.first_hit[0], beside.first_hit[0]) == (1, 2)


@pytest.mark.parametrize("g", [4, 5, 33, 101])
@pytest.mark.parametrize("q", [1, 7])
@pytest.mark.parametrize("d", [2, 17, 64, 512, 2048])
def test_constant_features_get_the_worst_scores_in_any_gallery_order(d, q, g):
    feature = np.random.default_rng(d).normal(size=d).astype(np.float32)
    pids = np.arange(g) % 2 + 1
    query = np.tile(feature, (q, 1)), np.ones(q, np.int64), np.ones(q, np.int64)
    negatives, matches = int((pids == 2).sum()), int((pids == 1).sum())
    rank = negatives + np.arange(1, matches + 1)
    for order in (slice(None), slice(None, None, -1)):
        scores = score_queries(*query, np.tile(feature, (g, 1)), pids[order], np.full(g, 2))
        assert (scores.first_hit == negatives + 1).all()
        assert (scores.inp == matches / g).all()
        np.testing.assert_allclose(scores.ap, np.mean(np.arange(1, matches + 1) / rank))


def test_only_the_same_identity_from_the_same_camera_is_ignored():
    """Other people from the query's camera stay in the ranking as negatives."""
    query = np.array([[1, 0]], np.float32), np.array([4]), np.array([1])
    gallery = np.array([[1, 0], [1, 0.1], [1, 0.2]], np.float32)
    scores = score_queries(*query, gallery, np.array([4, 5, 4]), np.array([1, 1, 2]))
    assert (scores.first_hit[0], scores.num_positives[0]) == (2, 1)


def test_camera_numbers_of_two_digits_are_compared_as_numbers():
    query = np.array([[1, 0]], np.float32), np.array([4]), np.array([1])
    scores = score_queries(*query, np.array([[1, 0]], np.float32), np.array([4]), np.array([11]))
    assert scores.num_positives[0] == 1


def test_arrays_with_negative_strides_are_scored():
    data = np.array([[1, 0]], np.float32)[::-1], np.array([4])[::-1], np.array([1])[::-1]
    assert score_queries(*data, np.array([[1, 0]], np.float32), np.array([4]), np.array([2])).ap.tolist() == [1.0]


def test_the_inputs_are_not_modified():
    data = draw_sets(np.random.default_rng(1))
    copies = [part.copy() for part in data]
    score_queries(*data)
    for part, copy in zip(data, copies, strict=True):
        np.testing.assert_array_equal(part, copy)


@few_examples
@given(drawn_sets)
def test_the_summary_averages_scored_queries_and_counts_the_others(data):
    scores = score_queries(*data)
    scored = scores.num_positives > 0
    if not scored.any():
        with pytest.raises(UserError, match="no query has a correct match"):
            summarise(scores)
        return
    summary = summarise(scores, max_rank=10)
    assert (summary.num_scored, summary.num_unscored) == (scored.sum(), (~scored).sum())
    assert summary.mean_ap == pytest.approx(np.nanmean(scores.ap))
    assert summary.mean_ap_trapezoidal == pytest.approx(np.nanmean(scores.ap_trapezoidal))
    assert summary.mean_inp == pytest.approx(np.nanmean(scores.inp))
    expected = [sum(rank <= k for rank in scores.first_hit[scored]) / scored.sum() for k in range(1, 11)]
    np.testing.assert_allclose(summary.cmc, expected)


def test_the_cmc_curve_has_max_rank_entries_even_for_a_small_gallery():
    one = np.array([2.0])
    assert summarise(Scores(one / 2, one / 2, one / 2, one, *np.array([[1], [1], [0]])), max_rank=20).cmc.tolist() == [0.0] + [1.0] * 19


@pytest.mark.parametrize("damaged", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("role", ["query", "gallery"])
def test_zero_and_non_finite_features_are_errors(role, damaged):
    features = {"query": np.ones((2, 3), np.float32), "gallery": np.ones((4, 3), np.float32)}
    features[role][1] = damaged
    with pytest.raises(UserError, match=f"feature of {role} image 1 is a zero vector or not finite"):
        score_queries(
            features["query"], np.array([1, 1]), np.array([1, 1]), features["gallery"], np.array([1, 1, 2, 2]), np.array([2, 2, 2, 2])
        )
