"""Clustering of features: preprocessing, then k-means or DBSCAN."""

from pul_core.arrays import Features, Ints
from pul_core.clustering.centres import Clusters
from pul_core.clustering.centring import centre_by_camera
from pul_core.clustering.density import cluster_by_density
from pul_core.clustering.kmeans import cluster_by_kmeans
from pul_core.clustering.whitening import whiten
from pul_core.settings import Algorithm, Clustering, KMeans


def cluster_features(
    features: Features,
    camids: Ints,
    *,
    clustering: Clustering,
    algorithm: Algorithm,
    centre_cameras: bool,
    seed: int,
    device: str = "cpu",
) -> tuple[Clusters, Features]:
    """Preprocess features and cluster them.

    Args:
        features: (n, d), one row per image.
        camids: (n,) camera of each image; an unknown camera (-1) differs from every camera, also from another unknown one.
        clustering: the settings of the whitening.
        algorithm: the settings of k-means or of DBSCAN; their type chooses the algorithm.
        centre_cameras: whether features are centred by camera before they are whitened.
        seed: of k-means.
        device: where every step runs.

    Returns:
        The clusters, and the (n, d) preprocessed features: the cosines of the clusters are those of these features.

    Raises:
        UserError: K is out of range, or a feature is not finite or a zero vector.

    Example:
        >>> import numpy as np
        >>> from pul_core.settings import Dbscan
        >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
        >>> options = {"clustering": Clustering(whitening=0), "centre_cameras": False, "seed": 0}
        >>> clusters, _ = cluster_features(features, np.full(4, -1), algorithm=Dbscan(num_neighbours=1, num_averaged=1), **options)
        >>> clusters.cluster.tolist()
        [0, 0, 1, 1]
    """
    if centre_cameras:
        features = centre_by_camera(features, camids, device=device)
    if clustering.whitening:
        features = whiten(features, power=clustering.whitening, shrinkage=clustering.shrinkage, device=device)
    if isinstance(algorithm, KMeans):
        return cluster_by_kmeans(features, algorithm, seed=seed, device=device), features
    return cluster_by_density(features, camids, algorithm, device=device), features
