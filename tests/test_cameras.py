"""What is done about cameras, against dense oracles: centred features, and neighbourhoods searched for on each side apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.cluster import DBSCAN

from pul_core.clustering.cameras import camera_aware_encoding, centre_cameras
from pul_core.clustering.density import cluster_by_density
from pul_core.clustering.neighbours import jaccard_distances, nearest_neighbours

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def people(seed, n=60, d=8, cameras=3):
    """Features of nine people on some cameras, each of which moves them."""
    rng = np.random.default_rng(seed)
    camera = rng.integers(cameras, size=n)
    person = rng.integers(9, size=n)
    values = rng.normal(size=(9, d))[person] + rng.normal(0, 0.8, (cameras, d))[camera] + rng.normal(0, 0.3, (n, d))
    return values.astype(np.float32) * rng.uniform(0.5, 4, (n, 1)).astype(np.float32), camera


def squared_distances(features):
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return ((unit[:, None] - unit[None]) ** 2).sum(2)


def dense_jaccard(features, cameras, k, averaged):
    """The camera-aware Jaccard distance, set by set."""
    n, distance = len(features), squared_distances(features)
    near = [sorted((j for j in range(n) if cameras[j] == cameras[i]), key=lambda j, i=i: (j != i, distance[i, j])) for i in range(n)]
    far = [sorted((j for j in range(n) if cameras[j] != cameras[i]), key=lambda j, i=i: distance[i, j]) for i in range(n)]

    def reciprocal(i, on_own, on_others):
        own = {j for j in near[i][: on_own + 1] if i in near[j][: on_own + 1]}
        return own | {j for j in far[i][:on_others] if i in far[j][:on_others]}

    on_own = round(0.4 * k)
    encoding = np.zeros((n, n))
    for i in range(n):
        close = reciprocal(i, on_own, k)
        members = set(close)
        for j in close:
            theirs = reciprocal(j, on_own // 2, k // 2)
            if len(theirs & close) > 2 / 3 * len(theirs):
                members |= theirs
        for j in members:
            encoding[i, j] = np.exp(-distance[i, j])
        encoding[i] /= encoding[i].sum()
    if averaged > 1:
        half = averaged // 2
        encoding = np.array([encoding[near[i][: averaged - half] + far[i][:half]].mean(0) for i in range(n)])
    smaller = np.minimum(encoding[:, None], encoding[None]).sum(2)
    return 1 - smaller / (2 - smaller)


def filled(encoding):
    whole = np.ones(encoding.shape)
    start = 0
    for block in jaccard_distances(encoding, np.arange(len(whole))):
        row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr)) + start
        whole[row, block.indices] = block.data
        start += block.shape[0]
    return whole


@few
@given(seed=seeds, k=st.sampled_from([2, 5, 10]), averaged=st.sampled_from([1, 2, 4]))
def test_the_camera_aware_distance_equals_the_one_written_set_by_set(seed, k, averaged):
    features, cameras = people(seed)
    found = filled(camera_aware_encoding(features, cameras, num_neighbours=k, num_averaged=averaged))
    np.testing.assert_allclose(found, dense_jaccard(features, cameras, k, averaged), atol=2e-6)


def test_a_camera_with_few_images_has_few_neighbours():
    features, cameras = people(1, n=12)
    cameras[:] = 0
    cameras[3] = 1
    found = nearest_neighbours(features, 4, cameras=cameras)
    assert found.nearest[3].tolist() == [3, -1, -1, -1]
    assert np.isinf(found.distance[3, 1:]).all()
    others = nearest_neighbours(features, 4, cameras=cameras, same_camera=False)
    assert (others.nearest[cameras == 0][:, 0] == 3).all()
    assert (others.nearest[cameras == 0][:, 1:] == -1).all()
    encoding = camera_aware_encoding(features, cameras, num_neighbours=5, num_averaged=4)
    np.testing.assert_allclose(np.asarray(encoding.sum(1)).ravel(), 1, atol=1e-5)


@few
@given(seed=seeds)
def test_centred_cameras_share_their_mean_and_nothing_else_moves(seed):
    features, cameras = people(seed)
    before = features.copy()
    found = centre_cameras(features, cameras)
    np.testing.assert_array_equal(features, before)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for camera in np.unique(cameras):
        own = cameras == camera
        np.testing.assert_allclose(found[own].mean(0), unit.mean(0), atol=1e-5)
        np.testing.assert_allclose(found[own] - found[own][0], unit[own] - unit[own][0], atol=1e-5)
    np.testing.assert_allclose(centre_cameras(features, np.full(len(features), -1)), unit, atol=1e-6)


@few
@given(seed=seeds, cameras=st.sampled_from([1, 3]), most=st.sampled_from([0.3, 0.5, 0.7]), samples=st.sampled_from([2, 4]))
def test_density_clusters_equal_those_of_the_whole_matrix(seed, cameras, most, samples):
    features, camera = people(seed, cameras=cameras)
    options = {"num_neighbours": 6, "num_averaged": 2}
    found = cluster_by_density(features, camera, max_distance=most, min_samples=samples, **options)
    if cameras > 1:
        dense = np.clip(filled(camera_aware_encoding(features, camera, **options)), 0, 1)
        whole = DBSCAN(eps=most, min_samples=samples, metric="precomputed").fit(dense).labels_
        np.testing.assert_array_equal(found.cluster, whole)
    inside = found.cluster >= 0
    assert set(found.cluster[inside]) == set(range(len(found.centre)))
    np.testing.assert_array_equal(found.cluster[found.centre], np.arange(len(found.centre)))
    assert (found.similarity[~inside] == -1).all() and (found.similarity_any[~inside] == -1).all()
    np.testing.assert_allclose(found.similarity[found.centre], 1, atol=1e-5)
    assert (found.similarity_any >= found.similarity - 1e-6).all()


def test_density_that_finds_nothing_or_everything():
    features, camera = people(3)
    options = {"num_neighbours": 6, "num_averaged": 2, "min_samples": 15}
    nothing = cluster_by_density(features, camera, max_distance=0.3, **options)
    assert (nothing.cluster == -1).all() and len(nothing.centre) == 0
    everything = cluster_by_density(
        features[:1] + features[:20] / 100, np.arange(20) % 2, max_distance=0.9, **options | {"num_neighbours": 20}
    )
    assert (everything.cluster == everything.cluster[0]).all()
    with pytest.raises(ValueError, match="not finite"):
        cluster_by_density(features * np.nan, np.zeros(60, int), max_distance=0.5, **options)


def test_memory_of_an_encoding_grows_with_images_not_with_pairs():
    sizes = []
    for n in (300, 600):
        features, camera = people(5, n=n)
        encoding = camera_aware_encoding(features, camera, num_neighbours=10, num_averaged=4)
        assert sparse.issparse(encoding)
        sizes.append(encoding.nnz / n)
    assert sizes[1] < 1.3 * sizes[0]
