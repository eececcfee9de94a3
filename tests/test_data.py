"""Layouts, index and decoding: images become rows, and broken images are skipped, counted and listed."""

import numpy as np
import pytest
from PIL import Image

from pul_core.errors import DataError
from tasks.data.layouts import read_layout
from tasks.decode import decode
from tasks.index import index
from tasks.store.artifacts import column, read_table
from tasks.store.readers import open_pixels


def test_market_1501_layout_is_detected(tmp_path, market):
    market(tmp_path, range(1, 3), test_pids=range(5, 7))
    layout, listed = read_layout(tmp_path)
    images = list(listed)
    assert layout == "market1501"
    assert {image.split for image in images} == {"train", "query", "gallery"}
    assert {image.pid for image in images if image.split == "gallery"} == {5, 6, 0, -1}
    assert images == sorted(images)


def test_a_plain_folder_at_any_depth(tmp_path):
    for name in ("a.jpg", "deep/er/b.PNG", "c c/ü.webp", "d.bmp", "notes.txt", ".hidden/e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    layout, listed = read_layout(tmp_path)
    images = list(listed)
    assert layout == "folder"
    assert [image.path for image in images] == ["a.jpg", "c c/ü.webp", "d.bmp", "deep/er/b.PNG"]
    assert {(image.pid, image.camid, image.split) for image in images} == {(None, None, "train")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "missing", "is not a folder"),
        (lambda root: root, "holds no images"),
        (lambda root: _odd_name(root), "not named like Market-1501"),
    ],
)
def test_unusable_data_is_rejected(tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        read_layout(make(tmp_path))


def _odd_name(root):
    (root / "bounding_box_train").mkdir()
    (root / "bounding_box_train" / "somebody.jpg").write_bytes(b"x")
    return root


def test_index_keeps_labels_apart(home, tmp_path, market):
    images = index.fn(str(market(tmp_path / "set", range(1, 3))), "source")
    table = read_table(images.images)
    assert {"row", "path", "sha256", "camid", "split"} < set(table.column_names)
    assert not {"pid", "identity"} & set(table.column_names)
    assert column(table, "row").tolist() == list(range(table.num_rows))
    assert set(column(read_table(images.labels), "pid")) == {1, 2}
    assert images.splits == {"train": 12}


def test_the_index_does_not_depend_on_the_path_of_the_folder(home, tmp_path, market):
    first = index.fn(str(market(tmp_path / "set", range(1, 3))), "source")
    (tmp_path / "set").rename(tmp_path / "moved")
    assert index.fn(str(tmp_path / "moved"), "source").cache_token() == first.cache_token()


def test_decoded_images_agree_with_pillow(home, tmp_path, market):
    images = index.fn(str(market(tmp_path / "set", range(1, 4))), "source")
    rows, pixels = open_pixels(decode.fn(images, split="train", height=40, width=20))
    paths = read_table(images.images).column("path").to_pylist()
    assert rows.tolist() == list(range(18))
    for row, image in zip(rows, pixels, strict=True):
        expected = Image.open(tmp_path / "set" / paths[row]).convert("RGB").resize((20, 40), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(expected))


@pytest.mark.fault("broken images in a step", "skipped, counted, listed; the others are used")
def test_broken_images_are_skipped_and_listed(home, tmp_path, draw, skipped):
    good = Image.fromarray(draw(1, 1, 1))
    good.save(tmp_path / "a-good.png")
    good.convert("CMYK").save(tmp_path / "b-cmyk.jpg")
    (tmp_path / "c-empty.jpg").write_bytes(b"")
    (tmp_path / "d-text.jpg").write_text("no image")
    whole = (tmp_path / "b-cmyk.jpg").read_bytes()
    (tmp_path / "e-truncated.jpg").write_bytes(whole[: len(whole) // 2])
    good.convert("L").save(tmp_path / "f-grey.png")
    pixels = decode.fn(index.fn(str(tmp_path), "target"), split="train", height=64, width=32)
    rows, images = open_pixels(pixels)
    assert rows.tolist() == [0, 1, 5]
    assert [row for row, _ in skipped(pixels)] == [2, 3, 4]
    np.testing.assert_array_equal(images[0], np.asarray(good))


@pytest.mark.fault("nothing but broken images", "`none of the ... images can be decoded`")
def test_only_broken_images_are_an_error(home, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 train images.*a\.jpg"):
        decode.fn(index.fn(str(tmp_path), "target"), split="train", height=64, width=32)
    assert list((home / "cache").glob("pixels/*")) == []


@pytest.mark.parametrize("change", ["replace", "delete"])
@pytest.mark.fault("an image is deleted or replaced between two steps", "`... changed after the set was indexed: start a new run`")
def test_a_file_that_changes_after_the_index_is_an_error(home, tmp_path, change, draw):
    path = tmp_path / "a.png"
    Image.fromarray(draw(1, 1, 1)).save(path)
    images = index.fn(str(tmp_path), "target")
    if change == "delete":
        path.unlink()
    else:
        Image.fromarray(draw(2, 1, 1)).save(path)
    with pytest.raises(DataError, match=r"a\.png.*start a new run"):
        decode.fn(images, split="train", height=64, width=32)


def test_a_too_large_image_is_skipped(home, tmp_path, monkeypatch, draw, skipped):
    monkeypatch.setattr("tasks.data.quality.MAX_PIXELS", 2000)
    Image.fromarray(draw(1, 1, 1)).save(tmp_path / "a.png")  # 64 x 32 = 2048 pixels
    Image.fromarray(draw(1, 1, 1, 20, 10)).save(tmp_path / "b.png")
    pixels = decode.fn(index.fn(str(tmp_path), "target"), split="train", height=64, width=32)
    assert [row for row, _ in skipped(pixels)] == [0]
