"""Malicious and unusual images in the index and decode steps: usable images are used, and the others are skipped and named."""

import logging

import numpy as np
import pytest
from PIL import Image

from tasks.decode import decode
from tasks.index import index
from tasks.store.artifacts import read_table
from tasks.store.readers import open_pixels

SIZE = {"height": 16, "width": 8}


@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow warns of the first and refuses the second
@pytest.mark.fault("an image of 100, of 400 megapixels", "`too_large`: skipped, named, not decoded; the others are used")
def test_a_bomb_is_not_decoded(home, tmp_path, draw, side, skipped):
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    Image.fromarray(draw(1, 1, 1)).save(tmp_path / "good.png")
    pixels = decode.fn(index.fn(str(tmp_path), "target"), split="train", **SIZE)
    assert list(skipped(pixels)) == [(0, "too_large")]
    assert open_pixels(pixels)[0].tolist() == [1]


@pytest.mark.parametrize(
    "name", ["a b.png", 'it\'s "so".png', "é/ü ñ 人.png", "two\nlines.png", "$(touch x);`id`.png", "%s {0} \\.png", "-rf.png"]
)
@pytest.mark.fault(
    "names with spaces, quotes, newlines, non-ASCII, shell and format characters", "used like any other; one line in the log"
)
def test_any_name_goes_through(home, tmp_path, draw, caplog, name):
    (tmp_path / "set" / name).parent.mkdir(parents=True)
    Image.fromarray(draw(1, 1, 1)).save(tmp_path / "set" / name)
    (tmp_path / "set" / f"{name}.broken.jpg").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        images = index.fn(str(tmp_path / "set"), "target")
        rows, decoded = open_pixels(decode.fn(images, split="train", **SIZE))
    assert (read_table(images.images)["path"].to_pylist()[rows[0]], len(decoded)) == (name, 1)
    messages = [record.getMessage() for record in caplog.records if "undecodable" in record.getMessage()]
    assert len(messages) == 1 and "\n" not in messages[0], messages
    assert not (tmp_path / "x").exists()


@pytest.mark.fault("a file link that leaves the folder", "read like a file: a data set of links is usual")
def test_a_link_to_a_file_elsewhere_is_read(home, tmp_path, draw):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").mkdir()
    Image.fromarray(draw(1, 1, 1)).save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set" / "link.png").symlink_to("../elsewhere/a.png")
    (tmp_path / "set" / "up").symlink_to("..")
    images = index.fn(str(tmp_path / "set"), "target")
    assert read_table(images.images)["path"].to_pylist() == ["link.png"]


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "LA", "P", "1"])
@pytest.mark.fault("images of other modes: CMYK, 16-bit, palette, transparency, one bit", "converted, and the data check says so")
def test_other_modes_are_converted(home, tmp_path, draw, mode):
    picture = Image.fromarray(draw(1, 1, 1))
    odd = Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 200) if mode == "I;16" else picture.convert(mode)
    odd.save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    picture.save(tmp_path / "b.png")
    images = index.fn(str(tmp_path), "target")
    rows, pixels = open_pixels(decode.fn(images, split="train", **SIZE))
    assert pixels.shape[1:] == (16, 8, 3) and len(rows) == len(read_table(images.images))
