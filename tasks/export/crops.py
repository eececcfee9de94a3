"""Crops of a run's target, read from its images: for the parity gate, the calibration and the timing of an export."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import nn

from pul_core.arrays import Images, Ints
from pul_core.errors import DataError
from pul_core.learning.camera_statistics import CameraStatistics, count_forward_passes, draw_images, estimate_statistics
from pul_core.scoring.parity import draw_people
from pul_core.settings import Statistics
from tasks.data.locations import image_root
from tasks.decode import read_crop
from tasks.engine.progress import progress
from tasks.index import dataset_root, index
from tasks.store.artifacts import column, locate
from tasks.store.readers import camera_names, camids

LABELLED_IMAGES = 2000  # at most this many queries and gallery images are scored


class Crops(NamedTuple):
    """Decoded images with their cameras, and identities (-1 without labels)."""

    images: Images  # (n, h, w, 3) uint8
    camids: Ints  # (n,)
    pids: Ints  # (n,)


class Target:
    """The images of a data set, of which some are read.

    Args:
        images: its images.parquet.
        labels: its labels.parquet; None or a missing file: there are no labels.
        root: the folder or URL that its paths are relative to.
        height: of the crops, in pixels.
        width: of the crops, in pixels.
    """

    def __init__(self, images: str | Path, labels: str | Path | None, root: str, height: int, width: int) -> None:
        self.root, self.height, self.width = root, height, width
        self.table: pa.Table = pq.read_table(images, columns=["path", "sha256", "camid", "camera", "split", "problem"])
        self.camids = camids(self.table)
        usable = np.asarray(pc.is_null(self.table["problem"]))
        split = column(self.table, "split")
        self.rows = {name: np.flatnonzero(usable & (split == name)) for name in ("train", "query", "gallery")}
        is_labelled = labels is not None and Path(labels).exists()
        self.pids = column(pq.read_table(labels, columns=["pid"]), "pid") if is_labelled else np.full(len(split), -1)

    def camera_names(self) -> dict[int, str]:
        """Return the name of each camera, see `tasks.store.readers.camera_names`."""
        return camera_names(self.table)

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

    def estimate_statistics(self, backbone: nn.Module, settings: Statistics, *, seed: int) -> CameraStatistics:
        """Estimate statistics from the training images: BatchNorm statistics by camera and, if the settings say so, the whitening."""
        rows = self.rows["train"]
        _, drawn = draw_images(self.camids[rows], settings, seed=seed)
        crops = self.read(rows[np.unique(np.concatenate(drawn))], "read crops of each camera")
        with progress("estimate statistics", count_forward_passes(crops.camids, settings, seed=seed)) as progress_bar:
            return estimate_statistics(backbone, crops.images, crops.camids, settings, seed=seed, on_batch=progress_bar.advance)

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


def target_of_run(run: Path, location: str, height: int, width: int) -> Target:
    """Return the target of a run.

    Args:
        run: the folder of the run.
        location: the target as the run's config names it.
        height: of the crops, in pixels.
        width: of the crops, in pixels.

    Raises:
        DataError: the run has no table of images on this disk.
    """
    if not (run / "images.parquet").exists():
        raise DataError(f"run {run.name} has no images.parquet on this disk: export it on the machine that made it")
    return Target(run / "images.parquet", run / "labels.parquet", image_root(dataset_root(location)), height, width)


def other_target(path: str, layout: str | None, pattern: str | None, height: int, width: int) -> Target:
    """Return another data set in the place of a run's target; it is indexed."""
    images = index.fn(path, "target", layout, pattern)
    return Target(locate(images.images), locate(images.labels) if images.labels else None, images.root, height, width)
