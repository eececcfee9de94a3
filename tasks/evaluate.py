"""Step *evaluate*: scores.parquet, one row a query. Nothing that trains reads its result."""

import numpy as np
import pyarrow as pa

from pul_core.clustering.cameras import centre_cameras as core_centre_cameras
from pul_core.scoring.protocols import PROTOCOLS, ProtocolName, Side
from pul_core.scoring.protocols import evaluate as core_evaluate
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
    """Score a model's query features against its gallery features.

    Args:
        query: features.
        gallery: features.
        images: the target, for its cameras.
        labels: the target's identities.
        compute: threads.
        iteration: of the model; names the task run.
        protocol: one of ``pul_core.scoring.protocols.PROTOCOLS``.
        ties: how answers of equal distance are counted.
        rerank: by k-reciprocal neighbours, with the constants of the paper.
        centre_cameras: compare features less the mean of their camera, taken over query and gallery.
        seed: of a protocol's splits.

    Raises:
        UserError: the data do not suit the protocol.
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
