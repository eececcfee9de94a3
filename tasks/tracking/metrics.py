"""The metrics of an iteration, computed from its artifacts."""

from pul_core.errors import UserError
from pul_core.scoring.diagnostics import cluster_quality
from pul_core.self_paced import label_agreement, overlap
from tasks.engine.progress import step_logger
from tasks.store.artifacts import Artifact, column, read_table
from tasks.store.readers import read_selected
from tasks.store.references import Clusters, Iteration, Reliable
from tasks.store.scores import metrics_of, read_summary


def iteration_metrics(iteration: Iteration, labels: Artifact | None) -> dict[str, float]:
    """Compute the metrics of an iteration from its artifacts.

    Args:
        iteration: references to the artifacts of the iteration.
        labels: labels.parquet of the target for the ``oracle_`` diagnostics; None leaves these out.

    Returns:
        The metrics by their MLflow names.
    """
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
            metrics |= reliable_set_changes(iteration.reliable_before, iteration.reliable)
        if labels:
            metrics |= oracle_diagnostics(iteration.clusters, iteration.reliable, labels)
    timed = {
        "seconds_original_model": None if iteration.iteration else iteration.model,
        "seconds_group_by_style": iteration.cameras if iteration.cameras and iteration.cameras.kind == "cameras" else None,
        "seconds_extract_features": iteration.features,
        "seconds_statistics": iteration.statistics and iteration.statistics.statistics,
    }
    metrics |= {name: artifact.seconds for name, artifact in timed.items() if artifact}
    if iteration.trained:
        metrics["seconds_fine_tune"] = iteration.trained.model.seconds
        metrics["num_images_seen"] = int(column(read_table(iteration.trained.training), "images").sum())
    if iteration.scores:
        try:
            metrics |= score_metrics(iteration.scores, iteration.scores_statistics)
        except UserError as error:  # scores never influence the run, so a target that cannot be scored does not stop it
            step_logger().warning("The model of iteration %d has no scores: %s", iteration.iteration, error)
        metrics["seconds_evaluate"] = iteration.scores.seconds
    return metrics


def score_metrics(scores: Artifact, scores_statistics: Artifact | None) -> dict[str, float]:
    """Return the scores of a model, and, where there are separate ones with statistics by camera, those as ``NAME_statistics``."""
    by_camera = metrics_of(read_summary(scores_statistics)) if scores_statistics else {}
    return metrics_of(read_summary(scores)) | {f"{name}_statistics": by_camera[name] for name in by_camera if not name.startswith("num_")}


def reliable_set_changes(before: Reliable, after: Reliable) -> dict[str, float]:
    """Compare the selected images of two successive iterations.

    Labelled and unclustered images are left out, because they are in both reliable sets by construction.

    Returns:
        ``reliable_overlap``, and ``reliable_agreement_ari`` if the two sets share at least two images.
    """
    tables = [read_selected(reliable) for reliable in (before, after)]
    (rows_before, labels_before), (rows_after, labels_after) = ((column(table, "row"), column(table, "pseudo_label")) for table in tables)
    changes = {"reliable_overlap": overlap(rows_before, rows_after)}
    agreement = label_agreement(rows_before, labels_before, rows_after, labels_after)
    return changes if agreement is None else changes | {"reliable_agreement_ari": agreement}


def oracle_diagnostics(clusters: Clusters, reliable: Reliable, labels: Artifact) -> dict[str, float]:
    """Return the diagnostics that require identities.

    Images without a known identity and images outside all clusters are left out.

    Returns:
        ``oracle_nmi``, the normalised mutual information of clusters and identities, and ``oracle_reliable_purity``, the share of selected
        images whose identity is the most frequent one of their class. Empty if no selected image has a known identity.
    """
    pids = column(read_table(labels), "pid")
    clustered, selected = read_table(clusters.clusters), read_selected(reliable)
    of_clusters = cluster_quality(column(clustered, "cluster"), pids[column(clustered, "row")])
    of_selected = cluster_quality(column(selected, "pseudo_label"), pids[column(selected, "row")])
    return {"oracle_nmi": of_clusters.nmi, "oracle_reliable_purity": of_selected.purity} if of_clusters and of_selected else {}
