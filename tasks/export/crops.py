"""Crops of a run's target, read from its images: for the parity gate, the calibration and the timing of an export."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pul_core.arrays import Images, Ints
from pul_core.errors import DataError
from pul_core.scoring.parity import draw_people
from tasks.data.locations import image_root
from tasks.decode import read_crop
from tasks.engine.progress import progress
from tasks.index import dataset_root
from tasks.store.artifacts import column
from tasks.store.readers import camids

LABELLED_IMAGES = 2000  # at most this many queries and gallery images are scored


class Crops(NamedTuple):
    """Decoded images with their cameras, and identities (-1 without labels)."""

    images: Images  # (n, h, w, 3) uint8
    camids: Ints  # (n,)
    pids: Ints  # (n,)


class Target:
    """The images of a run's target, of which some are read.

    Args:
        run: the folder of the run.
        location: the target as the run's config names it.
        height: of the crops, in pixels.
        width: of the crops, in pixels.

    Raises:
        DataError: the run has no table of images on this disk.
    """

    def __init__(self, run: Path, location: str, height: int, width: int) -> None:
        if not (run / "images.parquet").exists():
            raise DataError(f"run {run.name} has no images.parquet on this disk: export it on the machine that made it")
        self.root = image_root(dataset_root(location))
        self.height, self.width = height, width
        self.table: pa.Table = pq.read_table(run / "images.parquet", columns=["path", "sha256", "camid", "camera", "split", "problem"])
        self.camids = camids(self.table)
        usable = np.asarray(pc.is_null(self.table["problem"]))
        split = column(self.table, "split")
        self.rows = {name: np.flatnonzero(usable & (split == name)) for name in ("train", "query", "gallery")}
        labels = run / "labels.parquet"
        self.pids = column(pq.read_table(labels, columns=["pid"]), "pid") if labels.exists() else np.full(len(split), -1)

    def camera_names(self) -> dict[int, str]:
        """Return the name of each camera; a camera without a name is called by its number."""
        table = self.table.select(["camid", "camera"]).group_by(["camid", "camera"]).aggregate([])
        return {
            row["camid"]: row["camera"] if row["camera"] is not None else str(row["camid"])
            for row in table.to_pylist()
            if row["camid"] is not None
        }

    def draw(self, count: int, *, seed: int, of: Ints | None = None) -> Crops:
        """Draw training images, of some cameras only if ``of`` names them; all there are if there are fewer."""
        rows = self.rows["train"]
        if of is not None:
            rows = rows[np.isin(self.camids[rows], of)]
        return self.read(np.random.default_rng(seed).permutation(rows)[:count], "read crops")

    def draw_labelled(self, *, seed: int) -> tuple[Crops, Crops] | None:
        """Return queries and a gallery of at most `LABELLED_IMAGES` images, of whole people; None without labels."""
        query, gallery = self.rows["query"], self.rows["gallery"]
        drawn = draw_people(self.pids[query], self.pids[gallery], LABELLED_IMAGES, seed=seed) if len(query) and len(gallery) else None
        if drawn is None or not len(drawn[0]):
            return None
        return self.read(query[drawn[0]], "read queries"), self.read(gallery[drawn[1]], "read the gallery")

    def read(self, rows: Ints, description: str) -> Crops:
        """Read and decode images.

        Raises:
            DataError: an image is missing or has changed since the run.
        """
        paths, digests = (self.table[name].take(rows).to_pylist() for name in ("path", "sha256"))
        images = np.empty((len(rows), self.height, self.width, 3), np.uint8)
        with progress(description, len(rows)) as progress_bar:
            for number, (path, digest) in enumerate(zip(paths, digests, strict=True)):
                images[number] = read_crop(self.root, path, digest, self.height, self.width)
                progress_bar.advance(1)
        return Crops(images, self.camids[rows], self.pids[rows])
