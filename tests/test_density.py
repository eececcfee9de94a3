"""DBSCAN on a sparse graph of distances has the same labels as scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.cluster import DBSCAN

from pul_core.clustering import density
from pul_core.clustering.density import dbscan, jaccard_distances_below

LIMIT = 0.5
STORED = st.sampled_from(
    np.array([0, 0.25, np.nextafter(LIMIT, 0), LIMIT, np.nextafter(np.float32(LIMIT), np.float32(1)), 0.75], np.float32).tolist()
)


def scikit_learn(distances, min_samples, max_distance=LIMIT):
    return DBSCAN(eps=max_distance, min_samples=min_samples, metric="precomputed").fit(distances).labels_


@st.composite
def graphs(draw, *, symmetric):
    """Draw sparse distances with a diagonal of zeros; zeros elsewhere are edges, too."""
    n = draw(st.integers(1, 14))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(
        lambda pair: pair[0] < pair[1] if symmetric else pair[0] != pair[1]
    )
    edges = draw(st.dictionaries(pairs, STORED, max_size=2 * n)) if n > 1 else {}
    if symmetric:
        edges |= {(j, i): distance for (i, j), distance in edges.items()}
    edges |= {(i, i): 0.0 for i in range(n)}
    rows, columns = zip(*sorted(edges), strict=True)
    values = np.array([edges[pair] for pair in sorted(edges)], np.float32)
    return sparse.csr_matrix((values, columns, np.searchsorted(rows, np.arange(n + 1))), shape=(n, n))


@pytest.mark.parametrize("symmetric", [True, False])
@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 4))
def test_the_labels_equal_those_of_scikit_learn(symmetric, data, min_samples):
    distances = data.draw(graphs(symmetric=symmetric))
    labels = dbscan(distances, max_distance=LIMIT, min_samples=min_samples)
    assert labels.tolist() == scikit_learn(distances, min_samples).tolist()
    assert labels.dtype == np.int64


@settings(max_examples=100, deadline=None)
@given(graphs(symmetric=True), st.integers(1, 2))
def test_a_symmetric_graph_needs_no_scikit_learn(distances, min_samples):
    expected = scikit_learn(distances, min_samples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density, "DBSCAN", None)
        assert dbscan(distances, max_distance=LIMIT, min_samples=min_samples).tolist() == expected.tolist()


def test_a_pair_that_is_near_in_one_direction_only_is_clustered_as_by_scikit_learn():
    """Rows 0 and 1 reach image 2, whose row reaches neither: scikit-learn gives 0 and 2 one cluster and 1 another."""
    near = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]], bool)
    distances = sparse.csr_matrix((np.zeros(near.sum(), np.float32), np.nonzero(near)[1], [0, 2, 4, 5]), shape=(3, 3))
    assert dbscan(distances, max_distance=LIMIT, min_samples=2).tolist() == scikit_learn(distances, 2).tolist() == [0, 1, 0]


@pytest.mark.parametrize("cameras", [1, 3])
@pytest.mark.parametrize("min_samples", [1, 2])
def test_the_labels_of_jaccard_distances_equal_those_of_scikit_learn(cameras, min_samples):
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(60, 12))[np.arange(600) % 60] + rng.normal(0, 0.5, (600, 12))).astype(np.float32)
    features[100:110] = features[0]  # distances of 0
    distances = jaccard_distances_below(features, np.arange(600) % 7 % cameras, num_neighbours=8, num_averaged=3, max_distance=0.7)
    for max_distance in (0.2, 0.45, 0.6, 0.7):
        labels = dbscan(distances, max_distance=max_distance, min_samples=min_samples)
        assert labels.tolist() == scikit_learn(distances, min_samples, max_distance).tolist()
