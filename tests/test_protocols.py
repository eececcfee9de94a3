"""Protocols and policies: against slow rankings, one query at a time, and every order of ties."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pul_core.scoring.evaluation import Scores, average_precision, hit_within, score_queries, summarise
from pul_core.scoring.protocols import PROTOCOLS, Protocol, Side, evaluate
from pul_core.scoring.reranking import Reranking

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def sides(rng, *, queries=12, gallery=60, identities=8, cameras=3, d=8):
    """Random features; distractors, junk, unknown cameras and identities without a match among them."""
    query = Side(
        rng.normal(size=(queries, d)).astype(np.float32), rng.integers(0, identities + 1, queries), rng.integers(-1, cameras, queries)
    )
    return query, Side(
        rng.normal(size=(gallery, d)).astype(np.float32), rng.integers(-1, identities, gallery), rng.integers(-1, cameras, gallery)
    )


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def walk(feature, pid, camid, gallery, left_out):
    """Rank a gallery for one query and return the ranks of the right answers."""
    ranking = sorted(
        (-cosine(feature, other), other_pid == pid)
        for other, other_pid, other_camid in zip(*gallery, strict=True)
        if other_pid != -1 and not left_out(pid, camid, other_pid, other_camid)
    )
    return np.array([rank for rank, (_, right) in enumerate(ranking, 1) if right and pid > 0], np.int64)


def same_camera(camid, other_camid):
    return camid == other_camid and camid != -1


RULES = {
    "market1501": lambda pid, camid, other_pid, other_camid: pid == other_pid and same_camera(camid, other_camid),
    "cross_camera": lambda pid, camid, other_pid, other_camid: same_camera(camid, other_camid),
}


@pytest.mark.parametrize("name", RULES)
@few
@given(seeds)
def test_what_is_left_out(name, seed):
    query, gallery = sides(np.random.default_rng(seed))
    assume(all(np.diff(sorted(cosine(asked, other) for other in gallery[0])).min() > 1e-6 for asked in query[0]))  # no ties by rounding
    found = evaluate(PROTOCOLS[name], query, gallery).scores
    for i, asked in enumerate(zip(*query, strict=True)):
        rank = walk(*asked, gallery, RULES[name])
        assert found.num_positives[i] == len(rank)
        if len(rank):
            assert found.first_hit[i] == rank[0]
            assert found.inp[i] == pytest.approx(len(rank) / rank[-1])
            assert (found.ap[i], found.ap_trapezoidal[i]) == pytest.approx(average_precision(rank))


def test_new_cuhk03_is_scored_like_market():
    assert PROTOCOLS["cuhk03_new"] == PROTOCOLS["market1501"]


def test_without_cameras_nothing_is_left_out():
    query, gallery = sides(np.random.default_rng(0))
    unknown = [Side(side.features, side.pids, np.full(len(side.pids), -1)) for side in (query, gallery)]
    none = [Side(side.features, side.pids) for side in (query, gallery)]
    for name in RULES:
        for with_none, with_unknown in zip(
            evaluate(PROTOCOLS[name], *none).scores, evaluate(PROTOCOLS[name], *unknown).scores, strict=True
        ):
            np.testing.assert_array_equal(with_none, with_unknown)
    positives = evaluate(PROTOCOLS["cross_camera"], *none).scores.num_positives
    np.testing.assert_array_equal(positives, [(pid > 0) * (gallery.pids == pid).sum() for pid in query.pids])


def test_many_queries_of_one_person_on_one_camera_are_pooled():
    rng = np.random.default_rng(3)
    query, gallery = sides(rng, queries=20, gallery=80, identities=4)
    query, gallery = (Side(side.features, side.pids, side.camids % 3) for side in (query, gallery))
    pooled = []
    for pid, camid in zip(query.pids, query.camids, strict=True):
        images = [f / np.linalg.norm(f) for side in (query, gallery) for f, p, c in zip(*side, strict=True) if (p, c) == (pid, camid)]
        pooled.append(np.mean(images, axis=0, dtype=np.float64).astype(np.float32))
    expected = score_queries(np.array(pooled), *query[1:], *gallery)
    found = evaluate(PROTOCOLS["multi_query"], query, gallery).scores
    assert (found.num_positives > 0).sum() > 5
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right)
    with pytest.raises(ValueError, match="needs the camera"):
        evaluate(PROTOCOLS["multi_query"], Side(*query[:2]), gallery)


def two_cameras(rng, identities, shots=3):
    """Each identity with some images on either camera, and distractors that the small protocols do not know."""
    pids = np.repeat(np.arange(1, identities + 1), 2 * shots)
    camids = np.tile(np.repeat([1, 2], shots), identities)
    features = rng.normal(size=(identities, 8))[pids - 1] + rng.normal(0, 1, (len(pids), 8))
    gallery = Side(np.append(features, rng.normal(size=(5, 8)), 0).astype(np.float32), np.append(pids, [0] * 5), np.append(camids, [1] * 5))
    return Side(features.astype(np.float32), pids, camids), gallery


def test_old_cuhk03_has_twenty_splits_of_a_hundred_people_with_one_gallery_shot_on_another_camera():
    query, gallery = two_cameras(np.random.default_rng(0), 130)
    found = evaluate(PROTOCOLS["cuhk03_old"], query, gallery, seed=5)
    assert sorted(set(found.split)) == list(range(20))
    people = []
    for split in range(20):
        asked = found.query[found.split == split]
        assert len(asked) == len(set(asked)) == 100 * 6
        people.append(frozenset(query.pids[asked]))
        assert len(people[-1]) == 100
    assert len(set(people)) == 20
    assert (found.scores.num_positives == 1).all()
    assert found.scores.first_hit.max() <= 100, "a gallery of one shot of each of a hundred people"
    np.testing.assert_allclose(found.scores.ap, 1 / found.scores.first_hit)
    again, other = (evaluate(PROTOCOLS["cuhk03_old"], query, gallery, seed=seed) for seed in (5, 6))
    np.testing.assert_array_equal(found.scores.ap, again.scores.ap)
    assert not np.array_equal(found.scores.ap, other.scores.ap)


def test_single_shots_never_come_from_the_camera_of_the_query():
    """The query's own camera holds its twin: if that were ever drawn it would be left out, and the query had no answer."""
    query, gallery = two_cameras(np.random.default_rng(1), 4, shots=1)
    found = evaluate(Protocol(num_splits=5, num_identities=4, single_shot=True), query, gallery)
    assert (found.scores.num_positives == 1).all()


def test_viper_halves_the_people_ten_times():
    query, gallery = two_cameras(np.random.default_rng(2), 31, shots=1)
    found = evaluate(PROTOCOLS["viper"], query, gallery)
    assert sorted(set(found.split)) == list(range(10))
    halves = [frozenset(query.pids[found.query[found.split == split]]) for split in range(10)]
    assert {len(half) for half in halves} == {15} and len(set(halves)) == 10
    chosen = np.isin(gallery.pids, list(halves[3]))
    asked = found.query[found.split == 3]
    expected = score_queries(*(part[asked] for part in query), *(part[chosen] for part in gallery))
    np.testing.assert_array_equal(found.scores.ap[found.split == 3], expected.ap)
    summary = summarise(found.scores, found.split)
    assert summary.mean_ap == pytest.approx(np.mean([found.scores.ap[found.split == split].mean() for split in range(10)]))


@pytest.mark.parametrize(("name", "needed"), [("cuhk03_old", "100"), ("viper", "2")])
def test_too_few_people_for_a_protocol_are_refused(name, needed):
    query, gallery = two_cameras(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match=f"needs {needed} identities .* there are 1"):
        evaluate(PROTOCOLS[name], query, gallery)


def ranking_scores(right):
    """Score one ranking, told as a tuple of booleans: plain and trapezoidal AP, INP, first hit, and the CMC curve."""
    rank = np.flatnonzero(right) + 1
    return np.array([*average_precision(rank), len(rank) / rank[-1], rank[0], *(rank[0] <= np.arange(1, 9))])


def tied_layout(rng):
    """One query and a gallery on three directions only."""
    gallery = np.array([[1, 0], [1, 1], [0, 1]], np.float32)[rng.integers(3, size=7)]
    pids = rng.integers(1, 3, 7)
    pids[rng.integers(7)] = 1
    return np.array([[1, 0.1]], np.float32), gallery, pids


@few
@given(seeds)
def test_policies_of_ties_are_the_worst_the_best_and_the_mean_of_all_orders(seed):
    query, gallery, pids = tied_layout(np.random.default_rng(seed))
    level = [round(-cosine(query[0], other), 5) for other in gallery]
    groups = [[pids[i] == 1 for i in range(7) if level[i] == value] for value in sorted(set(level))]
    orders = [[]]
    for group in groups:
        orders = [order + list(some) for order in orders for some in sorted(set(permutations(group)))]
    every = np.array([ranking_scores(order) for order in orders])  # distinct arrangements are equally likely
    asked = query, np.array([1]), None, gallery, pids, None
    found = {}
    for ties in ("pessimistic", "optimistic", "expected"):
        scores = score_queries(*asked, ties=ties)
        found[ties] = np.array([*(column[0] for column in scores[:4]), *hit_within(scores, 8)[0]])
    np.testing.assert_allclose(found["expected"], every.mean(0), atol=1e-12)
    np.testing.assert_allclose(found["pessimistic"], np.where(np.arange(12) == 3, every.max(0), every.min(0)))
    np.testing.assert_allclose(found["optimistic"], np.where(np.arange(12) == 3, every.min(0), every.max(0)))


@few
@given(seeds)
def test_without_ties_the_policies_agree(seed):
    query, gallery = sides(np.random.default_rng(seed), d=64)
    distances = np.sort([[cosine(one, other) for other in gallery.features] for one in query.features], axis=1)
    assume(np.diff(distances, axis=1).min() > 1e-5)
    pessimistic, *others = (score_queries(*query, *gallery, ties=ties) for ties in ("pessimistic", "optimistic", "expected"))
    for other in others:
        for left, right in zip(pessimistic, other, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-12)


def test_constant_features_are_expected_to_score_by_chance():
    pids = np.arange(400) % 4 + 1
    scores = score_queries(np.ones((1, 5), np.float32), np.array([1]), None, np.ones((400, 5), np.float32), pids, None, ties="expected")
    rng = np.random.default_rng(0)
    drawn = np.array([average_precision(np.flatnonzero(rng.permutation(pids) == 1) + 1) for _ in range(4000)])
    np.testing.assert_allclose((scores.ap[0], scores.ap_trapezoidal[0]), drawn.mean(0), atol=4 * drawn.std() / np.sqrt(4000))
    assert hit_within(scores)[0, 0] == pytest.approx(1 / 4)


def test_queries_without_an_answer_are_left_out_or_count_as_zero():
    one, none = np.array([0.5, np.nan, 1.0]), np.zeros(3, np.int64)
    scores = Scores(one, one, one, 1 / one, np.array([2, 0, 1]), np.array([1, 0, 1]), none)
    left_out, zero = (summarise(scores, unscored=policy) for policy in ("left_out", "zero"))
    assert (left_out.mean_ap, zero.mean_ap) == (0.75, 0.5)
    assert (left_out.cmc[0], zero.cmc[0], left_out.cmc[1], zero.cmc[1]) == pytest.approx((1 / 2, 1 / 3, 1, 2 / 3))
    assert left_out[-2:] == zero[-2:] == (2, 1)


@pytest.mark.parametrize("options", [{"ties": "lucky"}, {"own_camera": "none"}])
def test_a_policy_that_does_not_exist_is_refused(options):
    query, gallery = sides(np.random.default_rng(0))
    with pytest.raises(ValueError, match="choose of"):
        score_queries(*query, *gallery, **options)
    with pytest.raises(ValueError, match="unscored is"):
        summarise(score_queries(*query, *gallery), unscored="forgotten")


@few
@given(seeds)
def test_reranking_ignores_junk_and_the_order_of_the_gallery(seed):
    rng = np.random.default_rng(seed)
    query, gallery = sides(rng)
    settings_ = Reranking(k1=6, k2=3)
    expected = evaluate(PROTOCOLS["market1501"], query, gallery, reranking=settings_).scores
    order = rng.permutation(np.flatnonzero(gallery.pids != -1))
    found = evaluate(PROTOCOLS["market1501"], query, Side(*(part[order] for part in gallery)), reranking=settings_).scores
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right)


def test_a_memory_mapped_gallery_is_scored_as_it_lies(tmp_path, monkeypatch):
    from pul_core.scoring import ranks

    query, gallery = sides(np.random.default_rng(4), gallery=300)
    np.save(tmp_path / "gallery.npy", gallery.features)
    expected = evaluate(PROTOCOLS["market1501"], query, gallery).scores
    monkeypatch.setattr(ranks, "GALLERY", 64)
    mapped = Side(np.load(tmp_path / "gallery.npy", mmap_mode="r"), *gallery[1:])
    for left, right in zip(evaluate(PROTOCOLS["market1501"], query, mapped).scores, expected, strict=True):
        np.testing.assert_array_equal(left, right)
