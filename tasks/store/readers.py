"""Readers of artifacts that several steps share."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pul_core.identities import NO_CAMERA
from tasks.store.artifacts import column, read_table, verify
from tasks.store.references import Pixels, Reliable, TrainedModel


def camids(images: pa.Table) -> npt.NDArray[np.int64]:
    """Return the camera id of each row of an images.parquet (n,); -1 if it is unknown."""
    return np.asarray(images["camid"].combine_chunks().cast(pa.int64()).fill_null(NO_CAMERA))


def open_pixels(pixels: Pixels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return the rows of the decoded images (n,), ascending, and their pixels (n, h, w, 3), memory-mapped.

    Raises:
        DamagedArtifactError: the file is missing or damaged.
    """
    decoded = read_table(pixels.decoded, ["row", "position"])
    rows = column(decoded, "row")[column(decoded, "position") >= 0]
    path = verify(pixels.pixels)
    return rows, np.memmap(path, np.uint8, mode="r", shape=(len(rows), pixels.height, pixels.width, 3))


class Joined:
    """The pixels of several files as one array (n, h, w, 3) that can only be indexed by rows."""

    def __init__(self, parts: list[npt.NDArray[np.uint8]]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the images at these rows (b, h, w, 3)."""
        if len(self.parts) == 1:
            return self.parts[0][rows]
        pixels = np.empty((len(rows), *self.parts[0].shape[1:]), np.uint8)
        part = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(part):
            here = part == number
            pixels[here] = self.parts[number][rows[here] - self.starts[number]]
        return pixels


def read_selected(reliable: Reliable) -> pa.Table:
    """Read the images that were selected, without the labelled and the unclustered images of the reliable set."""
    table = read_table(reliable.reliable)
    return table.filter(~column(table, "labelled") & ~column(table, "unclustered"))


def read_training(trained: TrainedModel) -> list[dict[str, Any]]:
    """Return the statistics of each epoch."""
    rows: list[dict[str, Any]] = read_table(trained.training).to_pylist()
    return rows
