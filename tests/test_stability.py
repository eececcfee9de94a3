"""Clusters that are stable under small changes of epsilon: against Python sets, and through DBSCAN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.clustering.density import cluster_by_density, dbscan, jaccard_distances_below
from pul_core.clustering.stability import cluster_jaccard_per_image, keep_stable_clusters
from pul_core.settings import Dbscan

CLUSTERS = st.lists(st.integers(-1, 4), min_size=1, max_size=25)


def members(clusters, image):
    """Return the images in the cluster of an image."""
    return {i for i, c in enumerate(clusters) if c == clusters[image]} if clusters[image] >= 0 else {image}


@given(st.data(), CLUSTERS)
@settings(max_examples=150, deadline=None)
def test_the_jaccard_index_is_intersection_over_union(data, one):
    other = data.draw(st.lists(st.integers(-1, 3), min_size=len(one), max_size=len(one)))
    jaccard = cluster_jaccard_per_image(np.array(one), np.array(other))
    for image in range(len(one)):
        a, b = members(one, image), members(other, image)
        assert jaccard[image] == pytest.approx(len(a & b) / len(a | b))
    np.testing.assert_array_equal(jaccard, cluster_jaccard_per_image(np.array(other), np.array(one)))


def slow_keep_stable_clusters(assignments, independence, compactness, share):
    n = len(assignments)
    clusters = sorted({c for c in assignments if c >= 0})
    best = {c: max(independence[i] for i in range(n) if assignments[i] == c) for c in clusters}
    kept = []
    for c in clusters:
        members = [i for i in range(n) if assignments[i] == c]
        compact = [i for i in members if compactness[i] == max(compactness[j] for j in members)]
        num_better = sum(value > best[c] for value in best.values())
        if len(compact) > 1 and num_better < share * len(clusters) - 1e-9:
            kept.append(compact)
    kept.sort()
    return [next((number for number, members in enumerate(kept) if i in members), -1) for i in range(n)]


@given(st.data(), CLUSTERS, st.sampled_from([0.01, 0.5, 0.7, 0.9, 0.95, 1.0]))
@settings(max_examples=150, deadline=None)
def test_the_clusters_that_are_kept_equal_those_of_a_loop_over_clusters(data, drawn, share):
    _, dense = np.unique(np.array([c for c in drawn if c >= 0], int), return_inverse=True)
    clusters = np.array(drawn)
    clusters[clusters >= 0] = dense
    scores = st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=len(drawn), max_size=len(drawn))
    independence, compactness = np.array(data.draw(scores)), np.array(data.draw(scores))
    stable = keep_stable_clusters(clusters, independence, compactness, independent_share=share)
    assert stable.tolist() == slow_keep_stable_clusters(clusters.tolist(), independence, compactness, share)


@given(st.integers(1, 40), st.sampled_from([0.1, 0.5, 0.7, 0.9, 0.95, 1.0]))
@settings(max_examples=100, deadline=None)
def test_no_more_clusters_are_kept_than_the_share(k, share):
    independence = np.repeat(np.random.default_rng(k).permutation(k) / k, 2)
    stable = keep_stable_clusters(np.repeat(np.arange(k), 2), independence, np.ones(2 * k), independent_share=share)
    assert share * k - 1e-9 <= stable.max() + 1 < share * k + 1


def test_a_cluster_without_links_at_the_smaller_epsilon_stays_complete():
    tight = cluster_jaccard_per_image(np.zeros(4, int), np.full(4, -1))
    assert keep_stable_clusters(np.zeros(4, int), np.ones(4), tight, independent_share=0.9).tolist() == [0, 0, 0, 0]


def test_without_clusters_none_is_kept():
    none = np.full(3, -1)
    assert keep_stable_clusters(none, np.ones(3), np.ones(3), independent_share=0.9).tolist() == [-1, -1, -1]


@pytest.fixture(scope="module")
def crowd():
    """Draw forty people with seven images each on two cameras, close enough to be confused."""
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(40, 24))
    features = (np.repeat(centres, 7, axis=0) + rng.normal(0, 1.0, (280, 24))).astype(np.float32)
    return features, np.tile(np.arange(7) % 2, 40), np.repeat(np.arange(40), 7)


OPTIONS = {"num_neighbours": 8, "num_averaged": 3}


def purity(clusters, people):
    return sum(np.bincount(people[clusters == c]).max() for c in range(clusters.max() + 1)) / (clusters >= 0).sum()


def test_a_margin_keeps_fewer_and_purer_clusters(crowd):
    features, camids, people = crowd
    plain, strict = (
        cluster_by_density(features, camids, Dbscan(max_distance=0.6, min_samples=3, margin=margin, **OPTIONS)).cluster
        for margin in (0.0, 0.05)
    )
    distances = jaccard_distances_below(features, camids, max_distance=0.65, **OPTIONS)
    expected, looser, tighter = (dbscan(distances, max_distance=epsilon, min_samples=3) for epsilon in (0.6, 0.65, 0.55))
    assert plain.tolist() == expected.tolist()
    jaccard = cluster_jaccard_per_image(plain, looser), cluster_jaccard_per_image(plain, tighter)
    assert strict.tolist() == keep_stable_clusters(plain, *jaccard, independent_share=0.9).tolist()
    assert 0 < np.count_nonzero(strict >= 0) < np.count_nonzero(plain >= 0)
    assert all(len(set(plain[strict == c].tolist())) == 1 for c in range(strict.max() + 1))
    assert purity(strict, people) > purity(plain, people)


def test_a_margin_keeps_clusters_of_identical_features():
    features = np.array([[1, 0], [1, 0], [0, 1], [0, 1.0]], np.float32)
    options = Dbscan(num_neighbours=1, num_averaged=1, max_distance=0.3, margin=0.2)
    assert cluster_by_density(features, np.zeros(4, int), options).cluster.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("max_distance", "margin"), [(0.3, 0.3), (0.9, 0.1)])
def test_a_margin_that_leaves_the_range_of_distances_is_refused(max_distance, margin):
    with pytest.raises(ValueError, match="lower the margin"):
        Dbscan(max_distance=max_distance, margin=margin)
