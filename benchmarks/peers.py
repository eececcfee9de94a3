"""The peers' side of `speed.py`: run by the interpreter of `.venv-peers`, on inputs in a folder; prints seconds and what was computed.

Usage: .venv-peers/bin/python benchmarks/peers.py PEER FOLDER THREADS ROUNDS. Imports are not timed.
"""

import json
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = sys.argv[3]  # before numpy is imported
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402


def faiss_kmeans(folder, num_threads):
    import faiss

    faiss.omp_set_num_threads(num_threads)
    points, k = np.load(folder / "points.npy"), int(np.load(folder / "num_clusters.npy"))

    def run():
        kmeans = faiss.Kmeans(points.shape[1], k, niter=25, seed=1, max_points_per_centroid=len(points), min_points_per_centroid=1)
        kmeans.train(points)
        return kmeans.index.search(points, 1)[1].ravel()

    return run, lambda clusters: np.save(folder / "faiss_kmeans.npy", clusters), f"faiss {faiss.__version__}, 25 iterations, all points"


def load_sets(folder):
    names = ("query", "gallery", "query_pids", "gallery_pids", "query_camids", "gallery_camids")
    return [np.load(folder / f"{name}.npy") for name in names]


def torchreid_scoring(folder, num_threads):
    import torch
    from torchreid.reid.metrics import compute_distance_matrix
    from torchreid.reid.metrics.rank import IS_CYTHON_AVAI, evaluate_rank

    torch.set_num_threads(num_threads)
    query, gallery, *labels = load_sets(folder)

    def run():
        distances = compute_distance_matrix(torch.from_numpy(query), torch.from_numpy(gallery), "cosine").numpy()
        return evaluate_rank(distances, *labels)[1]

    return run, None, f"torchreid 0.2.5, {'compiled (Cython)' if IS_CYTHON_AVAI else 'pure Python'} evaluator"


def reid_scoring(folder, num_threads):
    from reid.eval.metrics import _compute_reid_metrics, distance_matrix  # the public way to them needs one of its models

    query, gallery, *labels = load_sets(folder)
    run = lambda: _compute_reid_metrics(distance_matrix(query, gallery), *labels).mean_average_precision / 100  # noqa: E731
    return run, None, "reid 0.1.0rc1"


def torchreid_reranking(folder, num_threads):
    from torchreid.reid.utils.rerank import re_ranking

    query, gallery, *_ = load_sets(folder)

    def euclidean(left, right):
        return np.sqrt(np.maximum(2 - 2 * left @ right.T, 0))

    def run():
        left, right = (features / np.linalg.norm(features, axis=1, keepdims=True) for features in (query, gallery))
        return re_ranking(euclidean(left, right), euclidean(left, left), euclidean(right, right))

    return run, lambda distances: np.save(folder / "torchreid_reranking.npy", distances), "torchreid 0.2.5"


def main(peer, folder, num_threads, rounds):
    """Run a peer several times and print the median of its seconds."""
    run, save, name = globals()[peer](Path(folder), int(num_threads))
    times = []
    for _ in range(int(rounds)):
        started = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - started)
    if save:
        save(result)
    print(json.dumps({"name": name, "seconds": statistics.median(times), "result": None if save else float(result)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
