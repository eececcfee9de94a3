"""k-means and its centres, against scikit-learn and against the definitions written out in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

import pul_core.clustering.kmeans as clustering
from pul_core.clustering.kmeans import cluster, default_num_clusters

DEFAULTS = {"normalise": True, "num_restarts": 1, "max_passes": 100, "centre_from": "members", "seed": 0}


def run(features, k, **options):
    return cluster(np.asarray(features, np.float32), num_clusters=k, **DEFAULTS | options)


def noise(seed, n, d):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def unit(features):
    features = features.astype(np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def centroids_of(points, labels):
    return np.stack([points[labels == c].mean(0) for c in range(labels.max() + 1)])


def squared_distances(points, centroids):
    return ((points[:, None] - centroids[None]) ** 2).sum(2)


def same_bytes(left, right):
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(left, right, strict=True))


@pytest.fixture
def threads():
    """Set the number of threads, and put the old one back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("k", "spread"), [(40, 1.0), (40, 3.0), (100, 3.0)])
def test_inertia_is_that_of_scikit_learn(k, spread):
    """Averaged over seeds, since one run of either is a matter of luck; with more clusters than blobs a run's luck is about 1 %."""
    points, _ = make_blobs(400, 8, centers=12, cluster_std=spread, random_state=1)
    points = points.astype(np.float32)
    seeds = range(20)
    ours = np.mean([run(points, k, normalise=False, seed=seed).inertia for seed in seeds])
    theirs = np.mean([KMeans(k, n_init=1, max_iter=100, tol=0, random_state=seed).fit(points).inertia_ for seed in seeds])
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("seed", "n", "d", "k"), [(0, 300, 6, 10), (1, 200, 33, 25), (2, 100, 3, 50)])
def test_a_finished_run_is_a_fixed_point(normalise, seed, n, d, k):
    features = noise(seed, n, d)
    found = run(features, k, normalise=normalise)
    assert found.passes < DEFAULTS["max_passes"]
    points = unit(features) if normalise else features.astype(np.float64)
    centroids = centroids_of(points, found.cluster)
    distances = squared_distances(points, centroids)
    own = distances[np.arange(n), found.cluster]
    assert (own <= distances.min(1) + 1e-5).all()
    assert found.inertia == pytest.approx(own.sum(), rel=1e-4)
    again = KMeans(len(centroids), init=centroids, n_init=1, max_iter=1, tol=0).fit(points)
    np.testing.assert_array_equal(again.labels_, found.cluster)


@pytest.mark.parametrize("max_passes", [1, 2, 3])
def test_inertia_of_a_run_that_was_cut_short_is_still_to_the_own_centroid(max_passes):
    features = noise(0, 300, 6)
    found = run(features, 10, normalise=False, max_passes=max_passes)
    assert found.passes == max_passes
    points = features.astype(np.float64)
    own = squared_distances(points, centroids_of(points, found.cluster))[np.arange(300), found.cluster]
    assert found.inertia == pytest.approx(own.sum(), rel=1e-4)


def test_separate_people_are_separate_clusters():
    people = np.repeat(np.arange(15), 8)
    features = np.eye(15, dtype=np.float32)[people] * 3 + noise(0, 120, 15) * 0.1
    found = run(features, 15, num_restarts=3)
    assert len(set(zip(people, found.cluster, strict=True))) == 15


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["members", "all"]))
def test_centres_and_cosines_are_those_of_the_definition(seed, normalise, centre_from):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(2, 80)), int(rng.integers(2, 12))
    features = rng.normal(size=(n, d)).astype(np.float32)
    found = run(features, int(rng.integers(1, n + 1)), normalise=normalise, centre_from=centre_from)

    assert np.unique(found.cluster).tolist() == list(range(len(found.centre)))  # dense
    points = unit(features) if normalise else features.astype(np.float64)
    distances = squared_distances(points, centroids_of(points, found.cluster))
    for c, centre in enumerate(found.centre):
        candidates = np.flatnonzero(found.cluster == c) if centre_from == "members" else np.arange(n)
        assert centre in candidates
        assert distances[centre, c] <= distances[candidates, c].min() + 1e-5  # two members are equally near up to rounding

    cosines = unit(features) @ unit(features[found.centre]).T
    np.testing.assert_allclose(found.similarity, cosines[np.arange(n), found.cluster], atol=1e-5)
    np.testing.assert_allclose(found.similarity_any, cosines.max(1), atol=1e-5)
    assert (found.similarity_any >= found.similarity).all()
    if centre_from == "members":
        np.testing.assert_array_equal(found.cluster[found.centre], np.arange(len(found.centre)))
        np.testing.assert_allclose(found.similarity[found.centre], 1, atol=1e-5)
    assert [part.dtype for part in found[:4]] == [np.int64, np.int64, np.float32, np.float32]


@pytest.mark.parametrize("centre_from", ["members", "all"])
def test_the_feature_nearest_a_centroid_may_belong_to_another_cluster(centre_from):
    """Two images lie 10 above and below their centroid; the outermost image of the other cluster lies 9.9 beside it."""
    points = np.array([[0, 10], [0, -10], [9.9, 0], *[[17.8, 0.05], [17.8, -0.05]] * 10], np.float32)
    found = run(points, 2, normalise=False, num_restarts=10, centre_from=centre_from)
    first, second = found.cluster[0], found.cluster[2]
    assert found.cluster.tolist() == [first] * 2 + [second] * 21
    assert first != second
    if centre_from == "all":
        assert found.centre[first] == 2
        assert found.similarity[:2] == pytest.approx([0, 0], abs=1e-6)
    else:
        assert found.centre[first] == 0  # of two equally near ones the first
        assert found.similarity[:2] == pytest.approx([1, -1])


def test_more_restarts_are_never_worse():
    features = noise(4, 200, 5)
    inertias = [run(features, 20, num_restarts=restarts).inertia for restarts in (1, 2, 4, 8)]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[-1] < inertias[0]


def test_another_seed_is_another_start():
    features = noise(4, 200, 5)
    assert len({run(features, 20, seed=seed).inertia for seed in range(4)}) > 1


@pytest.mark.parametrize("centre_from", ["members", "all"])
@pytest.mark.parametrize(("n", "d", "k"), [(300, 16, 12), (1000, 64, 30), (3001, 512, 40), (35000, 4, 3)])  # 35,000: a sum over threads
def test_the_result_is_the_same_bytes_when_called_again_with_as_many_threads(threads, n, d, k, centre_from):
    """Between thread counts the last bit of a cosine may differ (seen at 3001 x 512)."""
    features = noise(7, n, d)
    for number in (1, 2, 4):
        threads(number)
        first, again = (run(features, k, max_passes=3, centre_from=centre_from) for _ in range(2))
        assert same_bytes(first, again), f"{number} threads"


def test_restarts_are_the_same_bytes_when_called_again():
    features = noise(8, 700, 48)
    assert same_bytes(run(features, 30, num_restarts=2), run(features, 30, num_restarts=2))


def test_the_length_of_a_feature_does_not_matter_when_normalised():
    features = noise(9, 150, 7)
    lengths = 2.0 ** np.random.default_rng(0).integers(-8, 9, (150, 1))  # powers of two: no rounding
    assert same_bytes(run(features, 12), run(features * lengths, 12))
    assert not same_bytes(run(features, 12, normalise=False), run(features * lengths, 12, normalise=False))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("d", [2, 17, 64, 512])
@pytest.mark.parametrize(("distinct", "k"), [(1, 2), (3, 4), (5, 12), (7, 40)])
@pytest.mark.fault("k-means: duplicate points, fewer than K", "fewer clusters, numbered without gaps")
def test_fewer_distinct_points_than_clusters_are_fewer_clusters(distinct, k, d, normalise):
    which = np.append(np.arange(distinct), np.random.default_rng(k).integers(distinct, size=43))
    features = noise(k, distinct, d)[which]
    found = run(features, k, normalise=normalise)
    assert np.unique(found.cluster).tolist() == list(range(len(found.centre)))
    assert len(found.centre) == distinct == len(set(zip(which, found.cluster, strict=True)))
    np.testing.assert_allclose(found.similarity, 1, atol=1e-5)


@pytest.mark.fault("k-means: a cluster that empties", "it starts again at the point that is worst off")
def test_a_cluster_that_lost_all_its_points_starts_again_elsewhere(monkeypatch):
    """All centroids begin at one image, so that all clusters but one are empty after the first pass."""
    monkeypatch.setattr(clustering, "_plus_plus", lambda points, k, generator: torch.zeros(k, dtype=torch.int64))
    people = np.repeat(np.arange(5), 6)
    features = np.eye(5, dtype=np.float32)[people] * 3 + noise(0, 30, 5) * 0.1
    assert len(run(features, 5).centre) == 5


@pytest.mark.fault("k-means: K = 1", "one cluster")
def test_one_cluster_holds_everything():
    features = noise(2, 30, 4)
    found = run(features, 1, normalise=False)
    assert found.cluster.tolist() == [0] * 30
    assert found.centre.tolist() == [((features - features.mean(0)) ** 2).sum(1).argmin()]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("n", [1, 2, 9, 60])
@pytest.mark.fault("k-means: K = N", "every image a cluster")
def test_as_many_clusters_as_images_are_the_images(n, normalise):
    found = run(noise(n, n, 6), n, normalise=normalise)
    assert sorted(found.cluster.tolist()) == list(range(n))
    np.testing.assert_array_equal(found.centre[found.cluster], np.arange(n))
    np.testing.assert_allclose(found.similarity, 1, atol=1e-5)
    assert found.inertia == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("n", "k"), [(5, 6), (5, 0), (5, -1), (0, 1)])
@pytest.mark.fault("k-means: K = 0, K > N", "`num_clusters must be between 1 and the number of images`")
def test_a_number_of_clusters_out_of_range_is_refused(n, k):
    with pytest.raises(ValueError, match=rf"between 1 and the number of images \({n}\), not {k}"):
        run(noise(0, n, 3), k)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.fault("NaN and infinity in features that are clustered", "`features hold NaN or infinity ...`")
def test_features_that_are_not_finite_are_refused(value):
    features = noise(0, 6, 3)
    features[4, 1] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        run(features, 2)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_zero_vector_is_refused_by_its_number(normalise):
    features = noise(0, 6, 3)
    features[4] = 0
    with pytest.raises(ValueError, match=r"image 4 .*zero vector"):
        run(features, 2, normalise=normalise)


@pytest.mark.parametrize("scale", [2.0**70, 2.0**-75])
def test_very_long_and_very_short_features_are_refused_or_clustered_but_not_taken_for_nothing(scale):
    features = noise(0, 40, 4)
    try:
        found = run(features * scale, 4)
    except ValueError:
        return
    np.testing.assert_allclose(found.similarity[found.centre], 1, atol=1e-5)


def test_one_reversed_feature_is_a_feature():
    assert cluster(noise(0, 1, 3)[::-1], num_clusters=1, **DEFAULTS).centre.tolist() == [0]


@pytest.mark.parametrize("centre_from", ["members", "all"])
def test_the_size_of_a_block_changes_nothing(monkeypatch, centre_from):
    people = np.repeat(np.arange(9), 11)
    features = noise(1, 9, 8)[people] + noise(2, 99, 8) * 0.2
    whole = run(features, 9, centre_from=centre_from)
    monkeypatch.setattr(clustering, "CHUNK", 7)
    blocks = run(features, 9, centre_from=centre_from)
    np.testing.assert_array_equal(whole.cluster, blocks.cluster)
    np.testing.assert_array_equal(whole.centre, blocks.centre)
    np.testing.assert_allclose(whole.similarity, blocks.similarity, atol=1e-6)
    np.testing.assert_allclose(whole.similarity_any, blocks.similarity_any, atol=1e-6)
    assert whole.inertia == pytest.approx(blocks.inertia, rel=1e-5)


def test_no_block_is_larger_than_its_share(monkeypatch):
    """Memory grows with CHUNK x K: no matrix product has more rows than CHUNK."""
    monkeypatch.setattr(clustering, "CHUNK", 16)
    largest = 0

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **kwargs or {})
            if getattr(function, "__name__", "") in ("matmul", "__matmul__") and result.ndim == 2 and result.shape[1] == 11:
                largest = max(largest, len(result))
            return result

    with Watched():
        run(noise(3, 300, 5), 11)
    assert 0 < largest <= 16


def test_the_features_are_left_as_they_are():
    features = noise(0, 20, 3)
    copy = features.copy()
    run(features, 4)
    np.testing.assert_array_equal(features, copy)


def test_the_default_number_of_clusters_is_one_that_can_be_made():
    found = [default_num_clusters(n) for n in range(1, 3000)]
    assert all(1 <= k <= n for n, k in enumerate(found, 1))
    assert all(k >= 2 for k in found[1:])
    assert found == sorted(found)
    assert default_num_clusters(16_000) == 1000
