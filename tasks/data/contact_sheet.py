"""Contact sheet: one picture with a row of sample crops for each camera, for a quick visual check of a data set."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from tasks.data.check import usable
from tasks.data.quality import upright
from tasks.store.artifacts import read_table
from tasks.store.references import ImageSet

SHEET_SUFFIXES = (".png", ".jpg")
CROPS_PER_CAMERA = 12
MAX_CAMERAS = 40
CELL = (64, 128)  # width and height of a crop in pixels
TITLE_HEIGHT = 14  # pixels


def write_sheet(images: ImageSet, file: Path) -> None:
    """Write a contact sheet with one row per camera, its crops spread evenly over the camera's images.

    Args:
        images: the indexed data set.
        file: the file to write; its suffix is one of `SHEET_SUFFIXES`.
    """
    table = read_table(images.images, ["path", "camid", "camera", "problem"])
    table = table.filter(usable(table))
    camids = sorted(table["camid"].unique().to_pylist(), key=lambda camid: (camid is None, camid))[:MAX_CAMERAS]
    width, height = CELL
    row_height = TITLE_HEIGHT + height
    sheet = Image.new("RGB", (CROPS_PER_CAMERA * width, max(len(camids), 1) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, camid in enumerate(camids):
        crops = table.filter(pc.is_null(table["camid"]) if camid is None else pc.equal(table["camid"], camid))
        name = "unknown camera" if camid is None else f"camera {crops['camera'][0].as_py() or camid}"
        draw.text((2, row * row_height + 1), f"{name}, {crops.num_rows:,} images", fill="black")
        samples = np.unique(np.linspace(0, crops.num_rows - 1, CROPS_PER_CAMERA).round().astype(np.int64))
        for column, path in enumerate(crops["path"].take(samples).to_pylist()):
            with Image.open(Path(images.root, path)) as image:
                sheet.paste(upright(image).resize(CELL), (column * width, row * row_height + TITLE_HEIGHT))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG" if file.suffix.lower() == ".png" else "JPEG")
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_bytes(buffer.getvalue())
    partial.replace(file)
