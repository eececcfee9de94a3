"""Step *evaluate*: scores.parquet, one row a query. Nothing that trains reads its result."""

from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.metrics import normalized_mutual_info_score

from pul_core.cameras import centre_cameras as core_centre_cameras
from pul_core.evaluation import Scores, Summary, Unscored, summarise
from pul_core.identities import JUNK_PID
from pul_core.protocols import PROTOCOLS, ProtocolName, Side
from pul_core.protocols import evaluate as core_evaluate
from pul_core.ranks import Ties
from pul_core.reranking import Reranking
from tasks.artifacts import Artifact, column, locate, read_table, write_table
from tasks.cameras import camids
from tasks.cluster import read_selected
from tasks.compute import prepare
from tasks.references import Clusters, Compute, ImageSet, Reliable
from tasks.steps import step

RANKS = (1, 5, 10, 20)


@step("evaluate-{iteration}")
def evaluate(
    query: Artifact,
    gallery: Artifact,
    images: ImageSet,
    labels: Artifact,
    *,
    compute: Compute,
    iteration: int,
    protocol: ProtocolName = "market1501",
    ties: Ties = "pessimistic",
    rerank: bool = False,
    centre_cameras: bool = False,
    seed: int = 0,
) -> Artifact:
    """Score a model's query features against its gallery features.

    Args:
        query: features.
        gallery: features.
        images: the target, for its cameras.
        labels: the target's identities.
        compute: threads.
        iteration: of the model; names the task run.
        protocol: one of ``pul_core.protocols.PROTOCOLS``.
        ties: how answers of equal distance are counted.
        rerank: by k-reciprocal neighbours, with the constants of the paper.
        centre_cameras: compare features less the mean of their camera, taken over query and gallery.
        seed: of a protocol's splits.

    Raises:
        ValueError: the data do not suit the protocol.
    """
    prepare(compute)
    pids, cameras = column(read_table(labels), "pid"), camids(read_table(images.images, ["camid"]))
    tables = read_table(query), read_table(gallery)
    rows = [column(table, "row") for table in tables]
    features = [column(table, "feature") for table in tables]
    if centre_cameras:
        centred = core_centre_cameras(np.concatenate(features), cameras[np.concatenate(rows)])
        features = np.split(centred, [len(rows[0])])
    sides = [Side(values, pids[at], cameras[at]) for values, at in zip(features, rows, strict=True)]
    found = core_evaluate(PROTOCOLS[protocol], *sides, ties=ties, reranking=Reranking() if rerank else None, seed=seed)
    order = np.lexsort((found.query, found.split))
    columns = {"row": rows[0][found.query], "split": found.split, **found.scores._asdict()}
    return write_table("scores", pa.table({name: values[order] for name, values in columns.items()}))


def read_summary(scores: Artifact, unscored: Unscored = "left_out") -> Summary:
    """Return the means over the queries of each split."""
    table = read_table(scores)
    return summarise(Scores(*(column(table, name) for name in Scores._fields)), column(table, "split"), unscored=unscored)


def read_figures(scores: Artifact, unscored: Unscored = "left_out") -> dict[str, float]:
    """Return the means by the names they are recorded under."""
    summary = read_summary(scores, unscored)
    figures = {f"rank_{rank}": float(summary.cmc[rank - 1]) for rank in RANKS}
    figures |= {"mAP": summary.mean_ap, "mAP_trapezoidal": summary.mean_ap_trapezoidal, "mINP": summary.mean_inp}
    return figures | {"num_scored_queries": summary.num_scored, "num_unscored_queries": summary.num_unscored}


def report(scores: dict[str, Artifact], unscored: Unscored) -> dict[str, dict[str, Any]]:
    """Return for each named table of scores its figures, its whole CMC curve and where the table lies."""
    return {
        name: {**read_figures(table, unscored), "cmc": read_summary(table, unscored).cmc.tolist(), "scores": locate(table)}
        for name, table in scores.items()
    }


def oracle_diagnostics(clusters: Clusters, reliable: Reliable, labels: Artifact) -> dict[str, float]:
    """Return what only labels tell: NMI of the clusters, and the share of reliable images that are of their class's commonest identity."""
    pids = column(read_table(labels), "pid")
    table, chosen = read_table(clusters.clusters), read_selected(reliable)
    known = pids > JUNK_PID  # what nobody labelled is no identity of its own
    table = table.filter(known[column(table, "row")] & (column(table, "cluster") >= 0))  # nor is what belongs to no cluster one
    chosen = chosen.filter(known[column(chosen, "row")])
    if chosen.num_rows == 0:
        return {}
    truth, classes = pids[column(chosen, "row")], column(chosen, "pseudo_label")
    pairs, counts = np.unique(np.stack((classes, truth)), axis=1, return_counts=True)
    commonest = np.zeros(reliable.num_classes, np.int64)
    np.maximum.at(commonest, pairs[0], counts)
    return {
        "oracle_nmi": float(normalized_mutual_info_score(pids[column(table, "row")], column(table, "cluster"))),
        "oracle_reliable_purity": float(commonest.sum() / len(truth)),
    }
