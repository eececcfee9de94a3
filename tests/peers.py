"""Run by the interpreter of .venv-peers: score the features of .npz files with the packages torchreid and reid, and write what they say."""

import sys
import warnings

import numpy as np

warnings.filterwarnings("ignore")

from reid.eval.metrics import _compute_reid_metrics, distance_matrix  # noqa: E402
from torchreid.reid.metrics.rank import evaluate_rank  # noqa: E402
from torchreid.reid.utils.rerank import re_ranking  # noqa: E402


def euclidean(left, right):
    left, right = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (left, right))
    return np.sqrt(np.maximum(2 - 2 * left @ right.T, 0)).astype(np.float32)


def torchreid(distances, given, **options):
    kept = given["gallery_pids"] != -1  # its data sets drop junk before they score
    sides = given["query_pids"], given["gallery_pids"][kept], given["query_camids"], given["gallery_camids"][kept]
    cmc, mean_ap = evaluate_rank(distances[:, kept], *sides, max_rank=50, **options)
    return np.append(cmc, mean_ap)


def main(source, target):
    given = np.load(source)
    query, gallery = given["query"], given["gallery"]
    distances = distance_matrix(query, gallery)
    found = {"torchreid": torchreid(distances, given), "torchreid_cuhk03": torchreid(distances, given, use_metric_cuhk03=True)}
    sides = given["query_pids"], given["gallery_pids"], given["query_camids"], given["gallery_camids"]
    other = _compute_reid_metrics(distances, *sides)
    found["reid"] = np.array([other.rank1, other.rank5, other.rank10, other.mean_average_precision, other.minp, other.num_queries])
    kept = given["gallery_pids"] != -1
    reranked = np.full(distances.shape, 9, np.float32)
    reranked[:, kept] = re_ranking(euclidean(query, gallery[kept]), euclidean(query, query), euclidean(gallery[kept], gallery[kept]))
    found["reranked"] = reranked[:, kept]
    found["torchreid_reranked"] = torchreid(reranked, given)
    np.savez(target, **found)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(name, name.replace(".npz", "-found.npz"))
