"""Every device-aware function of the core on drawn data, to compare a device with the CPU. Requires only what `pul_core` requires.

A check computes on a device and returns arrays; its difference of two results is 0 if they are equal. Results of a device may differ by
rounding, and by what rounding changes in turn: which of two equally near images is the nearer one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from drawn import draw_people
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from pul_core.clustering.centring import centre_by_camera
from pul_core.clustering.density import cluster_by_density, jaccard_distances_below
from pul_core.clustering.kmeans import cluster_by_kmeans
from pul_core.clustering.neighbours import nearest_neighbours
from pul_core.clustering.suggestion import clusters_by_distance
from pul_core.clustering.whitening import whiten
from pul_core.learning.backbone import build_backbone
from pul_core.learning.extraction import extract_features
from pul_core.learning.precision import training_dtype, use_deterministic_algorithms
from pul_core.learning.training import begin_training, train
from pul_core.scoring.protocols import PROTOCOLS, FeatureSet, score_protocol
from pul_core.scoring.reranking import Reranking
from pul_core.settings import Augmentation, Dbscan, KMeans, Memory, Optimisation, Training

N, D = 2000, 64
NO_AUGMENTATION = Augmentation(flip_probability=0, crop_share=0, erase_probability=0)


class Check(NamedTuple):
    """What is computed on a device from data of a seed, how two results are compared, and the largest difference that counts as equal."""

    run: Callable[[str, int], Any]
    difference: Callable[[Any, Any], float]
    tolerance: float


def largest(left: np.ndarray, right: np.ndarray) -> float:
    """Return the largest difference of two arrays, relative to the largest value."""
    return float(np.abs(left - right).max() / np.abs(left).max())


def share_of_other_rows(left: np.ndarray, right: np.ndarray) -> float:
    """Return the share of the rows that do not hold the same numbers, in any order."""
    return float((np.sort(left) != np.sort(right)).any(1).mean())


def share_of_other_entries(left: sparse.csr_matrix, right: sparse.csr_matrix) -> float:
    """Return the share of the stored entries that differ by more than 1e-4."""
    return float((np.abs((left - right).tocsr().data) > 1e-4).sum() / left.nnz)


def unlike_clusters(left: np.ndarray, right: np.ndarray) -> float:
    return 1 - float(adjusted_rand_score(left, right))


def relative(left: float, right: float) -> float:
    return abs(left - right) / abs(left)


def _whiten(device: str, seed: int) -> np.ndarray:
    return whiten(draw_people(N, D, seed=seed).features, power=0.7, shrinkage=0.3, device=device)


def _centre(device: str, seed: int) -> np.ndarray:
    people = draw_people(N, D, seed=seed)
    return centre_by_camera(people.features, people.camids, device=device)


def _neighbours(device: str, seed: int) -> np.ndarray:
    return nearest_neighbours(draw_people(N, D, seed=seed).features, 10, device=device).nearest


def _farthest(device: str, seed: int) -> np.ndarray:
    return nearest_neighbours(draw_people(N, D, seed=seed).features, 10, device=device).farthest


def _jaccard(device: str, seed: int) -> sparse.csr_matrix:
    people = draw_people(N, D, seed=seed)
    sizes = {"num_neighbours": 10, "num_averaged": 4, "max_distance": 0.7}
    return jaccard_distances_below(people.features, people.camids, **sizes, device=device)


def _density(device: str, seed: int) -> np.ndarray:
    people = draw_people(N, D, images_per_person=17 + seed, seed=seed)
    return cluster_by_density(people.features, people.camids, Dbscan(), device=device).cluster


def _kmeans(device: str, seed: int) -> float:
    features = draw_people(N, D + 8 * seed, seed=seed).features
    return cluster_by_kmeans(features, KMeans(num_clusters=N // 17), seed=0, device=device).inertia


def _suggestion(device: str, seed: int) -> np.ndarray:
    people = draw_people(N, D, seed=seed)
    options = {"num_neighbours": 10, "num_averaged": 4, "min_samples": 2}
    return clusters_by_distance(people.features, people.camids, **options, device=device).num_clusters.astype(float)


def _average_precision(device: str, seed: int, **options: Any) -> np.ndarray:
    query, gallery = draw_query_and_gallery(200, N, D, seed)
    return score_protocol(PROTOCOLS["market1501"], query, gallery, **options, device=device).scores.ap


def _reranked(device: str, seed: int) -> np.ndarray:
    return _average_precision(device, seed, reranking=Reranking())


def _features(device: str, seed: int) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, 256, (8, 64, 32, 3), np.uint8)
    features = np.concatenate(list(extract_features(build_backbone("resnet10t"), images, batch_size=8, device=device)))
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _loss(device: str, seed: int, **options: Any) -> float:
    """Return the mean loss of six steps without augmentation, which draws other numbers on another device."""
    rates = {"backbone_learning_rate": 0.02, "classifier_learning_rate": 0.2, "schedule": "constant"}
    optimisation = Optimisation(optimiser="sgd", **rates)
    settings = Training(epochs=1, batch_size=16, optimisation=optimisation, augmentation=NO_AUGMENTATION, **options)
    images = np.random.default_rng(seed).integers(0, 256, (96, 64, 32, 3), np.uint8)
    classes = np.arange(96) % (8 - 5 * seed)
    training = begin_training(build_backbone("resnet10t"), settings, num_classes=8, seed=0, device=device)
    return next(train(training, images, np.arange(96), classes, settings, seed=0)).loss


def _memory_loss(device: str, seed: int) -> float:
    return _loss(device, seed, memory=Memory(entries="clusters"))


def draw_query_and_gallery(queries: int, gallery: int, d: int, seed: int = 0, device: str = "cpu") -> tuple[FeatureSet, FeatureSet]:
    """Draw people on six cameras and take the queries evenly from them; the others are the gallery."""
    people = draw_people(queries + gallery, d, seed=seed, device=device)
    is_query = np.zeros(queries + gallery, bool)
    is_query[np.linspace(0, queries + gallery - 1, queries).astype(int)] = True
    query, rest = (FeatureSet(*(part[rows] for part in people)) for rows in (is_query, ~is_query))
    return query, rest


CHECKS = {
    "whiten": Check(_whiten, largest, 1e-3),
    "centre_by_camera": Check(_centre, largest, 1e-5),
    "nearest_neighbours": Check(_neighbours, share_of_other_rows, 0.005),
    "nearest_neighbours, farthest distance": Check(_farthest, largest, 1e-4),
    "jaccard_distances_below, camera-aware": Check(_jaccard, share_of_other_entries, 0.005),
    "cluster_by_density, camera-aware": Check(_density, unlike_clusters, 0.005),
    "cluster_by_kmeans, inertia": Check(_kmeans, relative, 0.01),
    "clusters_by_distance": Check(_suggestion, largest, 0.02),
    "score_protocol": Check(_average_precision, largest, 1e-3),
    "score_protocol, re-ranked": Check(_reranked, largest, 0.01),
    "extract_features": Check(_features, largest, 5e-3),
    "train, loss of six steps": Check(_loss, relative, 0.01),
    "train with a memory, loss of six steps": Check(_memory_loss, relative, 0.01),
}


def train_twice(device: str, *, deterministic: bool, steps: int = 8) -> tuple[bytes, bytes]:
    """Train the same model twice, with augmentation and a memory of clusters, and return the bytes of all weights of each.

    On a GPU, the variable CUBLAS_WORKSPACE_CONFIG must be ":4096:8" before CUDA starts.
    """
    settings = Training(
        epochs=1, batch_size=16, augmentation=Augmentation(rotation_degrees=10, colour_share=0.1), memory=Memory(entries="clusters")
    )
    images = np.random.default_rng(0).integers(0, 256, (16 * steps, 64, 32, 3), np.uint8)
    classes = np.arange(len(images)) % 8

    def train_once() -> bytes:
        training = begin_training(
            build_backbone("mobilenetv2_100"), settings, num_classes=8, seed=0, device=device, dtype=training_dtype(device)
        )
        list(train(training, images, np.arange(len(images)), classes, settings, seed=0))
        tensors = {**training.backbone.state_dict(), **{f"classifier.{k}": v for k, v in training.classifier.state_dict().items()}}
        return b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors.values())

    use_deterministic_algorithms(deterministic)
    try:
        return train_once(), train_once()
    finally:
        use_deterministic_algorithms(False)
