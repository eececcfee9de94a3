"""Score the features of .npz files with the packages torchreid and reid, and save their results; run by the interpreter of .venv-peers."""

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


def torchreid(distances, data, **options):
    not_junk = data["gallery_pids"] != -1  # torchreid's data sets drop junk before scoring
    labels = data["query_pids"], data["gallery_pids"][not_junk], data["query_camids"], data["gallery_camids"][not_junk]
    cmc, mean_ap = evaluate_rank(distances[:, not_junk], *labels, max_rank=50, **options)
    return np.append(cmc, mean_ap)


def main(source, target):
    data = np.load(source)
    query, gallery = data["query"], data["gallery"]
    distances = distance_matrix(query, gallery)
    results = {"torchreid": torchreid(distances, data), "torchreid_cuhk03": torchreid(distances, data, use_metric_cuhk03=True)}
    labels = data["query_pids"], data["gallery_pids"], data["query_camids"], data["gallery_camids"]
    reid = _compute_reid_metrics(distances, *labels)
    results["reid"] = np.array([reid.rank1, reid.rank5, reid.rank10, reid.mean_average_precision, reid.minp, reid.num_queries])
    not_junk = data["gallery_pids"] != -1
    reranked = np.full(distances.shape, 9, np.float32)
    reranked[:, not_junk] = re_ranking(
        euclidean(query, gallery[not_junk]), euclidean(query, query), euclidean(gallery[not_junk], gallery[not_junk])
    )
    results["reranked"] = reranked[:, not_junk]
    results["torchreid_reranked"] = torchreid(reranked, data)
    np.savez(target, **results)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(name, name.replace(".npz", "-results.npz"))
