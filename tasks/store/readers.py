"""Readers of artifacts that several steps share."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pul_core.identities import NO_CAMERA
from tasks.store.artifacts import column, read_table, verify
from tasks.store.references import Pixels, Reliable


def camids(images: pa.Table) -> npt.NDArray[np.int64]:
    """Return the camera id of each row of an images.parquet (n,); -1 if it is unknown."""
    return np.asarray(images["camid"].combine_chunks().cast(pa.int64()).fill_null(NO_CAMERA))


def camera_names(images: pa.Table) -> dict[int, str]:
    """Return the name of each known camera of an images.parquet by its id; a camera without a name is called by its number.

    Example:
        >>> camera_names(pa.table({"camid": [4, 4, 7, None], "camera": ["door", "door", None, None]}))
        {4: 'door', 7: '7'}
    """
    pairs = images.select(["camid", "camera"]).group_by(["camid", "camera"]).aggregate([]).to_pylist()
    return {pair["camid"]: pair["camera"] or str(pair["camid"]) for pair in pairs if pair["camid"] is not None}


def open_pixels(pixels: Pixels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Open decoded images: their rows (n,), ascending, and their pixels (n, h, w, 3), memory-mapped.

    Raises:
        DamagedArtifactError: the file is missing or damaged.
    """
    decoded = read_table(pixels.decoded, ["row", "position"])
    rows = column(decoded, "row")[column(decoded, "position") >= 0]
    path = verify(pixels.pixels)
    return rows, np.memmap(path, np.uint8, mode="r", shape=(len(rows), pixels.height, pixels.width, 3))


class JoinedPixels:
    """The pixels of several files, indexed by rows like one array (n, h, w, 3)."""

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
            is_here = part == number
            pixels[is_here] = self.parts[number][rows[is_here] - self.starts[number]]
        return pixels


def read_selected(reliable: Reliable) -> pa.Table:
    """Read the images that were selected, without the labelled and the unclustered images of the reliable set."""
    table = read_table(reliable.reliable)
    return table.filter(~column(table, "labelled") & ~column(table, "unclustered"))
