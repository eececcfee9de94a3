"""The metrics of an iteration, read from its artifacts."""

import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from pul_core.errors import UserError
from pul_core.identities import JUNK_PID
from pul_core.self_paced import label_agreement, overlap
from tasks.engine.progress import step_logger
from tasks.store.artifacts import Artifact, column, read_table
from tasks.store.readers import read_selected, read_training
from tasks.store.references import Clusters, Iteration, Reliable
from tasks.store.scores import read_figures


def iteration_metrics(iteration: Iteration, labels: Artifact | None) -> dict[str, float]:
    """Read an iteration's metrics from its artifacts."""
    metrics: dict[str, float] = {}
    if iteration.clusters and iteration.reliable:
        metrics |= {
            "reliable_set_size": iteration.reliable.size,
            "reliable_fraction": iteration.reliable.size / iteration.clusters.clusters.rows,
            "num_labelled_images": iteration.reliable.num_labelled,
            "num_clusters": iteration.clusters.num_clusters,
            "num_single_image_clusters": iteration.clusters.num_single_image_clusters,
            "seconds_cluster": iteration.clusters.clusters.seconds,
            "seconds_select": iteration.reliable.reliable.seconds,
        }
        if iteration.reliable_before:
            metrics |= what_changed(iteration.reliable_before, iteration.reliable)
        if labels:
            metrics |= oracle_diagnostics(iteration.clusters, iteration.reliable, labels)
    if iteration.iteration == 0:
        metrics["seconds_original_model"] = iteration.model.seconds
    if iteration.features:
        metrics["seconds_extract_features"] = iteration.features.seconds
    if iteration.trained:
        metrics["seconds_fine_tune"] = iteration.trained.model.seconds
        metrics["num_images_seen"] = sum(epoch["images"] for epoch in read_training(iteration.trained))
    if iteration.scores:
        try:
            metrics |= read_figures(iteration.scores)
        except UserError as error:  # scores steer nothing, so a set that cannot be scored stops nothing
            step_logger().warning("no scores: %s", error)
        metrics["seconds_evaluate"] = iteration.scores.seconds
    return metrics


def what_changed(before: Reliable, after: Reliable) -> dict[str, float]:
    """Compare what was selected in two successive iterations; what stands beside it is in both by construction and left out."""
    selected = [read_selected(reliable) for reliable in (before, after)]
    (rows, classes), (rows_after, classes_after) = ((column(table, "row"), column(table, "pseudo_label")) for table in selected)
    agreement = label_agreement(rows, classes, rows_after, classes_after)
    return {
        "reliable_overlap": overlap(rows, rows_after),
        **({} if agreement is None else {"reliable_agreement_ari": agreement}),
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
