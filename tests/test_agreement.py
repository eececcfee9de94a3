"""What of a clustering agrees with a tighter and a looser one: against sets written out, and through DBSCAN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.clustering.density import cluster_by_density, dbscan, jaccard_distances_below
from pul_core.clustering.stability import disband, overlap_of_own_clusters

CLUSTERS = st.lists(st.integers(-1, 4), min_size=1, max_size=25)


def members(clusters, image):
    return {i for i, c in enumerate(clusters) if c == clusters[image]} if clusters[image] >= 0 else {image}


@given(st.data(), CLUSTERS)
@settings(max_examples=150, deadline=None)
def test_an_overlap_is_intersection_over_union(data, one):
    other = data.draw(st.lists(st.integers(-1, 3), min_size=len(one), max_size=len(one)))
    found = overlap_of_own_clusters(np.array(one), np.array(other))
    for image in range(len(one)):
        a, b = members(one, image), members(other, image)
        assert found[image] == pytest.approx(len(a & b) / len(a | b))
    np.testing.assert_array_equal(found, overlap_of_own_clusters(np.array(other), np.array(one)))


def slow_disband(found, independence, compactness, share):
    clusters = sorted({c for c in found if c >= 0})
    best = {c: max(independence[i] for i in range(len(found)) if found[i] == c) for c in clusters}
    ranked = sorted(best.values(), reverse=True)
    kept = []
    for c in clusters:
        inside = [i for i in range(len(found)) if found[i] == c]
        core = [i for i in inside if compactness[i] == max(compactness[j] for j in inside)]
        better = sum(value > best[c] for value in ranked)
        if len(core) > 1 and better < share * len(ranked) - 1e-9:
            kept.append(core)
    kept.sort()
    return [next((number for number, core in enumerate(kept) if i in core), -1) for i in range(len(found))]


@given(st.data(), CLUSTERS, st.sampled_from([0.01, 0.5, 0.7, 0.9, 0.95, 1.0]))
@settings(max_examples=150, deadline=None)
def test_what_is_left_is_what_is_left_cluster_by_cluster(data, found, share):
    _, dense = np.unique(np.array([c for c in found if c >= 0], int), return_inverse=True)
    clusters = np.array(found)
    clusters[clusters >= 0] = dense
    scores = st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=len(found), max_size=len(found))
    independence, compactness = np.array(data.draw(scores)), np.array(data.draw(scores))
    left = disband(clusters, independence, compactness, independent_share=share)
    assert left.tolist() == slow_disband(clusters.tolist(), independence, compactness, share)


@given(st.integers(1, 40), st.sampled_from([0.1, 0.5, 0.7, 0.9, 0.95, 1.0]))
@settings(max_examples=100, deadline=None)
def test_the_share_is_kept_and_no_cluster_more(k, share):
    independence = np.repeat(np.random.default_rng(k).permutation(k) / k, 2)
    left = disband(np.repeat(np.arange(k), 2), independence, np.ones(2 * k), independent_share=share)
    assert share * k - 1e-9 <= left.max() + 1 < share * k + 1


def test_a_cluster_that_falls_apart_altogether_stays_whole():
    tight = overlap_of_own_clusters(np.zeros(4, int), np.full(4, -1))
    assert disband(np.zeros(4, int), np.ones(4), tight, independent_share=0.9).tolist() == [0, 0, 0, 0]


def test_no_cluster_at_all_stays_none():
    none = np.full(3, -1)
    assert disband(none, np.ones(3), np.ones(3), independent_share=0.9).tolist() == [-1, -1, -1]


@pytest.fixture(scope="module")
def crowd():
    """Forty people, seven images each, on two cameras, close enough to be mistaken."""
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(40, 24))
    features = (np.repeat(centres, 7, axis=0) + rng.normal(0, 1.0, (280, 24))).astype(np.float32)
    return features, np.tile(np.arange(7) % 2, 40), np.repeat(np.arange(40), 7)


OPTIONS = {"num_neighbours": 8, "num_averaged": 3}


def purity(found, truth):
    inside = found >= 0
    return sum(np.bincount(truth[found == c]).max() for c in range(found.max() + 1)) / inside.sum()


def test_a_margin_keeps_a_part_of_the_clusters_and_a_purer_one(crowd):
    features, cameras, people = crowd
    plain, strict = (
        cluster_by_density(features, cameras, max_distance=0.6, min_samples=3, margin=margin, **OPTIONS).cluster for margin in (0.0, 0.05)
    )
    linked = jaccard_distances_below(features, cameras, max_distance=0.65, **OPTIONS)
    expected, looser, tighter = (dbscan(linked, max_distance=distance, min_samples=3) for distance in (0.6, 0.65, 0.55))
    assert plain.tolist() == expected.tolist()
    overlaps = overlap_of_own_clusters(plain, looser), overlap_of_own_clusters(plain, tighter)
    assert strict.tolist() == disband(plain, *overlaps, independent_share=0.9).tolist()
    assert 0 < np.count_nonzero(strict >= 0) < np.count_nonzero(plain >= 0)
    assert all(len(set(plain[strict == c].tolist())) == 1 for c in range(strict.max() + 1))
    assert purity(strict, people) > purity(plain, people)


def test_a_margin_leaves_what_coincides():
    features = np.array([[1, 0], [1, 0], [0, 1], [0, 1.0]], np.float32)
    options = {"num_neighbours": 1, "num_averaged": 1, "max_distance": 0.3, "min_samples": 2}
    assert cluster_by_density(features, np.zeros(4, int), **options, margin=0.2).cluster.tolist() == [0, 0, 1, 1]
    for distance, margin in ((0.3, 0.3), (0.9, 0.1)):
        with pytest.raises(ValueError, match="lower the margin"):
            cluster_by_density(features, np.zeros(4, int), **options | {"max_distance": distance}, margin=margin)
