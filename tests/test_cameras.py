"""Centring by camera and the camera-aware Jaccard distance, against dense oracles."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.cluster import DBSCAN

from pul_core.clustering.camera_aware import camera_aware_encoding
from pul_core.clustering.centring import centre_by_camera
from pul_core.clustering.density import cluster_by_density, jaccard_distances_below
from pul_core.clustering.jaccard import jaccard_distances, reciprocal_encoding
from pul_core.clustering.neighbours import nearest_neighbours, neighbours_by_camera
from pul_core.settings import Dbscan

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def people(seed, n=60, d=8, cameras=3):
    """Draw features of nine people; every camera shifts them by a vector of its own."""
    rng = np.random.default_rng(seed)
    camids = rng.integers(cameras, size=n)
    person = rng.integers(9, size=n)
    values = rng.normal(size=(9, d))[person] + rng.normal(0, 0.8, (cameras, d))[camids] + rng.normal(0, 0.3, (n, d))
    return values.astype(np.float32) * rng.uniform(0.5, 4, (n, 1)).astype(np.float32), camids


def squared_distances(features):
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return ((unit[:, None] - unit[None]) ** 2).sum(2)


def dense_jaccard(features, camids, k, averaged):
    """Compute the camera-aware Jaccard distance with Python sets."""
    n, distance = len(features), squared_distances(features)
    near = [sorted((j for j in range(n) if camids[j] == camids[i]), key=lambda j, i=i: (j != i, distance[i, j])) for i in range(n)]
    far = [sorted((j for j in range(n) if camids[j] != camids[i]), key=lambda j, i=i: distance[i, j]) for i in range(n)]

    def reciprocal(i, num_same, num_others):
        same = {j for j in near[i][: num_same + 1] if i in near[j][: num_same + 1]}
        return same | {j for j in far[i][:num_others] if i in far[j][:num_others]}

    num_same = round(0.4 * k)
    encoding = np.zeros((n, n))
    for i in range(n):
        wide = reciprocal(i, num_same, k)
        members = set(wide)
        for j in wide:
            narrow = reciprocal(j, num_same // 2, k // 2)
            if len(narrow & wide) > 2 / 3 * len(narrow):
                members |= narrow
        for j in members:
            encoding[i, j] = np.exp(-distance[i, j])
        encoding[i] /= encoding[i].sum()
    if averaged > 1:
        half = averaged // 2
        encoding = np.array([encoding[near[i][: averaged - half] + far[i][:half]].mean(0) for i in range(n)])
    smaller = np.minimum(encoding[:, None], encoding[None]).sum(2)
    return 1 - smaller / (2 - smaller)


def filled(encoding):
    """Return all Jaccard distances as a dense matrix."""
    distances = np.ones(encoding.shape)
    start = 0
    for block in jaccard_distances(encoding, np.arange(len(distances))):
        row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr)) + start
        distances[row, block.indices] = block.data
        start += block.shape[0]
    return distances


@few
@example(seed=102, k=5, averaged=1)
@given(seed=seeds, k=st.sampled_from([2, 5, 10]), averaged=st.sampled_from([1, 2, 4]))
def test_the_camera_aware_distance_equals_that_of_sets(seed, k, averaged):
    features, camids = people(seed)
    gaps = np.diff(np.sort(squared_distances(features), axis=1), axis=1)
    assume(gaps.min() > 2e-6)  # float32 may order two neighbours that are equally near in another way than the oracle's float64
    distances = filled(camera_aware_encoding(features, camids, num_neighbours=k, num_averaged=averaged))
    np.testing.assert_allclose(distances, dense_jaccard(features, camids, k, averaged), atol=2e-6)


def test_a_camera_with_few_images_has_few_neighbours():
    features, camids = people(1, n=12)
    camids[:] = 0
    camids[3] = 1
    same, others = neighbours_by_camera(features, camids, 4, 4)
    assert same[3].tolist() == [3, -1, -1, -1]
    assert (others[camids == 0][:, 0] == 3).all()
    assert (others[camids == 0][:, 1:] == -1).all()
    encoding = camera_aware_encoding(features, camids, num_neighbours=5, num_averaged=4)
    np.testing.assert_allclose(np.asarray(encoding.sum(1)).ravel(), 1, atol=1e-5)


@few
@given(seed=seeds)
def test_centring_gives_cameras_the_same_mean_and_changes_nothing_within_them(seed):
    features, camids = people(seed)
    before = features.copy()
    centred = centre_by_camera(features, camids)
    np.testing.assert_array_equal(features, before)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for camid in np.unique(camids):
        on_camera = camids == camid
        np.testing.assert_allclose(centred[on_camera].mean(0), unit.mean(0), atol=1e-5)
        np.testing.assert_allclose(centred[on_camera] - centred[on_camera][0], unit[on_camera] - unit[on_camera][0], atol=1e-5)
    np.testing.assert_allclose(centre_by_camera(features, np.full(len(features), -1)), unit, atol=1e-6)


@few
@given(seed=seeds, cameras=st.sampled_from([1, 3]), max_distance=st.sampled_from([0.3, 0.5, 0.7]), min_samples=st.sampled_from([2, 4]))
def test_density_clusters_equal_those_of_a_dense_matrix(seed, cameras, max_distance, min_samples):
    features, camids = people(seed, cameras=cameras)
    options = {"num_neighbours": 6, "num_averaged": 2}
    clusters = cluster_by_density(features, camids, Dbscan(max_distance=max_distance, min_samples=min_samples, **options))
    if cameras > 1:
        dense = np.clip(filled(camera_aware_encoding(features, camids, **options)), 0, 1)
        labels = DBSCAN(eps=max_distance, min_samples=min_samples, metric="precomputed").fit(dense).labels_
        np.testing.assert_array_equal(clusters.cluster, labels)
    clustered = clusters.cluster >= 0
    assert set(clusters.cluster[clustered]) == set(range(len(clusters.centre)))
    np.testing.assert_array_equal(clusters.cluster[clusters.centre], np.arange(len(clusters.centre)))
    assert (clusters.similarity[~clustered] == -1).all() and (clusters.similarity_any[~clustered] == -1).all()
    np.testing.assert_allclose(clusters.similarity[clusters.centre], 1, atol=1e-5)
    assert (clusters.similarity_any >= clusters.similarity - 1e-6).all()


def test_density_clustering_may_find_no_cluster_or_one():
    features, camids = people(3)
    options = Dbscan(num_neighbours=6, num_averaged=2, min_samples=15, max_distance=0.3)
    none = cluster_by_density(features, camids, options)
    assert (none.cluster == -1).all() and len(none.centre) == 0
    one = cluster_by_density(features[:1] + features[:20] / 100, np.arange(20) % 2, replace(options, max_distance=0.9, num_neighbours=20))
    assert (one.cluster == one.cluster[0]).all()
    with pytest.raises(ValueError, match="not finite"):
        cluster_by_density(features * np.nan, np.zeros(60, int), options)


def test_without_camera_awareness_the_cameras_are_ignored():
    features, camids = people(4)
    aware = Dbscan(num_neighbours=6, num_averaged=2)
    clusters = cluster_by_density(features, camids, replace(aware, camera_aware=False)).cluster.tolist()
    assert clusters == cluster_by_density(features, np.full(60, -1), aware).cluster.tolist()
    assert clusters != cluster_by_density(features, camids, aware).cluster.tolist()


def test_the_size_of_an_encoding_grows_with_images_not_with_pairs():
    sizes = []
    for n in (300, 600):
        features, camids = people(5, n=n)
        encoding = camera_aware_encoding(features, camids, num_neighbours=10, num_averaged=4)
        assert sparse.issparse(encoding)
        sizes.append(encoding.nnz / n)
    assert sizes[1] < 1.3 * sizes[0]


def partly_unknown(seed, n=60):
    """Draw features of people, and cameras some of which are unknown."""
    features, camids = people(seed, n=n)
    return features, np.where(np.random.default_rng(seed).random(n) < 0.4, -1, camids)


@few
@given(seed=seeds, k=st.sampled_from([2, 5, 10]))
def test_an_unknown_camera_differs_from_every_camera(seed, k):
    """The same result as if each image of an unknown camera were on a camera of its own; the searches never mix the two kinds."""
    features, camids = partly_unknown(seed)
    unknown = np.flatnonzero(camids == -1)
    same, others = neighbours_by_camera(features, camids, k, len(features))
    assert same[unknown].tolist() == [[image, *[-1] * (k - 1)] for image in unknown]
    assert not np.isin(same[camids != -1], unknown).any()
    assert all(sorted(others[image][others[image] >= 0]) == [i for i in range(len(features)) if i != image] for image in unknown)
    separate = camids.copy()
    separate[unknown] = 100 + np.random.default_rng(seed).permutation(len(unknown))
    distances = [filled(camera_aware_encoding(features, cameras, num_neighbours=k, num_averaged=4)) for cameras in (camids, separate)]
    np.testing.assert_array_equal(*distances)


@few
@given(seed=seeds)
def test_distances_without_any_known_camera_are_those_without_cameras(seed):
    features, _ = people(seed)
    options = {"num_neighbours": 6, "num_averaged": 2, "max_distance": 0.7}
    unknown, one, plain = (jaccard_distances_below(features, np.full(60, camid), **options) for camid in (-1, 3, 0))
    neighbours = nearest_neighbours(features, 7)
    oracle = sparse.vstack(list(jaccard_distances(reciprocal_encoding(features, neighbours, k1=6, k2=2), np.arange(60)))).toarray()
    assert unknown.data.tobytes() == one.data.tobytes() == plain.data.tobytes()
    stored = unknown.nonzero()
    np.testing.assert_array_equal(unknown.toarray()[stored], oracle[stored])


@few
@given(seed=seeds, known=st.sets(st.integers(0, 59)))
def test_one_known_camera_changes_no_distance(seed, known):
    """Nothing shows which images are from different cameras, and a single unknown one must not shrink the neighbourhoods of the others."""
    features, _ = people(seed)
    camids = np.where(np.isin(np.arange(60), list(known)), 3, -1)
    options = {"num_neighbours": 6, "num_averaged": 2, "max_distance": 0.7}
    mixed, plain = (jaccard_distances_below(features, cameras, **options) for cameras in (camids, np.full(60, -1)))
    assert all(getattr(mixed, part).tobytes() == getattr(plain, part).tobytes() for part in ("data", "indices", "indptr"))


@few
@given(seed=seeds)
def test_centring_leaves_images_of_unknown_cameras_where_they_are(seed):
    features, camids = partly_unknown(seed)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    centred = centre_by_camera(features, camids)
    unknown = centre_by_camera(features, np.full(60, -1))
    np.testing.assert_array_equal(centred[camids == -1], unknown[camids == -1])
    for camid in np.setdiff1d(camids, -1):
        np.testing.assert_allclose(centred[camids == camid].mean(0), unit.mean(0), atol=1e-5)
    np.testing.assert_allclose(unknown, unit, atol=1e-7)  # another order of additions than NumPy's
