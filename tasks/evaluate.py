"""Step *evaluate*: writes scores.parquet, one row per query. No training step reads its result."""

import numpy as np
import pyarrow as pa

from pul_core.clustering.centring import centre_by_camera
from pul_core.scoring.protocols import PROTOCOLS, FeatureSet, ProtocolName, score_protocol
from pul_core.scoring.ranks import Ties
from pul_core.scoring.reranking import Reranking
from tasks.engine.compute import prepare
from tasks.engine.steps import step
from tasks.store.artifacts import Artifact, column, read_table, write_table
from tasks.store.readers import camids
from tasks.store.references import Compute, ImageSet


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
    """Score a model's query features against its gallery features and write scores.parquet.

    Args:
        query: features of the query images.
        gallery: features of the gallery images.
        images: the target data set, for its cameras.
        labels: the target's identities.
        compute: device and threads.
        iteration: iteration of the model; names the task run.
        protocol: one of ``pul_core.scoring.protocols.PROTOCOLS``.
        ties: how gallery images at equal distances are ranked.
        rerank: whether to apply k-reciprocal re-ranking, with the constants of the paper.
        centre_cameras: whether to subtract from each feature the mean of its camera, computed over query and gallery.
        seed: seed of a protocol's random splits.

    Returns:
        The scores, one row per query and split.

    Raises:
        UserError: the data set does not suit the protocol.
    """
    prepare(compute)
    pids, cameras = column(read_table(labels), "pid"), camids(read_table(images.images, ["camid"]))
    tables = read_table(query), read_table(gallery)
    rows = [column(table, "row") for table in tables]
    features = [column(table, "feature") for table in tables]
    if centre_cameras:
        centred = centre_by_camera(np.concatenate(features), cameras[np.concatenate(rows)], device=compute.device)
        features = np.split(centred, [len(rows[0])])
    sets = [FeatureSet(values, pids[at], cameras[at]) for values, at in zip(features, rows, strict=True)]
    scored = score_protocol(
        PROTOCOLS[protocol], *sets, ties=ties, reranking=Reranking() if rerank else None, seed=seed, device=compute.device
    )
    order = np.lexsort((scored.query_idx, scored.split))
    columns = {"row": rows[0][scored.query_idx], "split": scored.split, **scored.scores._asdict()}
    return write_table("scores", pa.table({name: values[order] for name, values in columns.items()}))
