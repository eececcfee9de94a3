"""Which images are reliable: against the rule applied one image at a time, and at both ends of lambda."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pul_core.clustering.kmeans import Clustering, cluster
from pul_core.selection import UnreliableError, select_reliable

WAYS = [(close_to, keep) for close_to in ("own_centre", "any_centre") for keep in (False, True)]
LAMBDAS = st.sampled_from([-1.0, 0.0, 0.3, 0.5, 0.85, 0.95, 1.0])


def draw(seed):
    """Draw a clustering whose centres may be members of other clusters, shared, or off 1 by rounding, and cosines that meet lambda."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 6))
    n = int(rng.integers(2 * k, 40))
    labels = rng.permutation(np.append(np.arange(k), rng.integers(k, size=n - k)))
    members = [rng.choice(np.flatnonzero(labels == c)) for c in range(k)]
    centre = np.where(rng.random(k) < 0.7, members, rng.integers(n, size=k))
    own = rng.choice([-0.9, 0.2, 0.3, 0.5, 0.84, 0.85, 0.86, 0.97], size=n).astype(np.float32)
    largest = np.maximum(own, rng.choice([0.1, 0.85, 0.96], size=n)).astype(np.float32)
    rounded = rng.choice([1 - 1e-7, 1, 1 + 2e-7], size=n).astype(np.float32)
    own = np.where(np.arange(n) == centre[labels], rounded, own)
    largest = np.where(np.isin(np.arange(n), centre), rounded, largest)
    return Clustering(labels, centre, own, largest, 0.0, 1)


clusterings = st.integers(0, 2**32 - 1).map(draw)


def oracle(clustering, min_similarity, close_to):
    """Judge one image after the other."""
    kept = []
    for i, own_cluster in enumerate(clustering.cluster):
        if close_to == "own_centre":
            keep = clustering.similarity[i] > np.float32(min_similarity) or clustering.centre[own_cluster] == i
        else:
            keep = clustering.similarity_any[i] > np.float32(min_similarity) or i in list(clustering.centre)
        if keep:
            kept.append(i)
    return kept


def select(clustering, min_similarity, close_to="own_centre", keep=False):
    return select_reliable(clustering, min_similarity=min_similarity, close_to=close_to, keep_empty_classes=keep)


@pytest.mark.parametrize(("close_to", "keep"), WAYS)
@settings(max_examples=120, deadline=None)
@given(clusterings, LAMBDAS)
def test_the_rule_equals_its_restatement(close_to, keep, clustering, min_similarity):
    expected = oracle(clustering, min_similarity, close_to)
    clusters = [int(clustering.cluster[i]) for i in expected]
    if sum(clusters.count(c) >= 2 for c in set(clusters)) < 2:
        with pytest.raises(UnreliableError):
            select(clustering, min_similarity, close_to, keep)
        return
    found = select(clustering, min_similarity, close_to, keep)
    assert found.positions.tolist() == expected
    judged = clustering.similarity if close_to == "own_centre" else clustering.similarity_any
    assert found.similarity.tolist() == [judged[i] for i in expected]
    names = list(range(len(clustering.centre))) if keep else sorted(set(clusters))
    assert found.num_classes == len(names)
    assert found.pseudo_labels.tolist() == [names.index(c) for c in clusters]


@pytest.mark.parametrize("close_to", ["own_centre", "any_centre"])
@settings(max_examples=60, deadline=None)
@given(clusterings, LAMBDAS, LAMBDAS)
def test_a_larger_lambda_selects_a_subset(close_to, clustering, one, other):
    assume(one != other)
    sets = {}
    for value in (one, other):
        try:
            sets[value] = set(select(clustering, value, close_to).positions.tolist())
        except UnreliableError:
            sets[value] = set()
    assert sets[max(one, other)] <= sets[min(one, other)]


@settings(max_examples=60, deadline=None)
@given(clusterings, LAMBDAS)
def test_without_kept_gaps_every_class_has_an_image(clustering, min_similarity):
    for close_to in ("own_centre", "any_centre"):
        try:
            found = select(clustering, min_similarity, close_to)
        except UnreliableError:
            continue
        assert np.unique(found.pseudo_labels).tolist() == list(range(found.num_classes))


def hand_made(similarity, similarity_any=None, centre=(0, 3)):
    """Two clusters of three images."""
    similarity = np.array(similarity, np.float32)
    largest = similarity if similarity_any is None else np.array(similarity_any, np.float32)
    return Clustering(np.array([0, 0, 0, 1, 1, 1]), np.array(centre), similarity, largest, 0.0, 1)


def test_a_cosine_equal_to_lambda_is_not_reliable():
    just_more = np.nextafter(np.float32(0.85), np.float32(1))
    clustering = hand_made([1, just_more, 0.85, 1, just_more, 0.85])
    assert select(clustering, 0.85).positions.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("close_to", ["own_centre", "any_centre"])
@pytest.mark.parametrize("off", [-3e-7, 0, 3e-7])
def test_every_centre_stays_at_lambda_one_whatever_float_says(close_to, off):
    """The second image of each cluster is rounded to above 1, so that two clusters can train."""
    clustering = hand_made([1 + off, 1 + 1e-6, 0.2, 1 + off, 1 + 1e-6, 0.2])
    assert select(clustering, 1.0, close_to).positions.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(("close_to", "keep"), WAYS)
@pytest.mark.parametrize("centre_from", ["members", "all"])
@pytest.mark.fault("a reliable set that is everything", "every image is kept; the run stops as `stable_everything`")
def test_lambda_minus_one_keeps_every_image_in_its_cluster(close_to, keep, centre_from):
    features = np.random.default_rng(3).normal(size=(60, 5)).astype(np.float32)
    clustering = cluster(features, num_clusters=7, normalise=True, num_restarts=1, max_passes=50, centre_from=centre_from, seed=0)
    found = select(clustering, -1, close_to, keep)
    assert found.positions.tolist() == list(range(60))
    assert found.pseudo_labels.tolist() == clustering.cluster.tolist()
    assert found.num_classes == 7


def test_close_to_any_centre_takes_images_that_are_close_to_another_clusters_centre_and_labels_them_by_their_own():
    clustering = hand_made([1, 0.9, 0.1, 1, 0.9, 0.1], similarity_any=[1, 0.9, 0.95, 1, 0.9, 0.1])
    assert select(clustering, 0.85, "own_centre").positions.tolist() == [0, 1, 3, 4]
    found = select(clustering, 0.85, "any_centre")
    assert found.positions.tolist() == [0, 1, 2, 3, 4]
    assert found.pseudo_labels.tolist() == [0, 0, 0, 1, 1]


@pytest.fixture
def shared_centre():
    """Four clusters of which 1 and 2 share image 0 of cluster 0 as their centre, as the released code allows."""
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    centre = np.array([0, 0, 0, 6])
    own = np.array([1, 0.9, 0.9, 0.2, 0.3, 0.2, 1, 0.9], np.float32)
    return Clustering(labels, centre, own, own, 0.0, 1)


@pytest.mark.parametrize("close_to", ["own_centre", "any_centre"])
def test_clusters_that_share_a_centre_image_keep_it_once_and_in_its_own_cluster(shared_centre, close_to):
    found = select(shared_centre, 0.85, close_to)
    assert found.positions.tolist() == [0, 1, 2, 6, 7]
    assert found.pseudo_labels.tolist() == [0, 0, 1, 2, 2]
    assert found.num_classes == 3


def test_kept_empty_classes_are_numbered_like_clusters(shared_centre):
    found = select(shared_centre, 0.85, "any_centre", True)
    assert found.pseudo_labels.tolist() == [0, 0, 1, 3, 3]
    assert found.num_classes == 4


@pytest.mark.parametrize("centre", [(0, 3), (0, 0)])
@pytest.mark.fault("a reliable set that is empty but for centres", "`only ... clusters have two reliable images ...: lower min_similarity`")
def test_too_little_to_train_on_says_what_to_change(centre):
    with pytest.raises(UnreliableError, match=r"min_similarity \(0\.85\).*num_clusters") as error:
        select(hand_made([1, 0.9, 0.9, 0.5, 0.2, 0.1], centre=centre), 0.85)
    assert "1 of 2 clusters" in str(error.value)


def test_one_cluster_is_never_enough():
    ones = np.ones(5, np.float32)
    with pytest.raises(UnreliableError):
        select(Clustering(np.zeros(5, np.int64), np.array([2]), ones, ones, 0.0, 1), 0.5)


@pytest.mark.parametrize("min_similarity", [-1.001, 1.001, 85, float("nan")])
def test_a_lambda_that_is_no_cosine_is_refused(min_similarity):
    with pytest.raises(ValueError, match=r"\[-1, 1\]") as error:
        select(hand_made([1, 0.9, 0.9, 1, 0.9, 0.9]), min_similarity)
    assert not isinstance(error.value, UnreliableError)


def test_the_clustering_is_left_as_it_is():
    clustering = draw(1)
    copies = [np.copy(part) for part in clustering]
    select(clustering, 0.0, "any_centre")
    for part, copy in zip(clustering, copies, strict=True):
        np.testing.assert_array_equal(part, copy)


@settings(max_examples=60, deadline=None)
@given(clusterings, st.sampled_from([0.0, 0.5]), st.booleans(), st.integers(1, 9))
def test_images_of_no_cluster_are_added_behind_and_change_nothing_else(clustering, min_similarity, keep_empty, outside):
    """The others are judged as if these were not there; they come in between, as a class each."""
    rng = np.random.default_rng(outside)
    n = len(clustering.cluster)
    clustering = clustering._replace(
        centre=np.array([np.flatnonzero(clustering.cluster == c)[0] for c in range(clustering.cluster.max() + 1)])
    )
    at = np.sort(rng.choice(n + outside, n, replace=False))
    cluster_numbers, own = np.full(n + outside, -1), np.full(n + outside, -1, np.float32)
    cluster_numbers[at], own[at] = clustering.cluster, clustering.similarity
    wider = Clustering(cluster_numbers, at[clustering.centre], own, own, 0.0, 1)
    how = {"min_similarity": min_similarity, "close_to": "own_centre", "keep_empty_classes": keep_empty}
    try:
        without = select_reliable(clustering, **how)
    except UnreliableError:
        with pytest.raises(UnreliableError):
            select_reliable(wider, **how, keep_unclustered=True)
        return
    found = select_reliable(wider, **how, keep_unclustered=True)
    inside = cluster_numbers[found.positions] >= 0
    assert found.positions.tolist() == sorted(at[without.positions].tolist() + np.flatnonzero(cluster_numbers < 0).tolist())
    assert found.pseudo_labels[inside].tolist() == without.pseudo_labels.tolist()
    assert found.similarity[inside].tolist() == without.similarity.tolist()
    assert found.pseudo_labels[~inside].tolist() == list(range(without.num_classes, without.num_classes + outside))
    assert (found.similarity[~inside] == 1).all()
    assert found.num_classes == without.num_classes + outside
