"""Nearest neighbours, k-reciprocal encodings and re-ranking, against dense oracles written from the paper."""

import numpy as np
import pytest

from pul_core.clustering import jaccard, neighbours
from pul_core.clustering.jaccard import jaccard_distances, reciprocal_encoding
from pul_core.clustering.neighbours import nearest_neighbours
from pul_core.scoring.reranking import Reranking, reranked_distances


def draw_groups(seed, n=90, d=6):
    """Draw features in loose groups, so that neighbourhoods overlap."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(9, d))[rng.integers(9, size=n)] + rng.normal(0, 0.5, (n, d))).astype(np.float32) * rng.uniform(
        0.5, 4, (n, 1)
    ).astype(np.float32)


def squared_distances(features):
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return ((unit[:, None] - unit[None]) ** 2).sum(2)


def dense_encoding(distance, k1, k2):
    """Compute the encoding of Zhong et al. with Python sets, from (n, n) distances that are already scaled."""
    n = len(distance)
    ranking = [sorted(range(n), key=lambda j, i=i: (j != i, distance[i, j])) for i in range(n)]

    def reciprocal(i, k):
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    encoding = np.zeros((n, n))
    for i in range(n):
        wide = reciprocal(i, k1)
        members = set(wide)
        for j in wide:
            narrow = reciprocal(j, int(np.around(k1 / 2)))
            if len(narrow & wide) > 2 / 3 * len(narrow):
                members |= narrow
        for j in members:
            encoding[i, j] = np.exp(-distance[i, j])
        encoding[i] /= encoding[i].sum()
    return np.array([encoding[ranking[i][:k2]].mean(0) for i in range(n)])


def dense_jaccard(encoding):
    smaller = np.minimum(encoding[:, None], encoding[None]).sum(2)
    larger = np.maximum(encoding[:, None], encoding[None]).sum(2)
    return 1 - smaller / larger


def filled(blocks, width):
    rows = []
    for block in blocks:
        for i in range(block.shape[0]):
            row = np.ones(width)
            part = slice(block.indptr[i], block.indptr[i + 1])
            row[block.indices[part]] = block.data[part]
            rows.append(row)
    return np.array(rows)


@pytest.fixture
def small_blocks(monkeypatch):
    for name, value in {"ROWS": 17, "COLUMNS": 23, "GROUPS": (4, 5), "RESIDENT": 0}.items():
        monkeypatch.setattr(neighbours, name, value)
    for name, value in {"PAIRS": 100, "OVERLAPS": 3000, "CELLS": 1000}.items():
        monkeypatch.setattr(jaccard, name, value)


@pytest.mark.parametrize("k", [1, 7, 40, 200])
def test_neighbours_equal_a_sorted_distance_matrix(small_blocks, k):
    features = draw_groups(1)
    distance = squared_distances(features)
    nearest = nearest_neighbours(features, k)
    np.testing.assert_array_equal(nearest.nearest, np.argsort(distance, axis=1)[:, :k])
    np.testing.assert_allclose(nearest.farthest, distance.max(1), rtol=1e-5)


def test_an_image_is_its_own_nearest_neighbour_even_among_duplicates():
    nearest = nearest_neighbours(np.tile(np.array([[0.3, 0.7]], np.float32), (50, 1)), 3)
    np.testing.assert_array_equal(nearest.nearest[:, 0], np.arange(50))
    encoding = reciprocal_encoding(np.ones((50, 2), np.float32), nearest, k1=2, k2=2)
    np.testing.assert_allclose(encoding.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (9, 1), (5, 3), (30, 8), (200, 6)])
def test_encoding_and_jaccard_distance_equal_the_sets_of_the_paper(small_blocks, k1, k2):
    features = draw_groups(2)
    distance = squared_distances(features)
    expected = dense_encoding(distance, k1, k2)
    encoding = reciprocal_encoding(features, nearest_neighbours(features, max(k1 + 1, k2)), k1=k1, k2=k2)
    np.testing.assert_allclose(encoding.toarray(), expected, atol=1e-6)
    order = np.random.default_rng(0).permutation(len(features))[:50]
    np.testing.assert_allclose(filled(jaccard_distances(encoding, order), 90), dense_jaccard(expected)[order], atol=1e-5)
    to = np.arange(30, 90)
    np.testing.assert_allclose(filled(jaccard_distances(encoding, order, to=to), 60), dense_jaccard(expected)[np.ix_(order, to)], atol=1e-5)


def test_too_few_neighbours_are_refused():
    features = draw_groups(3)
    with pytest.raises(ValueError, match="require 21 neighbours of each image, got 20"):
        reciprocal_encoding(features, nearest_neighbours(features, 20), k1=20, k2=6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [Reranking(), Reranking(k1=8, k2=1, weight=0), Reranking(k1=7, k2=4, weight=0.6)])
def test_reranked_distances_equal_a_dense_oracle(small_blocks, seed, settings):
    features = draw_groups(seed)
    query, gallery = features[:25], features[25:]
    scaled = squared_distances(features)
    scaled /= scaled.max(1, keepdims=True)
    jaccard = dense_jaccard(dense_encoding(scaled, settings.k1, settings.k2))
    expected = ((1 - settings.weight) * jaccard + settings.weight * scaled)[:25, 25:]
    distances = reranked_distances(query, gallery, settings)
    np.testing.assert_allclose(distances(np.arange(65))(np.arange(25)).numpy(), expected, atol=1e-5)
    columns, rows = np.array([3, 4, 9, 60]), np.array([0, 7, 24])
    np.testing.assert_allclose(distances(columns)(rows).numpy(), expected[np.ix_(rows, columns)], atol=1e-5)
