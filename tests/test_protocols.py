"""Protocols and policies, compared with slow rankings of one query at a time and with all orders of tied images."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pul_core.scoring import ranks
from pul_core.scoring.evaluation import Scores, cmc_per_query, score_queries, summarise
from pul_core.scoring.protocols import PROTOCOLS, FeatureSet, Protocol, score_protocol
from pul_core.scoring.reranking import Reranking

few_examples = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def draw_sets(rng, *, queries=12, gallery=60, identities=8, cameras=3, d=8):
    """Draw random features, with distractors, junk, unknown cameras and identities without a match."""
    query = FeatureSet(
        rng.normal(size=(queries, d)).astype(np.float32), rng.integers(0, identities + 1, queries), rng.integers(-1, cameras, queries)
    )
    return query, FeatureSet(
        rng.normal(size=(gallery, d)).astype(np.float32), rng.integers(-1, identities, gallery), rng.integers(-1, cameras, gallery)
    )


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def match_ranks(feature, pid, camid, gallery, ignored):
    """Sort the gallery for one query and return the ranks of its correct matches."""
    ranking = sorted(
        (-cosine(feature, other), other_pid == pid)
        for other, other_pid, other_camid in zip(*gallery, strict=True)
        if other_pid != -1 and not ignored(pid, camid, other_pid, other_camid)
    )
    return np.array([rank for rank, (_, is_match) in enumerate(ranking, 1) if is_match and pid > 0], np.int64)


def average_precision(match_rank):
    """Return plain and trapezoidal average precision of matches at these ranks, by walking down the ranking."""
    plain, trapezoidal = 0.0, 0.0
    for matches_before, rank in enumerate(match_rank):
        precision = (matches_before + 1) / rank
        precision_before = matches_before / (rank - 1) if rank > 1 else 1.0
        plain += precision / len(match_rank)
        trapezoidal += (precision + precision_before) / 2 / len(match_rank)
    return plain, trapezoidal


def same_camera(camid, other_camid):
    return camid == other_camid and camid != -1


RULES = {
    "market1501": lambda pid, camid, other_pid, other_camid: pid == other_pid and same_camera(camid, other_camid),
    "cross_camera": lambda pid, camid, other_pid, other_camid: same_camera(camid, other_camid),
}


@pytest.mark.parametrize("name", RULES)
@few_examples
@given(seeds)
def test_each_protocol_ignores_its_same_camera_images(name, seed):
    query, gallery = draw_sets(np.random.default_rng(seed))
    assume(all(np.diff(sorted(cosine(feature, other) for other in gallery[0])).min() > 1e-6 for feature in query[0]))  # no near-ties
    scores = score_protocol(PROTOCOLS[name], query, gallery).scores
    for i, one_query in enumerate(zip(*query, strict=True)):
        rank = match_ranks(*one_query, gallery, RULES[name])
        assert scores.num_positives[i] == len(rank)
        if len(rank):
            assert scores.first_hit[i] == rank[0]
            assert scores.inp[i] == pytest.approx(len(rank) / rank[-1])
            assert (scores.ap[i], scores.ap_trapezoidal[i]) == pytest.approx(average_precision(rank))


def test_new_cuhk03_is_scored_like_market():
    assert PROTOCOLS["cuhk03_new"] == PROTOCOLS["market1501"]


def test_without_cameras_no_image_is_ignored():
    query, gallery = draw_sets(np.random.default_rng(0))
    unknown = [FeatureSet(images.features, images.pids, np.full(len(images.pids), -1)) for images in (query, gallery)]
    for name in RULES:
        positives = score_protocol(PROTOCOLS[name], *unknown).scores.num_positives
        np.testing.assert_array_equal(positives, [(pid > 0) * (gallery.pids == pid).sum() for pid in query.pids])


def test_multi_query_pools_the_images_of_an_identity_from_a_camera():
    rng = np.random.default_rng(3)
    query, gallery = draw_sets(rng, queries=20, gallery=80, identities=4)
    query, gallery = (FeatureSet(images.features, images.pids, images.camids % 3) for images in (query, gallery))
    pooled = []
    for pid, camid in zip(query.pids, query.camids, strict=True):
        pool = [f / np.linalg.norm(f) for images in (query, gallery) for f, p, c in zip(*images, strict=True) if (p, c) == (pid, camid)]
        pooled.append(np.mean(pool, axis=0, dtype=np.float64).astype(np.float32))
    expected = score_queries(np.array(pooled), *query[1:], *gallery)
    scores = score_protocol(PROTOCOLS["multi_query"], query, gallery).scores
    assert (scores.num_positives > 0).sum() > 5
    for left, right in zip(scores, expected, strict=True):
        np.testing.assert_allclose(left, right)
    with pytest.raises(ValueError, match="requires the camera of every query"):
        score_protocol(PROTOCOLS["multi_query"], query._replace(camids=np.full(len(query.pids), -1)), gallery)


def two_cameras(rng, identities, shots=3):
    """Draw each identity with ``shots`` images from each of two cameras, and distractors, which the small protocols do not use."""
    pids = np.repeat(np.arange(1, identities + 1), 2 * shots)
    camids = np.tile(np.repeat([1, 2], shots), identities)
    features = rng.normal(size=(identities, 8))[pids - 1] + rng.normal(0, 1, (len(pids), 8))
    gallery = FeatureSet(
        np.append(features, rng.normal(size=(5, 8)), 0).astype(np.float32), np.append(pids, [0] * 5), np.append(camids, [1] * 5)
    )
    return FeatureSet(features.astype(np.float32), pids, camids), gallery


def test_old_cuhk03_has_twenty_splits_of_a_hundred_identities_with_one_gallery_image_from_another_camera():
    query, gallery = two_cameras(np.random.default_rng(0), 130)
    scored = score_protocol(PROTOCOLS["cuhk03_old"], query, gallery, seed=5)
    assert sorted(set(scored.split)) == list(range(20))
    drawn = []
    for split in range(20):
        query_idx = scored.query_idx[scored.split == split]
        assert len(query_idx) == len(set(query_idx)) == 100 * 6
        drawn.append(frozenset(query.pids[query_idx]))
        assert len(drawn[-1]) == 100
    assert len(set(drawn)) == 20
    assert (scored.scores.num_positives == 1).all()
    assert scored.scores.first_hit.max() <= 100, "the gallery has one image of each of a hundred identities"
    np.testing.assert_allclose(scored.scores.ap, 1 / scored.scores.first_hit)
    again, other = (score_protocol(PROTOCOLS["cuhk03_old"], query, gallery, seed=seed) for seed in (5, 6))
    np.testing.assert_array_equal(scored.scores.ap, again.scores.ap)
    assert not np.array_equal(scored.scores.ap, other.scores.ap)


def test_single_shots_never_come_from_the_camera_of_the_query():
    """The query's camera holds a copy of it: if that were ever drawn, it would be ignored and the query would have no match."""
    query, gallery = two_cameras(np.random.default_rng(1), 4, shots=1)
    scored = score_protocol(Protocol(num_splits=5, num_identities=4, single_shot=True), query, gallery)
    assert (scored.scores.num_positives == 1).all()


def test_viper_draws_half_of_the_identities_ten_times():
    query, gallery = two_cameras(np.random.default_rng(2), 31, shots=1)
    scored = score_protocol(PROTOCOLS["viper"], query, gallery)
    assert sorted(set(scored.split)) == list(range(10))
    halves = [frozenset(query.pids[scored.query_idx[scored.split == split]]) for split in range(10)]
    assert {len(half) for half in halves} == {15} and len(set(halves)) == 10
    in_gallery = np.isin(gallery.pids, list(halves[3]))
    query_idx = scored.query_idx[scored.split == 3]
    expected = score_queries(*(part[query_idx] for part in query), *(part[in_gallery] for part in gallery))
    np.testing.assert_array_equal(scored.scores.ap[scored.split == 3], expected.ap)
    summary = summarise(scored.scores, scored.split)
    assert summary.mean_ap == pytest.approx(np.mean([scored.scores.ap[scored.split == split].mean() for split in range(10)]))


@pytest.mark.parametrize(("name", "needed"), [("cuhk03_old", "100"), ("viper", "2")])
def test_too_few_identities_for_a_protocol_are_an_error(name, needed):
    query, gallery = two_cameras(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match=f"requires {needed} identities .* got 1"):
        score_protocol(PROTOCOLS[name], query, gallery)


def ranking_scores(is_match):
    """Score one ranking of booleans: plain and trapezoidal AP, INP, first hit, and the CMC curve."""
    rank = np.flatnonzero(is_match) + 1
    return np.array([*average_precision(rank), len(rank) / rank[-1], rank[0], *(rank[0] <= np.arange(1, 9))])


def draw_tied_gallery(rng):
    """Draw one query and a gallery with only three different directions."""
    gallery = np.array([[1, 0], [1, 1], [0, 1]], np.float32)[rng.integers(3, size=7)]
    pids = rng.integers(1, 3, 7)
    pids[rng.integers(7)] = 1
    return np.array([[1, 0.1]], np.float32), gallery, pids


@few_examples
@given(seeds)
def test_the_tie_policies_give_the_worst_the_best_and_the_mean_of_all_orders(seed):
    query, gallery, pids = draw_tied_gallery(np.random.default_rng(seed))
    level = [round(-cosine(query[0], other), 5) for other in gallery]
    groups = [[pids[i] == 1 for i in range(7) if level[i] == value] for value in sorted(set(level))]
    orders = [[]]
    for group in groups:
        orders = [order + list(arrangement) for order in orders for arrangement in sorted(set(permutations(group)))]
    every_order = np.array([ranking_scores(order) for order in orders])  # distinct arrangements are equally likely
    arguments = query, np.array([1]), np.array([-1]), gallery, pids, np.full(len(pids), -1)
    by_policy = {}
    for ties in ("pessimistic", "optimistic", "expected"):
        scores = score_queries(*arguments, ties=ties)
        by_policy[ties] = np.array([*(column[0] for column in scores[:4]), *cmc_per_query(scores, 8)[0]])
    np.testing.assert_allclose(by_policy["expected"], every_order.mean(0), atol=1e-12)
    np.testing.assert_allclose(by_policy["pessimistic"], np.where(np.arange(12) == 3, every_order.max(0), every_order.min(0)))
    np.testing.assert_allclose(by_policy["optimistic"], np.where(np.arange(12) == 3, every_order.min(0), every_order.max(0)))


@few_examples
@given(seeds)
def test_without_ties_the_policies_agree(seed):
    query, gallery = draw_sets(np.random.default_rng(seed), d=64)
    cosines = np.sort([[cosine(feature, other) for other in gallery.features] for feature in query.features], axis=1)
    assume(np.diff(cosines, axis=1).min() > 1e-5)
    pessimistic, *others = (score_queries(*query, *gallery, ties=ties) for ties in ("pessimistic", "optimistic", "expected"))
    for other in others:
        for left, right in zip(pessimistic, other, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-12)


def test_constant_features_score_at_chance_with_expected_ties():
    pids = np.arange(400) % 4 + 1
    scores = score_queries(
        np.ones((1, 5), np.float32), np.array([1]), np.array([-1]), np.ones((400, 5), np.float32), pids, np.full(400, -1), ties="expected"
    )
    rng = np.random.default_rng(0)
    drawn = np.array([average_precision(np.flatnonzero(rng.permutation(pids) == 1) + 1) for _ in range(4000)])
    np.testing.assert_allclose((scores.ap[0], scores.ap_trapezoidal[0]), drawn.mean(0), atol=4 * drawn.std() / np.sqrt(4000))
    assert cmc_per_query(scores)[0, 0] == pytest.approx(1 / 4)


def test_queries_without_a_match_are_left_out_or_count_as_zero():
    one, none = np.array([0.5, np.nan, 1.0]), np.zeros(3, np.int64)
    scores = Scores(one, one, one, 1 / one, np.array([2, 0, 1]), np.array([1, 0, 1]), none)
    left_out, zero = (summarise(scores, unscored=policy) for policy in ("left_out", "zero"))
    assert (left_out.mean_ap, zero.mean_ap) == (0.75, 0.5)
    assert (left_out.cmc[0], zero.cmc[0], left_out.cmc[1], zero.cmc[1]) == pytest.approx((1 / 2, 1 / 3, 1, 2 / 3))
    assert left_out[-2:] == zero[-2:] == (2, 1)


@few_examples
@given(seeds)
def test_reranking_ignores_junk_and_the_order_of_the_gallery(seed):
    rng = np.random.default_rng(seed)
    query, gallery = draw_sets(rng)
    settings_ = Reranking(k1=6, k2=3)
    expected = score_protocol(PROTOCOLS["market1501"], query, gallery, reranking=settings_).scores
    order = rng.permutation(np.flatnonzero(gallery.pids != -1))
    reordered = FeatureSet(*(part[order] for part in gallery))
    scores = score_protocol(PROTOCOLS["market1501"], query, reordered, reranking=settings_).scores
    for left, right in zip(scores, expected, strict=True):
        np.testing.assert_allclose(left, right)


def test_a_memory_mapped_gallery_gives_equal_scores(tmp_path, monkeypatch):
    query, gallery = draw_sets(np.random.default_rng(4), gallery=300)
    np.save(tmp_path / "gallery.npy", gallery.features)
    expected = score_protocol(PROTOCOLS["market1501"], query, gallery).scores
    monkeypatch.setattr(ranks, "GALLERY_BLOCK", 64)
    mapped = FeatureSet(np.load(tmp_path / "gallery.npy", mmap_mode="r"), *gallery[1:])
    for left, right in zip(score_protocol(PROTOCOLS["market1501"], query, mapped).scores, expected, strict=True):
        np.testing.assert_array_equal(left, right)
