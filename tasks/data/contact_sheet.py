"""A contact sheet: some crops of every camera on one picture, to see at a glance whether a set is what its names say."""

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
COLUMNS = 12  # crops of a camera
CAMERAS = 40  # rows, at most
CELL = (64, 128)  # pixels, width and height
TITLE = 14  # pixels above a row


def write_sheet(images: ImageSet, file: Path) -> None:
    """Write some crops of every camera, spread evenly over its images, one row a camera.

    Args:
        images: the indexed set.
        file: what to write; its suffix is one of `SHEET_SUFFIXES`.
    """
    table = read_table(images.images, ["path", "camid", "camera", "problem"])
    table = table.filter(usable(table))
    cameras = sorted(table["camid"].unique().to_pylist(), key=lambda camid: (camid is None, camid))[:CAMERAS]
    width, height = CELL
    sheet = Image.new("RGB", (COLUMNS * width, max(len(cameras), 1) * (TITLE + height)), "white")
    draw = ImageDraw.Draw(sheet)
    for position, camid in enumerate(cameras):
        of_camera = table.filter(pc.is_null(table["camid"]) if camid is None else pc.equal(table["camid"], camid))
        top = position * (TITLE + height)
        name = "no camera told" if camid is None else f"camera {of_camera['camera'][0].as_py() or camid}"
        draw.text((2, top + 1), f"{name}, {of_camera.num_rows:,} images", fill="black")
        chosen = np.unique(np.linspace(0, of_camera.num_rows - 1, COLUMNS).round().astype(np.int64))
        for cell, path in enumerate(of_camera["path"].take(chosen).to_pylist()):
            with Image.open(Path(images.root, path)) as image:
                sheet.paste(upright(image).resize(CELL), (cell * width, top + TITLE))
    written = io.BytesIO()
    sheet.save(written, "PNG" if file.suffix.lower() == ".png" else "JPEG")
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_bytes(written.getvalue())
    partial.replace(file)
