"""Step *index*: a data set on disk becomes images.parquet, which every step sees, and labels.parquet, which only scoring sees.

It is no cached step: what lies in a folder today has to be looked at today. Its artifacts are named by their content, so an unchanged set
hits every cache behind it, wherever it was moved.
"""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pyarrow as pa
from prefect import task

from pul_core.synthetic import GENERATOR_VERSION, Domain
from tasks.artifacts import provenance, write_table
from tasks.home import home
from tasks.layouts import DataError, Listed, read_layout
from tasks.progress import progress, step_logger
from tasks.references import ImageSet
from tasks.synthesize import synthesize_domain

IMAGES = pa.schema([("row", pa.int64()), ("path", pa.string()), ("sha256", pa.string()), ("camid", pa.int64()), ("split", pa.string())])
SYNTHETIC = re.compile(r"synthetic:(\d+)/(source|target)")
LABELS = pa.schema([("row", pa.int64()), ("pid", pa.int64())])


@task(name="index", task_run_name="index-{role}")
def index(path: str, role: str) -> ImageSet:
    """List a data set's images with their digests.

    Args:
        path: a folder, or ``synthetic:SEED/source`` and ``synthetic:SEED/target`` for drawn people.
        role: source or target; names the task run.

    Raises:
        DataError: the folder cannot be used.
    """
    root = dataset_root(path)
    layout, listed = read_layout(root)
    with progress(f"index {role}", len(listed)) as shown, ThreadPoolExecutor() as pool:
        digests = []
        for digest in pool.map(lambda image: _digest(root / image.path), listed):
            digests.append(digest)
            shown.advance(1)
    token = provenance.set({"step": "index", "layout": layout})
    try:
        return _write(root, path, layout, listed, digests)
    finally:
        provenance.reset(token)


def dataset_root(path: str) -> Path:
    """Return the folder a data set lies in; a synthetic one is drawn first if it is not there yet.

    Raises:
        DataError: the path asks for a synthetic domain that does not exist.
    """
    return _drawn(path) or Path(path).expanduser().resolve()


def _drawn(path: str) -> Path | None:
    """Return the folder of a synthetic domain, drawn on first use; None if the path is an ordinary one."""
    if not path.startswith("synthetic:"):
        return None
    match = SYNTHETIC.fullmatch(path)
    if match is None:
        raise DataError(f"{path} is no synthetic domain: write synthetic:SEED/source or synthetic:SEED/target, e.g. synthetic:0/target")
    seed, domain = int(match[1]), cast(Domain, match[2])
    with progress(f"draw {path}", 1) as shown:

        def report(done: int, total: int) -> None:
            shown.total = total
            shown.advance(done - shown.done)

        return synthesize_domain(home() / "synthetic" / f"v{GENERATOR_VERSION}-seed-{seed}", domain, seed=seed, on_progress=report)


def _write(root: Path, path: str, layout: str, listed: list[Listed], digests: list[str]) -> ImageSet:
    paths, pids, camids, splits = zip(*listed, strict=True)
    rows = range(len(listed))
    images = write_table("images", pa.table([rows, paths, digests, camids, splits], schema=IMAGES))
    labels = write_table("labels", pa.table([rows, pids], schema=LABELS)) if pids[0] is not None else None
    counts = {split: splits.count(split) for split in ("train", "query", "gallery") if split in splits}
    if counts.get("train", 0) == 0:
        raise DataError(f"{root} has no training images: bounding_box_train/ is empty")
    step_logger().info("%s: layout %s, %s", root, layout, ", ".join(f"{count:,} {split}" for split, count in counts.items()))
    name = path.replace("synthetic:", "synthetic-").replace("/", "-") if path.startswith("synthetic:") else root.name
    return ImageSet(name=name, root=str(root), layout=layout, images=images, labels=labels, splits=counts)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
