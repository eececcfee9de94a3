"""The index: rows follow the order of the listing, names become numbers, and files unchanged since the last scan are not opened."""

import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import tasks.data.quality
import tasks.data.scan
import tasks.index
from pul_core.errors import DataError
from tasks.data.listing import ListedImage
from tasks.data.quality import inspect_image
from tasks.decode import decode
from tasks.index import index
from tasks.preflight import check_path
from tasks.store.artifacts import column, read_table

LONG_AGO = 1_000_000_000 * 10**9


def save(path, picture, *, age=LONG_AGO):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    os.utime(path, ns=(age, age))


@pytest.fixture
def crops(tmp_path, draw):
    """Seven crops with unusual names, last modified long ago."""
    names = ("a.png", "b b.png", "c'c\".png", "d\nd.png", "é/ü.png", "é/#?%.png", "z/y/x.jpg")
    for number, name in enumerate(names):
        save(tmp_path / "crops" / name, draw(number, 1, 1, 16, 8))
    return tmp_path / "crops"


@pytest.fixture
def inspected(monkeypatch):
    """The names of the files that the scan inspects."""
    names = []
    original = tasks.data.scan.inspect_image
    monkeypatch.setattr(tasks.data.scan, "inspect_image", lambda path: names.append(Path(path).name) or original(path))
    return names


def set_listing(monkeypatch, images):
    """Make the index read these images, from an iterator that can be consumed only once."""
    monkeypatch.setattr(tasks.index, "read_layout", lambda root, layout=None, pattern=None: ("made up", iter(images)))


def test_every_row_agrees_with_pillow_and_the_file_system(home, crops):
    table = read_table(index.fn(str(crops), "target").images)
    assert column(table, "row").tolist() == list(range(7))
    for row in table.to_pylist():
        path = crops / row["path"]
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"), np.float64)
            assert (row["width"], row["height"], row["mode"], row["frames"]) == (*image.size, image.mode, 1)
        assert row["bytes"] == path.stat().st_size and row["problem"] is None
        assert row["brightness"] == pytest.approx(grey.mean(), rel=1e-6)
        assert row["sharpness"] == pytest.approx(np.mean([abs(b - a) for line in grey for a, b in itertools.pairwise(line)]), rel=1e-6)


def test_a_second_scan_opens_no_file_and_gives_the_same_result(home, crops, inspected):
    first = index.fn(str(crops), "target")
    assert len(inspected) == 7
    assert index.fn(str(crops), "target") == first
    assert len(inspected) == 7


@pytest.mark.parametrize("change", ["content", "time", "size", "added", "removed", "renamed"])
def test_every_change_to_a_file_is_detected(home, crops, inspected, change, draw):
    before = read_table(index.fn(str(crops), "target").images)
    inspected.clear()
    if change == "content":
        save(crops / "a.png", draw(50, 1, 1, 16, 8), age=LONG_AGO + 1)
    elif change == "time":
        os.utime(crops / "a.png", ns=(LONG_AGO + 1, LONG_AGO + 1))
    elif change == "size":
        (crops / "a.png").write_bytes((crops / "a.png").read_bytes() + b"more")
        os.utime(crops / "a.png", ns=(LONG_AGO, LONG_AGO))
    elif change == "added":
        save(crops / "0.png", draw(50, 1, 1, 16, 8))
    elif change == "removed":
        (crops / "a.png").unlink()
    else:
        (crops / "a.png").rename(crops / "zz.png")
    warm = index.fn(str(crops), "target")
    expected = {"added": ["0.png"], "removed": [], "renamed": ["zz.png"]}.get(change, ["a.png"])
    assert inspected == expected
    (cache,) = (home / "cache" / "scans").iterdir()
    cache.unlink()
    cold = index.fn(str(crops), "target")
    assert warm == cold, "a warm scan writes the same bytes as a cold one"
    assert (change == "time") == read_table(cold.images).equals(before)


def test_a_file_that_was_just_written_is_inspected_again(home, crops, inspected, draw):
    Image.fromarray(draw(50, 1, 1)).save(crops / "new.png")
    index.fn(str(crops), "target")
    inspected.clear()
    index.fn(str(crops), "target")
    assert inspected == ["new.png"]


@pytest.mark.parametrize("damage", ["text", "cut", "bit", "format"])
@pytest.mark.fault("a damaged cache of scans", "the files are looked at again")
def test_a_damaged_memory_is_ignored(home, crops, inspected, damage, monkeypatch):
    first = index.fn(str(crops), "target")
    (cache,) = (home / "cache" / "scans").iterdir()
    data = bytearray(cache.read_bytes())
    if damage == "text":
        cache.write_text("no Parquet")
    elif damage == "cut":
        cache.write_bytes(data[: len(data) // 2])
    elif damage == "bit":
        sha256 = pq.ParquetFile(cache).metadata.row_group(0).column(pq.read_schema(cache).names.index("sha256"))
        data[(sha256.data_page_offset or 0) + sha256.total_compressed_size - 3] ^= 1
        cache.write_bytes(data)
    else:
        pq.write_table(pq.read_table(cache).replace_schema_metadata({"pul.scan": "0"}), cache)
    inspected.clear()
    assert index.fn(str(crops), "target") == first
    assert len(inspected) == 7


@pytest.mark.fault("a scan that dies", "the last one stays")
def test_an_interrupted_scan_leaves_the_last_one(home, crops, monkeypatch, inspected):
    index.fn(str(crops), "target")
    for path in crops.rglob("*.png"):
        os.utime(path, ns=(LONG_AGO + 5, LONG_AGO + 5))

    def interrupted(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tasks.data.scan, "inspect_image", interrupted)
        index.fn(str(crops), "target")
    assert len(list((home / "cache" / "scans").iterdir())) == 1
    assert list((home / "artifacts" / "images").glob(".partial*")) == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from("abcdefghij"), unique=True), min_size=2, max_size=4), st.integers(1, 4))
def test_files_in_any_order_and_batches_are_found_in_the_cache(tmp_path, monkeypatch, orders, size):
    """Compared with inspecting each file."""
    monkeypatch.setattr(tasks.data.scan, "home", lambda: tmp_path / "memory")
    cached = set()
    cache = tmp_path / "memory" / "cache"
    for file in cache.rglob("*.parquet"):
        file.unlink()
    for name in "abcdefghij":
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, ns=(LONG_AGO, LONG_AGO))
    for order in orders:
        inspected = []
        monkeypatch.setattr(
            tasks.data.scan, "inspect_image", lambda path, inspected=inspected: inspected.append(path[-1]) or inspect_image(path)
        )
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        records = [row for table in tasks.data.scan.scan(tmp_path, batches) for row in table.to_pylist()]
        assert [row["sha256"] for row in records] == [inspect_image(str(tmp_path / name)).sha256 for name in order]
        assert sorted(inspected) == sorted(set(order) - cached)
        cached = set(order)


def test_names_are_numbered_from_1_in_the_order_of_their_text(home, crops, monkeypatch):
    paths = sorted(str(path.relative_to(crops)) for path in crops.rglob("*.*"))
    people = ["zoë", "7", None, "anna", "zoë", 0, -1]
    cameras = ["gate", "gate", "north", None, "gate", "north", "gate"]
    rows = zip(paths, people, cameras, strict=True)
    set_listing(monkeypatch, [ListedImage(path, pid, camid, "gallery", 2.5) for path, pid, camid in rows])
    images = index.fn(str(crops), "target")
    table, labels = read_table(images.images), read_table(images.labels)
    assert column(labels, "pid").tolist() == [3, 1, -1, 2, 3, 0, -1]
    assert labels["identity"].to_pylist() == ["zoë", "7", None, "anna", "zoë", "0", "-1"]
    assert table["camid"].to_pylist() == [1, 1, 2, None, 1, 2, 1]
    assert table["camera"].to_pylist() == cameras
    assert set(table["timestamp"].to_pylist()) == {2.5}


def test_identities_and_cameras_that_are_integers_stay_unchanged(home, crops, monkeypatch):
    paths = sorted(str(path.relative_to(crops)) for path in crops.rglob("*.*"))[:3]
    rows = zip(paths, (1501, 0, -1), (6, 15, None), strict=True)
    set_listing(monkeypatch, [ListedImage(path, pid, camid, "gallery") for path, pid, camid in rows])
    images = index.fn(str(crops), "target")
    assert column(read_table(images.labels), "pid").tolist() == [1501, 0, -1]
    assert read_table(images.images)["camid"].to_pylist() == [6, 15, None]
    assert read_table(images.images)["camera"].null_count == 3


def test_the_index_does_not_depend_on_the_batch_size(home, tmp_path, market, monkeypatch):
    folder = str(market(tmp_path / "set", range(1, 4), test_pids=range(5, 7)))
    whole = index.fn(folder, "target")
    monkeypatch.setattr(tasks.index, "BATCH", 4)
    parts = index.fn(folder, "target")
    assert parts.splits == whole.splits
    for kind in ("images", "labels"):
        assert read_table(getattr(parts, kind)).equals(read_table(getattr(whole, kind)))


@pytest.mark.parametrize("change", ["fewer", "more", "another name"])
@pytest.mark.fault("images come, go or are renamed while they are indexed", "`... changed while it was being indexed: start again`")
def test_a_folder_that_changes_meanwhile_is_an_error(home, crops, monkeypatch, change):
    first = [ListedImage(name, "anna", None, "train") for name in ("a.png", "b b.png")]
    other = {"fewer": first[:1], "more": [*first, ListedImage("é/ü.png", "anna", None, "train")]}.get(
        change, [first[0], first[1]._replace(pid="eve")]
    )
    listings = iter([first, other])
    monkeypatch.setattr(tasks.index, "read_layout", lambda *_: ("made up", iter(next(listings))))
    with pytest.raises(DataError, match="changed while"):
        index.fn(str(crops), "target")
    assert list((home / "artifacts").rglob("*.parquet")) == []


@pytest.mark.fault("links that loop or dangle, pipes", "skipped and listed; nothing waits")
def test_loops_pipes_and_dangling_links_hold_nothing_up(home, crops, skipped):
    (crops / "loop").symlink_to(crops)
    (crops / "self.png").symlink_to(crops / "self.png")
    (crops / "dangling.png").symlink_to(crops / "nothing.png")
    os.mkfifo(crops / "pipe.png")
    images = index.fn(str(crops), "target")
    rows = {row["path"]: row["problem"] for row in read_table(images.images).to_pylist() if row["problem"]}
    assert rows == {"self.png": "unreadable", "dangling.png": "missing", "pipe.png": "unreadable"}
    pixels = decode.fn(images, split="train", height=16, width=8)
    assert sorted(reason for _, reason in skipped(pixels)) == ["missing", "unreadable", "unreadable"]


def test_an_unreadable_file_is_not_cached(home, crops, monkeypatch):
    def refuse(path, mode):
        if path.endswith("a.png"):
            raise PermissionError(13, "Permission denied", path)
        return Path(path).open(mode)

    with monkeypatch.context() as patch:
        patch.setattr(tasks.data.quality, "open", refuse, raising=False)
        refused = index.fn(str(crops), "target")
    assert read_table(refused.images)["problem"].to_pylist().count("unreadable") == 1
    assert read_table(index.fn(str(crops), "target").images)["problem"].null_count == 7


@pytest.mark.fault("a name that is no UTF-8", "`... rename it`")
def test_a_name_that_is_no_text_is_refused_in_a_sentence(home, crops):
    Path(os.fsdecode(os.fsencode(crops) + b"/\xff.png")).write_bytes(b"x")
    report, _ = check_path(str(crops))
    assert report.verdict == "unusable" and "not valid UTF-8" in report.findings[0].advice and "udcff" in report.findings[0].advice


def test_the_schema_is_the_documented_one(home, crops):
    images = read_table(index.fn(str(crops), "target").images)
    assert images.schema.field("camid").type == pa.int64() and images.schema.field("sharpness").type == pa.float32()
    assert images.schema.remove_metadata().equals(tasks.index.IMAGES)
