"""Step *evaluate*: scores.parquet, one row a query. Only this step sees the target's identities; nothing that trains reads its result."""

import numpy as np
import pyarrow as pa
from sklearn.metrics import normalized_mutual_info_score

from pul_core.evaluation import Scores, Summary, score_queries, summarise
from tasks.artifacts import Artifact, column, read_table, write_table
from tasks.compute import prepare
from tasks.references import Clusters, Compute, ImageSet, Reliable
from tasks.steps import step


@step("evaluate-{iteration}")
def evaluate(query: Artifact, gallery: Artifact, images: ImageSet, labels: Artifact, *, compute: Compute, iteration: int) -> Artifact:
    """Score a model's query features against its gallery features under the Market-1501 protocol.

    Args:
        query: features.
        gallery: features.
        images: the target, for its cameras.
        labels: the target's identities.
        compute: threads.
        iteration: of the model; names the task run.
    """
    prepare(compute)
    pids, camids = column(read_table(labels), "pid"), column(read_table(images.images), "camid")
    sides = []
    for table in (read_table(query), read_table(gallery)):
        rows = column(table, "row")
        sides += [column(table, "feature"), pids[rows], camids[rows]]
    scores = score_queries(*sides)
    return write_table("scores", pa.table({"row": column(read_table(query, ["row"]), "row"), **scores._asdict()}))


def read_summary(scores: Artifact) -> Summary:
    """Return the means over the scored queries."""
    table = read_table(scores)
    return summarise(Scores(*(column(table, name) for name in Scores._fields)))


def oracle_diagnostics(clusters: Clusters, reliable: Reliable, labels: Artifact) -> dict[str, float]:
    """Return what only labels tell: NMI of the clusters, and the share of reliable images that are of their class's commonest identity."""
    pids = column(read_table(labels), "pid")
    table, chosen = read_table(clusters.clusters), read_table(reliable.reliable)
    chosen = chosen.filter(pa.compute.invert(chosen.column("labelled")))
    truth, classes = pids[column(chosen, "row")], column(chosen, "pseudo_label")
    pairs, counts = np.unique(np.stack((classes, truth)), axis=1, return_counts=True)
    commonest = np.zeros(reliable.num_classes, np.int64)
    np.maximum.at(commonest, pairs[0], counts)
    return {
        "oracle_nmi": float(normalized_mutual_info_score(pids[column(table, "row")], column(table, "cluster"))),
        "oracle_reliable_purity": float(commonest.sum() / len(truth)),
    }
