"""Partial PCA whitening against its definition, one principal direction after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.clustering.whitening import whiten

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def features_of(seed, n=50, d=6):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)).astype(np.float32)


def unit(features):
    return features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)


@few
@given(seed=seeds, power=st.floats(0, 1, allow_subnormal=False), shrinkage=st.floats(0.01, 2))
def test_it_equals_the_sum_over_principal_directions(seed, power, shrinkage):
    features = features_of(seed)
    centred = unit(features) - unit(features).mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=True)
    variance = singular**2 / len(centred)
    expected = np.zeros_like(centred)
    for v, direction in zip(variance, directions, strict=True):
        expected += np.outer(centred @ direction, direction) / (v + shrinkage * variance.mean()) ** (power / 2)
    np.testing.assert_allclose(whiten(features, power=power, shrinkage=shrinkage), expected, atol=1e-4)


@few
@given(seed=seeds)
def test_full_whitening_gives_all_directions_the_same_variance(seed):
    whitened = whiten(features_of(seed, n=200), power=1, shrinkage=1e-9).astype(np.float64)
    np.testing.assert_allclose(whitened.T @ whitened / len(whitened), np.eye(6), atol=1e-2)


@few
@given(seed=seeds, scale=st.floats(0.1, 10))
def test_the_length_of_a_feature_does_not_matter_and_the_features_are_not_modified(seed, scale):
    features = features_of(seed)
    before = features.copy()
    lengths = np.random.default_rng(seed).uniform(0.5, scale + 1, (50, 1)).astype(np.float32)
    whitened = whiten(features, power=0.7, shrinkage=0.3)
    np.testing.assert_array_equal(features, before)
    np.testing.assert_allclose(whiten(features * lengths, power=0.7, shrinkage=0.3), whitened, atol=1e-4)


def test_the_size_of_a_block_changes_nothing(monkeypatch):
    features = features_of(1)
    whole = whiten(features, power=0.7, shrinkage=0.3)
    monkeypatch.setattr("pul_core.clustering.whitening.ROWS", 7)
    np.testing.assert_allclose(whiten(features, power=0.7, shrinkage=0.3), whole, atol=1e-5)


def test_fewer_images_than_directions_and_directions_without_variance():
    features = np.zeros((3, 5), np.float32)
    features[:, 0] = 1
    features[:, 1] = [0.5, 0, -0.5]
    for shrinkage in (0, 0.3):
        whitened = whiten(features, power=1, shrinkage=shrinkage)
        assert np.isfinite(whitened).all()
        assert whitened[0, 1] > 0.5 and abs(whitened[1, 1]) < 0.01 and whitened[2, 1] < -0.5, "the order along the direction is kept"
    with pytest.raises(ValueError, match="identical"):
        whiten(np.ones((4, 3), np.float32), power=1, shrinkage=0)


def test_a_zero_vector_is_refused():
    features = features_of(2)
    features[3] = 0
    with pytest.raises(ValueError, match="zero vector"):
        whiten(features, power=0.7, shrinkage=0.3)
