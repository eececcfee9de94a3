"""Contact sheet: one picture with a row of sample crops for each camera, for a quick visual check of a data set."""

import os
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from tasks.data.check import usable_mask
from tasks.data.quality import upright
from tasks.store.artifacts import read_table
from tasks.store.references import ImageSet

SHEET_SUFFIXES = (".png", ".jpg")
CROPS_PER_CAMERA = 12
MAX_CAMERAS = 40
CROP_WIDTH, CROP_HEIGHT, TITLE_HEIGHT = 64, 128, 14  # pixels


def write_sheet(images: ImageSet, file: Path) -> None:
    """Write a contact sheet with one row per camera, its crops spread evenly over the camera's images.

    Args:
        images: the indexed data set.
        file: the file to write; its suffix is one of `SHEET_SUFFIXES`.
    """
    table = read_table(images.images, ["path", "camid", "camera", "problem"])
    table = table.filter(usable_mask(table))
    camids = sorted(table["camid"].unique().to_pylist(), key=lambda camid: (camid is None, camid))[:MAX_CAMERAS]
    row_height = TITLE_HEIGHT + CROP_HEIGHT
    sheet = Image.new("RGB", (CROPS_PER_CAMERA * CROP_WIDTH, max(len(camids), 1) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, camid in enumerate(camids):
        crops = table.filter(pc.is_null(table["camid"]) if camid is None else pc.equal(table["camid"], camid))
        name = "unknown camera" if camid is None else f"camera {crops['camera'][0].as_py() or camid}"
        draw.text((2, row * row_height + 1), f"{name}, {crops.num_rows:,} images", fill="black")
        samples = np.unique(np.linspace(0, crops.num_rows - 1, CROPS_PER_CAMERA).round().astype(np.int64))
        for column, path in enumerate(crops["path"].take(samples).to_pylist()):
            with Image.open(Path(images.root, path)) as image:
                crop = upright(image).resize((CROP_WIDTH, CROP_HEIGHT))
                sheet.paste(crop, (column * CROP_WIDTH, row * row_height + TITLE_HEIGHT))
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    sheet.save(partial, "PNG" if file.suffix.lower() == ".png" else "JPEG")
    partial.replace(file)
