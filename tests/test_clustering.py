"""k-means and its centres against scikit-learn and against the definitions written out in float64; preprocessing and clustering in one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as ScikitLearnKMeans
from sklearn.datasets import make_blobs

from pul_core.arrays import unit_rows
from pul_core.clustering import centres, kmeans, neighbours, whitening
from pul_core.clustering.centring import centre_by_camera
from pul_core.clustering.cluster import cluster_features
from pul_core.clustering.density import cluster_by_density
from pul_core.clustering.kmeans import cluster_by_kmeans, default_num_clusters
from pul_core.clustering.whitening import whiten
from pul_core.settings import Clustering, Dbscan, KMeans


def run(features, k, seed=0, **options):
    return cluster_by_kmeans(np.asarray(features, np.float32), KMeans(num_clusters=k, **options), seed=seed)


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
    """Set the number of threads, and restore the previous one."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("k", "spread"), [(40, 1.0), (40, 3.0), (100, 3.0)])
def test_inertia_is_that_of_scikit_learn(k, spread):
    """Averaged over seeds, because single runs vary: by about 1 % with more clusters than blobs."""
    points, _ = make_blobs(400, 8, centers=12, cluster_std=spread, random_state=1)
    points = points.astype(np.float32)
    seeds = range(20)
    ours = np.mean([run(points, k, normalise=False, seed=seed).inertia for seed in seeds])
    theirs = np.mean([ScikitLearnKMeans(k, n_init=1, max_iter=100, tol=0, random_state=seed).fit(points).inertia_ for seed in seeds])
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("seed", "n", "d", "k"), [(0, 300, 6, 10), (1, 200, 33, 25), (2, 100, 3, 50)])
def test_a_finished_run_is_a_fixed_point(normalise, seed, n, d, k):
    features = noise(seed, n, d)
    clusters = run(features, k, normalise=normalise)
    assert clusters.passes < KMeans().max_passes
    points = unit(features) if normalise else features.astype(np.float64)
    centroids = centroids_of(points, clusters.cluster)
    distances = squared_distances(points, centroids)
    own = distances[np.arange(n), clusters.cluster]
    assert (own <= distances.min(1) + 1e-5).all()
    assert clusters.inertia == pytest.approx(own.sum(), rel=1e-4)
    again = ScikitLearnKMeans(len(centroids), init=centroids, n_init=1, max_iter=1, tol=0).fit(points)
    np.testing.assert_array_equal(again.labels_, clusters.cluster)


@pytest.mark.parametrize("max_passes", [1, 2, 3])
def test_the_inertia_of_a_run_that_is_cut_short_is_that_of_its_final_centroids(max_passes):
    features = noise(0, 300, 6)
    clusters = run(features, 10, normalise=False, max_passes=max_passes)
    assert clusters.passes == max_passes
    points = features.astype(np.float64)
    own = squared_distances(points, centroids_of(points, clusters.cluster))[np.arange(300), clusters.cluster]
    assert clusters.inertia == pytest.approx(own.sum(), rel=1e-4)


def test_separate_people_are_separate_clusters():
    people = np.repeat(np.arange(15), 8)
    features = np.eye(15, dtype=np.float32)[people] * 3 + noise(0, 120, 15) * 0.1
    clusters = run(features, 15, num_restarts=3)
    assert len(set(zip(people, clusters.cluster, strict=True))) == 15


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["members", "all"]))
def test_centres_and_cosines_are_those_of_the_definition(seed, normalise, centre_from):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(2, 80)), int(rng.integers(2, 12))
    features = rng.normal(size=(n, d)).astype(np.float32)
    clusters = run(features, int(rng.integers(1, n + 1)), normalise=normalise, centre_from=centre_from)

    assert np.unique(clusters.cluster).tolist() == list(range(len(clusters.centre)))  # without gaps
    points = unit(features) if normalise else features.astype(np.float64)
    distances = squared_distances(points, centroids_of(points, clusters.cluster))
    for c, centre in enumerate(clusters.centre):
        candidates = np.flatnonzero(clusters.cluster == c) if centre_from == "members" else np.arange(n)
        assert centre in candidates
        assert distances[centre, c] <= distances[candidates, c].min() + 1e-5  # several members may be equally near up to rounding

    cosines = unit(features) @ unit(features[clusters.centre]).T
    np.testing.assert_allclose(clusters.similarity, cosines[np.arange(n), clusters.cluster], atol=1e-5)
    np.testing.assert_allclose(clusters.similarity_any, cosines.max(1), atol=1e-5)
    assert (clusters.similarity_any >= clusters.similarity).all()
    if centre_from == "members":
        np.testing.assert_array_equal(clusters.cluster[clusters.centre], np.arange(len(clusters.centre)))
        np.testing.assert_allclose(clusters.similarity[clusters.centre], 1, atol=1e-5)
    assert [part.dtype for part in clusters[:4]] == [np.int64, np.int64, np.float32, np.float32]


@pytest.mark.parametrize("centre_from", ["members", "all"])
def test_the_feature_nearest_a_centroid_may_belong_to_another_cluster(centre_from):
    """Two images lie 10 above and below their centroid; the outermost image of the other cluster lies 9.9 beside it."""
    points = np.array([[0, 10], [0, -10], [9.9, 0], *[[17.8, 0.05], [17.8, -0.05]] * 10], np.float32)
    clusters = run(points, 2, normalise=False, num_restarts=10, centre_from=centre_from)
    first, second = clusters.cluster[0], clusters.cluster[2]
    assert clusters.cluster.tolist() == [first] * 2 + [second] * 21
    assert first != second
    if centre_from == "all":
        assert clusters.centre[first] == 2
        assert clusters.similarity[:2] == pytest.approx([0, 0], abs=1e-6)
    else:
        assert clusters.centre[first] == 0  # the first of two equally near images
        assert clusters.similarity[:2] == pytest.approx([1, -1])


def test_more_restarts_are_never_worse():
    features = noise(4, 200, 5)
    inertias = [[run(features, 20, num_restarts=restarts, seed=seed).inertia for restarts in (1, 2, 4, 8)] for seed in range(4)]
    assert all(of_seed == sorted(of_seed, reverse=True) for of_seed in inertias)
    assert sum(of_seed[-1] < of_seed[0] for of_seed in inertias) >= 2


def test_another_seed_gives_another_start():
    features = noise(4, 200, 5)
    assert len({run(features, 20, seed=seed).inertia for seed in range(4)}) > 1


@pytest.mark.parametrize("centre_from", ["members", "all"])
@pytest.mark.parametrize(("n", "d", "k"), [(300, 16, 12), (1000, 64, 30), (3001, 512, 40), (35000, 4, 3)])  # 35,000: threaded sums
def test_repeated_calls_with_the_same_number_of_threads_return_the_same_bytes(threads, n, d, k, centre_from):
    """With another number of threads the last bit of a cosine may differ (seen at 3001 x 512)."""
    features = noise(7, n, d)
    for number in (1, 2, 4):
        threads(number)
        first, again = (run(features, k, max_passes=3, centre_from=centre_from) for _ in range(2))
        assert same_bytes(first, again), f"{number} threads"


def test_repeated_calls_with_restarts_return_the_same_bytes():
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
    clusters = run(features, k, normalise=normalise)
    assert np.unique(clusters.cluster).tolist() == list(range(len(clusters.centre)))
    assert len(clusters.centre) == distinct == len(set(zip(which, clusters.cluster, strict=True)))
    np.testing.assert_allclose(clusters.similarity, 1, atol=1e-5)


@pytest.mark.fault("k-means: a cluster that empties", "it starts again at the point that is worst off")
def test_a_cluster_that_lost_all_its_points_starts_again_elsewhere(monkeypatch):
    """All centroids start at one image, so all clusters but one are empty after the first pass."""
    monkeypatch.setattr(kmeans, "_seeds", lambda points, k, generator: torch.zeros(k, dtype=torch.int64))
    people = np.repeat(np.arange(5), 6)
    features = np.eye(5, dtype=np.float32)[people] * 3 + noise(0, 30, 5) * 0.1
    assert len(run(features, 5).centre) == 5


@pytest.mark.fault("k-means: K = 1", "one cluster")
def test_one_cluster_holds_everything():
    features = noise(2, 30, 4)
    clusters = run(features, 1, normalise=False)
    assert clusters.cluster.tolist() == [0] * 30
    assert clusters.centre.tolist() == [((features - features.mean(0)) ** 2).sum(1).argmin()]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("n", [1, 2, 9, 60])
@pytest.mark.fault("k-means: K = N", "every image a cluster")
def test_as_many_clusters_as_images_are_the_images(n, normalise):
    clusters = run(noise(n, n, 6), n, normalise=normalise)
    assert sorted(clusters.cluster.tolist()) == list(range(n))
    np.testing.assert_array_equal(clusters.centre[clusters.cluster], np.arange(n))
    np.testing.assert_allclose(clusters.similarity, 1, atol=1e-5)
    assert clusters.inertia == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("n", "k"), [(5, 6), (5, -1), (0, 1), (0, 0)])
@pytest.mark.fault("k-means: K < 0, K > N", "`num_clusters must be between 1 and the number of images`")
def test_a_number_of_clusters_out_of_range_is_refused(n, k):
    with pytest.raises(ValueError, match=rf"between 1 and the number of images \({n}\), got {k or 1}"):
        run(noise(0, n, 3), k)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.fault("NaN and infinity in features that are clustered", "`the feature of target image ... is a zero vector or not finite`")
def test_features_that_are_not_finite_are_refused(value):
    features = noise(0, 6, 3)
    features[4, 1] = value
    with pytest.raises(ValueError, match=r"target image 4 is .*not finite"):
        run(features, 2)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_zero_vector_is_refused_with_its_index(normalise):
    features = noise(0, 6, 3)
    features[4] = 0
    with pytest.raises(ValueError, match="target image 4 is a zero vector"):
        run(features, 2, normalise=normalise)


@pytest.mark.parametrize("scale", [2.0**70, 2.0**-75])
def test_very_long_and_very_short_features_are_either_refused_or_clustered_correctly(scale):
    features = noise(0, 40, 4)
    try:
        clusters = run(features * scale, 4)
    except ValueError:
        return
    np.testing.assert_allclose(clusters.similarity[clusters.centre], 1, atol=1e-5)


def test_a_view_with_negative_strides_is_accepted():
    assert cluster_by_kmeans(noise(0, 1, 3)[::-1], KMeans(num_clusters=1), seed=0).centre.tolist() == [0]


@pytest.mark.parametrize("centre_from", ["members", "all"])
def test_the_size_of_a_block_changes_nothing(monkeypatch, centre_from):
    people = np.repeat(np.arange(9), 11)
    features = noise(1, 9, 8)[people] + noise(2, 99, 8) * 0.2
    whole = run(features, 9, centre_from=centre_from)
    for module in (centres, kmeans):
        monkeypatch.setattr(module, "CHUNK", 7)
    blocks = run(features, 9, centre_from=centre_from)
    np.testing.assert_array_equal(whole.cluster, blocks.cluster)
    np.testing.assert_array_equal(whole.centre, blocks.centre)
    np.testing.assert_allclose(whole.similarity, blocks.similarity, atol=1e-6)
    np.testing.assert_allclose(whole.similarity_any, blocks.similarity_any, atol=1e-6)
    assert whole.inertia == pytest.approx(blocks.inertia, rel=1e-5)


def test_no_block_has_more_rows_than_a_chunk(monkeypatch):
    """Memory grows with CHUNK x K: no matrix product has more rows than CHUNK."""
    for module in (centres, kmeans):
        monkeypatch.setattr(module, "CHUNK", 16)
    largest = 0

    class RecordLargestBlock(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **kwargs or {})
            if getattr(function, "__name__", "") in ("matmul", "__matmul__", "addmm") and result.ndim == 2 and result.shape[1] == 11:
                largest = max(largest, len(result))
            return result

    with RecordLargestBlock():
        run(noise(3, 300, 5), 11)
    assert 0 < largest <= 16


def test_the_features_are_not_modified():
    features = noise(0, 20, 3)
    copy = features.copy()
    run(features, 4)
    np.testing.assert_array_equal(features, copy)


def test_the_default_number_of_clusters_is_in_range_and_never_falls():
    defaults = [default_num_clusters(n) for n in range(1, 3000)]
    assert all(1 <= k <= n for n, k in enumerate(defaults, 1))
    assert all(k >= 2 for k in defaults[1:])
    assert defaults == sorted(defaults)
    assert default_num_clusters(16_000) == 1000


def test_k_of_zero_is_the_default_number_of_clusters():
    features = noise(5, 80, 6)
    assert same_bytes(run(features, 0), run(features, default_num_clusters(80)))


@pytest.mark.parametrize("algorithm", [KMeans(num_clusters=9, normalise=False), Dbscan(num_neighbours=6), Dbscan(camera_aware=False)])
@pytest.mark.parametrize("whitening", [0, 0.7])
@pytest.mark.parametrize("centre_cameras", [False, True])
def test_features_are_centred_then_whitened_then_clustered(algorithm, whitening, centre_cameras):
    camids = np.arange(80) % 3
    features = noise(6, 9, 8)[np.arange(80) % 9] + noise(7, 3, 8)[camids] + noise(8, 80, 8) * 0.3
    clustering = Clustering(whitening=whitening, shrinkage=0.2)
    clusters, preprocessed = cluster_features(
        features, camids, clustering=clustering, algorithm=algorithm, centre_cameras=centre_cameras, seed=3
    )
    expected = centre_by_camera(features, camids) if centre_cameras else features
    expected = whiten(expected, power=0.7, shrinkage=0.2) if whitening else expected
    assert preprocessed.tobytes() == expected.tobytes()
    if isinstance(algorithm, KMeans):
        assert same_bytes(clusters, cluster_by_kmeans(expected, algorithm, seed=3))
    else:
        assert same_bytes(clusters, cluster_by_density(expected, camids, algorithm))


@pytest.mark.parametrize("algorithm", [KMeans(num_clusters=3), Dbscan(num_neighbours=4, num_averaged=2, max_distance=0.8)])
def test_all_of_clustering_runs_on_the_device_that_is_passed(monkeypatch, algorithm):
    devices = []

    def record(features, rows, name, device="cpu"):
        devices.append(device)
        return unit_rows(features, rows, name, device)

    for module in (centres, kmeans, neighbours, whitening):
        monkeypatch.setattr(module, "unit_rows", record)
    features, camids = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32), np.arange(40) % 2
    clusters, _ = cluster_features(
        features, camids, clustering=Clustering(), algorithm=algorithm, centre_cameras=True, seed=0, device="cpu:0"
    )
    assert clusters.cluster.max() > 0
    assert set(devices) == {"cpu:0"}
