"""Selection of the reliable images: against the rule applied one image at a time, and at both ends of lambda."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pul_core.clustering.centres import Clusters
from pul_core.clustering.kmeans import cluster_by_kmeans
from pul_core.selection import UnreliableError, select_reliable
from pul_core.settings import KMeans, Selection

WAYS = [(close_to, keep) for close_to in ("own_centre", "any_centre") for keep in (False, True)]
LAMBDAS = st.sampled_from([-1.0, 0.0, 0.3, 0.5, 0.85, 0.95, 1.0])


def draw(seed):
    """Draw clusters whose centres may be shared or members of other clusters, and cosines that equal lambda or are almost 1."""
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
    return Clusters(labels, centre, own, largest)


CLUSTERS = st.integers(0, 2**32 - 1).map(draw)


def oracle(clusters, min_similarity, close_to):
    """Apply the rule to one image after the other."""
    positions = []
    for i, cluster in enumerate(clusters.cluster):
        if close_to == "own_centre":
            reliable = clusters.similarity[i] > np.float32(min_similarity) or clusters.centre[cluster] == i
        else:
            reliable = clusters.similarity_any[i] > np.float32(min_similarity) or i in list(clusters.centre)
        if reliable:
            positions.append(i)
    return positions


def select(clusters, min_similarity, close_to="own_centre", keep=False):
    return select_reliable(clusters, Selection(min_similarity=min_similarity, close_to=close_to, keep_empty_classes=keep))


@pytest.mark.parametrize(("close_to", "keep"), WAYS)
@settings(max_examples=120, deadline=None)
@given(CLUSTERS, LAMBDAS)
def test_the_selection_equals_that_of_a_loop_over_images(close_to, keep, clusters, min_similarity):
    expected = oracle(clusters, min_similarity, close_to)
    classes = [int(clusters.cluster[i]) for i in expected]
    if sum(classes.count(c) >= 2 for c in set(classes)) < 2:
        with pytest.raises(UnreliableError):
            select(clusters, min_similarity, close_to, keep)
        return
    reliable = select(clusters, min_similarity, close_to, keep)
    assert reliable.positions.tolist() == expected
    cosines = clusters.similarity if close_to == "own_centre" else clusters.similarity_any
    assert reliable.similarity.tolist() == [cosines[i] for i in expected]
    clusters_of_classes = list(range(len(clusters.centre))) if keep else sorted(set(classes))
    assert reliable.num_classes == len(clusters_of_classes)
    assert reliable.pseudo_labels.tolist() == [clusters_of_classes.index(c) for c in classes]


@pytest.mark.parametrize("close_to", ["own_centre", "any_centre"])
@settings(max_examples=60, deadline=None)
@given(CLUSTERS, LAMBDAS, LAMBDAS)
def test_a_larger_lambda_selects_a_subset(close_to, clusters, one, other):
    assume(one != other)
    sets = {}
    for value in (one, other):
        try:
            sets[value] = set(select(clusters, value, close_to).positions.tolist())
        except UnreliableError:
            sets[value] = set()
    assert sets[max(one, other)] <= sets[min(one, other)]


@settings(max_examples=60, deadline=None)
@given(CLUSTERS, LAMBDAS)
def test_without_empty_classes_every_class_has_an_image(clusters, min_similarity):
    for close_to in ("own_centre", "any_centre"):
        try:
            reliable = select(clusters, min_similarity, close_to)
        except UnreliableError:
            continue
        assert np.unique(reliable.pseudo_labels).tolist() == list(range(reliable.num_classes))


def two_clusters(similarity, similarity_any=None, centre=(0, 3)):
    """Return two clusters of three images."""
    similarity = np.array(similarity, np.float32)
    largest = similarity if similarity_any is None else np.array(similarity_any, np.float32)
    return Clusters(np.array([0, 0, 0, 1, 1, 1]), np.array(centre), similarity, largest)


def test_a_cosine_equal_to_lambda_is_not_reliable():
    just_more = np.nextafter(np.float32(0.85), np.float32(1))
    clusters = two_clusters([1, just_more, 0.85, 1, just_more, 0.85])
    assert select(clusters, 0.85).positions.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("close_to", ["own_centre", "any_centre"])
@pytest.mark.parametrize("off", [-3e-7, 0, 3e-7])
def test_every_centre_is_reliable_at_lambda_one_despite_rounding(close_to, off):
    """The second image of each cluster is rounded to above 1, so that two clusters are large enough to train on."""
    clusters = two_clusters([1 + off, 1 + 1e-6, 0.2, 1 + off, 1 + 1e-6, 0.2])
    assert select(clusters, 1.0, close_to).positions.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(("close_to", "keep"), WAYS)
@pytest.mark.parametrize("centre_from", ["members", "all"])
@pytest.mark.fault("a reliable set that is everything", "every image is kept; the run stops as `stable_everything`")
def test_lambda_minus_one_keeps_every_image_in_its_cluster(close_to, keep, centre_from):
    features = np.random.default_rng(3).normal(size=(60, 5)).astype(np.float32)
    clusters = cluster_by_kmeans(features, KMeans(num_clusters=7, max_passes=50, centre_from=centre_from), seed=0)
    reliable = select(clusters, -1, close_to, keep)
    assert reliable.positions.tolist() == list(range(60))
    assert reliable.pseudo_labels.tolist() == clusters.cluster.tolist()
    assert reliable.num_classes == 7


def test_close_to_any_centre_selects_images_near_another_clusters_centre_and_labels_them_by_their_own_cluster():
    clusters = two_clusters([1, 0.9, 0.1, 1, 0.9, 0.1], similarity_any=[1, 0.9, 0.95, 1, 0.9, 0.1])
    assert select(clusters, 0.85, "own_centre").positions.tolist() == [0, 1, 3, 4]
    reliable = select(clusters, 0.85, "any_centre")
    assert reliable.positions.tolist() == [0, 1, 2, 3, 4]
    assert reliable.pseudo_labels.tolist() == [0, 0, 0, 1, 1]


@pytest.fixture
def shared_centre():
    """Make four clusters; image 0 of cluster 0 is the centre of clusters 1 and 2 as well, which the released code allows."""
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    centre = np.array([0, 0, 0, 6])
    own = np.array([1, 0.9, 0.9, 0.2, 0.3, 0.2, 1, 0.9], np.float32)
    return Clusters(labels, centre, own, own)


@pytest.mark.parametrize("close_to", ["own_centre", "any_centre"])
def test_a_centre_image_shared_by_clusters_is_selected_once_and_in_its_own_cluster(shared_centre, close_to):
    reliable = select(shared_centre, 0.85, close_to)
    assert reliable.positions.tolist() == [0, 1, 2, 6, 7]
    assert reliable.pseudo_labels.tolist() == [0, 0, 1, 2, 2]
    assert reliable.num_classes == 3


def test_kept_empty_classes_are_numbered_like_clusters(shared_centre):
    reliable = select(shared_centre, 0.85, "any_centre", True)
    assert reliable.pseudo_labels.tolist() == [0, 0, 1, 3, 3]
    assert reliable.num_classes == 4


@pytest.mark.parametrize("centre", [(0, 3), (0, 0)])
@pytest.mark.fault("a reliable set that is empty but for centres", "`only ... clusters have two reliable images ...: lower min_similarity`")
def test_too_little_to_train_on_says_what_to_change(centre):
    with pytest.raises(UnreliableError, match=r"min_similarity \(0\.85\).*num_clusters") as error:
        select(two_clusters([1, 0.9, 0.9, 0.5, 0.2, 0.1], centre=centre), 0.85)
    assert "1 of 2 clusters" in str(error.value)


def test_one_cluster_is_never_enough():
    ones = np.ones(5, np.float32)
    with pytest.raises(UnreliableError):
        select(Clusters(np.zeros(5, np.int64), np.array([2]), ones, ones), 0.5)


def test_the_clusters_are_not_modified():
    clusters = draw(1)
    copies = [np.copy(part) for part in clusters]
    select(clusters, 0.0, "any_centre")
    for part, copy in zip(clusters, copies, strict=True):
        np.testing.assert_array_equal(part, copy)


@settings(max_examples=60, deadline=None)
@given(CLUSTERS, st.sampled_from([0.0, 0.5]), st.booleans(), st.integers(1, 9))
def test_unclustered_images_get_a_class_each_and_change_nothing_else(clusters, min_similarity, keep_empty, num_unclustered):
    """The other images are selected as if these were absent; positions are ascending, so unclustered ones are in between."""
    rng = np.random.default_rng(num_unclustered)
    n = len(clusters.cluster)
    clusters = clusters._replace(centre=np.array([np.flatnonzero(clusters.cluster == c)[0] for c in range(clusters.cluster.max() + 1)]))
    at = np.sort(rng.choice(n + num_unclustered, n, replace=False))
    cluster_numbers, own = np.full(n + num_unclustered, -1), np.full(n + num_unclustered, -1, np.float32)
    cluster_numbers[at], own[at] = clusters.cluster, clusters.similarity
    wider = Clusters(cluster_numbers, at[clusters.centre], own, own)
    options = Selection(min_similarity=min_similarity, keep_empty_classes=keep_empty)
    try:
        without = select_reliable(clusters, options)
    except UnreliableError:
        with pytest.raises(UnreliableError):
            select_reliable(wider, replace(options, keep_unclustered=True))
        return
    reliable = select_reliable(wider, replace(options, keep_unclustered=True))
    clustered = cluster_numbers[reliable.positions] >= 0
    assert reliable.positions.tolist() == sorted(at[without.positions].tolist() + np.flatnonzero(cluster_numbers < 0).tolist())
    assert reliable.pseudo_labels[clustered].tolist() == without.pseudo_labels.tolist()
    assert reliable.similarity[clustered].tolist() == without.similarity.tolist()
    assert reliable.pseudo_labels[~clustered].tolist() == list(range(without.num_classes, without.num_classes + num_unclustered))
    assert (reliable.similarity[~clustered] == 1).all()
    assert reliable.num_classes == without.num_classes + num_unclustered


@pytest.mark.parametrize(
    ("cluster", "min_similarity", "advice", "never"),
    [
        ([0] * 32, -1, "one cluster has 32 of the 32 images: lower DBSCAN's max_distance", "min_similarity"),
        ([0] * 32, 0.45, "one cluster has 32 of the 32 images: lower DBSCAN's max_distance", "raise DBSCAN"),
        ([0] * 20 + [-1] * 4, -1, "one cluster has 20 of the 24 images", "raise DBSCAN"),
        ([0] * 20 + [1, 2, 3], -1, "one cluster has 20 of the 23 images", "raise DBSCAN"),
        ([-1] * 12, -1, "12 of the 12 images are alone or in no cluster: raise DBSCAN's max_distance", "min_similarity"),
        ([0, 0] + [-1] * 10, -1, "10 of the 12 images are alone or in no cluster: raise DBSCAN's max_distance", "lower DBSCAN"),
        (list(range(12)), 0.45, "12 of the 12 images are alone or in no cluster", "min_similarity"),
        ([0] * 3 + [1] * 3, 0.85, r"2 have two images, but lambda leaves them out: lower min_similarity \(0.85\)", "max_distance"),
        ([0] * 3 + [1] * 3 + [-1] * 20, 0.85, "lambda leaves them out", "max_distance"),
    ],
)
def test_each_cause_of_too_few_clusters_has_its_own_advice(cluster, min_similarity, advice, never):
    cluster = np.array(cluster)
    centre = np.array([np.flatnonzero(cluster == number)[0] for number in range(cluster.max() + 1)], np.int64)
    similarity = np.where(cluster >= 0, np.float32(0.3), np.float32(-1))
    with pytest.raises(UnreliableError, match=advice) as error:
        select(Clusters(cluster, centre, similarity, similarity), min_similarity)
    assert never not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=12))
def test_lambda_of_minus_one_is_never_to_be_lowered(numbers):
    present = {number: index for index, number in enumerate(sorted(set(numbers) - {-1}))} | {-1: -1}
    cluster = np.array([present[number] for number in numbers])
    centre = np.array([np.flatnonzero(cluster == number)[0] for number in range(cluster.max() + 1)], np.int64)
    similarity = np.full(len(cluster), -1, np.float32)  # not even a member's cosine exceeds -1
    try:
        select(Clusters(cluster, centre, similarity, similarity), -1)
    except UnreliableError as error:
        assert "min_similarity" not in str(error)
