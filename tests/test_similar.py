"""Similar clusters: found as a loop over all pairs finds them, and left out of the softmax of each other's images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pul_core.clustering.centres import Clusters
from pul_core.clustering.similar import similar_clusters
from pul_core.learning.training import _cross_entropy, _similar_by_class, begin_training, train
from pul_core.selection import select_reliable, similar_classes
from pul_core.settings import Memory, Selection
from tests.test_training import CLASSES, PLAIN, ROWS, Tiny, images

__all__ = ["images"]  # a fixture


def random_centres(seed, k, d=6):
    return np.random.default_rng(seed).normal(size=(k, d)).astype(np.float32)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 8), st.sampled_from([-1, 0, 0.4]))
def test_pairs_are_those_of_a_loop_over_all_clusters(seed, k, num_similar, min_cosine):
    centres = random_centres(seed, k)
    unit = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    cosines = unit @ unit.T - 9 * np.eye(k)
    nearest = [set(np.argsort(-cosines[i])[: min(num_similar, k - 1)].tolist()) for i in range(k)]
    expected = [[i, j] for i in range(k) for j in range(k) if j in nearest[i] and i in nearest[j] and cosines[i, j] >= min_cosine]
    assert similar_clusters(centres, num_similar, min_cosine).tolist() == expected


def test_classes_are_numbered_as_the_reliable_set_numbers_them():
    """Cluster 1 has no reliable image (its centre belongs to cluster 2), and the image in no cluster is a class that resembles none."""
    cluster = np.array([0, 0, 1, 2, 2, 3, 3, -1])
    clusters = Clusters(cluster, np.array([0, 3, 4, 5]), *np.tile(np.where(np.isin(cluster, (-1, 1)), -1, 0.9).astype(np.float32), (2, 1)))
    centres = np.array([[1, 0], [1, 0.05], [1, 0.1], [0, 1]], np.float32)
    options = Selection(min_similarity=0.5, keep_unclustered=True, num_similar=1)
    reliable = select_reliable(clusters, options)
    assert reliable.num_classes == 4
    assert similar_classes(reliable, clusters, centres, options).tolist() == [[0, 1], [1, 0]]
    assert similar_classes(reliable, clusters, centres, Selection()) is None


def test_centres_farther_apart_than_nearly_all_images_are_from_theirs_are_not_similar():
    """The cosines of four images to their centres are 0.95, 0.9, 0.9 and 0.8; those of the three centres are 0.87, 0.5 and 0."""
    similarity = np.array([1, 0.95, 0.9, 1, 0.9, 0.8, 1], np.float32)
    clusters = Clusters(np.array([0, 0, 0, 1, 1, 1, 2]), np.array([0, 3, 6]), similarity, similarity)
    centres = np.array([[1, 0], [3**0.5 / 2, 0.5], [0, 1]], np.float32)

    def pairs(quantile):
        options = Selection(min_similarity=-1, num_similar=2, similar_quantile=quantile)
        return similar_classes(select_reliable(clusters, options), clusters, centres, options).tolist()

    assert pairs(0) == [[0, 1], [1, 0]]
    assert pairs(0.5) == []


def loss_of_each_image(logits, classes, label_smoothing, pairs):
    """Return the mean over the images of the cross-entropy among the classes that compete, one image after the other."""
    losses = []
    for row, own in zip(logits, classes, strict=True):
        competing = [c for c in range(len(row)) if [own, c] not in pairs]
        log_probability = np.log(np.exp(row[competing]) / np.exp(row[competing]).sum())
        target = np.full(len(competing), label_smoothing / len(competing))
        target[competing.index(own)] += 1 - label_smoothing
        losses.append(-(target * log_probability).sum())
    return np.mean(losses)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.sampled_from([0.0, 0.1, 0.5]))
def test_the_loss_is_that_of_the_classes_that_compete(seed, k, label_smoothing):
    rng = np.random.default_rng(seed)
    logits, classes = rng.normal(size=(7, k)), rng.integers(k, size=7)
    pairs = np.argwhere(np.triu(rng.random((k, k)) < 0.3, 1))
    pairs = np.concatenate((pairs, pairs[:, ::-1]))
    similar = _similar_by_class(pairs, np.arange(k), "cpu")
    found = _cross_entropy(torch.tensor(logits), torch.tensor(classes), label_smoothing, similar)
    assert float(found) == pytest.approx(loss_of_each_image(logits, classes, label_smoothing, pairs.tolist()), abs=1e-5)


def test_without_pairs_the_loss_is_that_of_torch():
    logits, classes = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 3])
    similar = _similar_by_class(np.empty((0, 2), np.int64), classes.numpy(), "cpu")
    torch.testing.assert_close(_cross_entropy(logits, classes, 0.1, similar), F.cross_entropy(logits, classes, label_smoothing=0.1))


def test_a_class_is_not_pushed_away_by_images_of_a_similar_one():
    logits = torch.zeros(1, 3, requires_grad=True)
    _cross_entropy(logits, torch.tensor([0]), 0.1, _similar_by_class(np.array([[0, 1], [1, 0]]), np.arange(3), "cpu")).backward()
    assert logits.grad[0, 1] == 0
    assert logits.grad[0, 0] < 0 < logits.grad[0, 2]


@pytest.mark.parametrize("memory", ["none", "clusters", "images"])
def test_images_whose_class_competes_with_none_have_no_loss(memory, images):
    """The colours are three classes: among similar ones there is nothing to learn, whichever classifier is used."""
    options = replace(PLAIN, label_smoothing=0.1, memory=Memory(entries=memory))

    def losses(pairs):
        training = begin_training(Tiny(0), options, num_classes=3, classes=CLASSES, seed=0)
        return [epoch.loss for epoch in train(training, images, ROWS, CLASSES, options, similar=np.array(pairs), seed=0)]

    pairs = [[0, 1], [1, 0]]
    assert losses([[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]) == [0]
    assert 0 < losses(pairs)[0] < losses(np.empty((0, 2), np.int64))[0]
