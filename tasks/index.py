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
from tasks.places import image_root, is_url, name_of, read_image
from tasks.progress import progress, step_logger
from tasks.references import ImageSet
from tasks.synthesize import synthesize_domain

IMAGES = pa.schema([("row", pa.int64()), ("path", pa.string()), ("sha256", pa.string()), ("camid", pa.int64()), ("split", pa.string())])
SYNTHETIC = re.compile(r"synthetic:(\d+)/(source|target)")
LABELS = pa.schema([("row", pa.int64()), ("pid", pa.int64())])


@task(name="index", task_run_name="index-{role}")
def index(path: str, role: str, layout: str | None = None, pattern: str | None = None) -> ImageSet:
    """List a data set's images with their digests.

    Args:
        path: a folder, a manifest or its URL, or ``synthetic:SEED/source`` and ``synthetic:SEED/target`` for drawn people.
        role: source or target; names the task run.
        layout: one of `tasks.layouts.LAYOUTS`; None looks at the folder.
        pattern: of layout ``pattern``.

    Raises:
        DataError: the folder cannot be used.
    """
    place = dataset_root(path)
    layout, images = read_layout(place, layout, pattern)
    listed, root = list(images), image_root(place)
    with progress(f"index {role}", len(listed)) as shown, ThreadPoolExecutor() as pool:
        digests = []
        for digest in pool.map(lambda image: _digest(root, image.path), listed):
            digests.append(digest)
            shown.advance(1)
    token = provenance.set({"step": "index", "layout": layout})
    try:
        return _write(place, path, layout, listed, digests)
    finally:
        provenance.reset(token)


def dataset_root(path: str) -> str:
    """Return the folder, manifest or URL of a data set as `read_layout` wants it; a synthetic one is drawn first if it is not there yet.

    Raises:
        DataError: the path asks for a synthetic domain that does not exist.
    """
    return path if is_url(path) else str(_drawn(path) or Path(path).expanduser().resolve())


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


def _write(place: str, path: str, layout: str, listed: list[Listed], digests: list[str]) -> ImageSet:
    paths, splits = [image.path for image in listed], [image.split for image in listed]
    rows = range(len(listed))
    camids = _numbered([image.camid for image in listed])
    images = write_table("images", pa.table([rows, paths, digests, camids, splits], schema=IMAGES))
    pids = _numbered([image.pid for image in listed])
    # An image without identity among others that have one is junk: nothing learns from it, nothing is scored on it.
    known = any(pid is not None for pid in pids)
    labels = write_table("labels", pa.table([rows, [-1 if pid is None else pid for pid in pids]], schema=LABELS)) if known else None
    counts = {split: splits.count(split) for split in ("train", "query", "gallery") if split in splits}
    if counts.get("train", 0) == 0:
        raise DataError(f"{place} has no training images: layout {layout} lists only {' and '.join(counts)} images there")
    step_logger().info("%s: layout %s, %s", place, layout, ", ".join(f"{count:,} {split}" for split, count in counts.items()))
    name = path.replace("synthetic:", "synthetic-").replace("/", "-") if path.startswith("synthetic:") else name_of(place)
    return ImageSet(name=name, root=image_root(place), layout=layout, images=images, labels=labels, splits=counts)


def _numbered(values: list[int | str | None]) -> list[int | None]:
    """Return numbers as they are and strings numbered in their order, above all numbers, from 1."""
    above = max((value for value in values if isinstance(value, int)), default=0)
    codes = {text: code for code, text in enumerate(sorted({value for value in values if isinstance(value, str)}), max(above, 0) + 1)}
    return [codes[value] if isinstance(value, str) else value for value in values]


def _digest(root: str, path: str) -> str:
    try:
        return hashlib.sha256(read_image(root, path)).hexdigest()
    except OSError as error:
        raise DataError(
            f"{root}/{path} is listed and cannot be read ({error.strerror or error}): put it there or take it off the list"
        ) from error
