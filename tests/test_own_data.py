"""Users' own data: folders, patterns and manifests; malicious or invalid input is rejected, and unusual names are kept."""

import csv
import io
import string
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pul_core.errors import DataError
from tasks.data.layouts import read_layout
from tasks.data.listing import ListedImage, iter_image_paths
from tasks.data.locations import dataset_name
from tasks.decode import decode
from tasks.index import index
from tasks.store.artifacts import column, read_table
from tasks.store.readers import open_pixels

ODD = ("a b.jpg", 'say "hi", you.jpg', "ünï/漢字.png", "it's/50%.JPG", "#1;x.webp")


def listed(root, layout=None, pattern=None):
    return list(read_layout(root, layout, pattern)[1])


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.fault("a folder link that leaves the folder", "not followed")
def test_the_walk_is_in_the_order_of_the_paths_and_follows_no_folder_link(stub, tmp_path):
    names = ["a.jpg", "a/b.jpg", "a-b/c.jpg", "a b/c.jpg", "a/b/c.jpg", "aa.jpg", ".hidden/x.jpg", "a/.x.jpg", "b.txt", *ODD]
    stub(tmp_path / "set", *names)
    stub(tmp_path / "elsewhere", "x.jpg")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "x.jpg")
    expected = sorted([*(name for name in names if "/." not in f"/{name}" and not name.endswith("txt")), "link.jpg"])
    assert list(iter_image_paths(tmp_path / "set")) == expected


def test_folder_per_identity_is_used_only_when_stated(stub, tmp_path):
    stub(tmp_path, "Ana/1.jpg", "Ana/more/2.jpg", "0/3.jpg", "-1/4.jpg", *(name for name in ODD if "/" in name))
    assert {image.pid for image in listed(tmp_path)} == {None}
    pids = {image.path: image.pid for image in listed(tmp_path, "folder-per-identity")}
    assert pids == {
        "Ana/1.jpg": "Ana",
        "Ana/more/2.jpg": "Ana",
        "0/3.jpg": "0",
        "-1/4.jpg": None,
        "it's/50%.JPG": "it's",
        "ünï/漢字.png": "ünï",
    }
    stub(tmp_path, "loose.jpg")
    with pytest.raises(DataError, match=r"loose\.jpg is not in the folder of an identity"):
        listed(tmp_path, "folder-per-identity")


def test_folder_per_identity_inside_splits(stub, tmp_path):
    stub(tmp_path, "train/Ana/1.jpg", "query/Bo/2.jpg", "gallery/Bo/3.jpg", "gallery/0/4.jpg", "gallery/-1/5.jpg")
    assert [(image.pid, image.split) for image in listed(tmp_path, "folder-per-identity")] == [
        (-1, "gallery"),
        (0, "gallery"),
        ("Bo", "gallery"),
        ("Bo", "query"),
        ("Ana", "train"),
    ]


def test_a_pattern_extracts_all_fields_from_a_path(stub, tmp_path):
    stub(tmp_path, "test/north door/Ana-12.5.jpg", "train/x/Bo.jpg")
    pattern = r"(?P<split>train|test)/(?P<camera>[^/]+)/(?P<identity>[^-.]+)(-(?P<timestamp>[\d.]+))?\.jpg"
    assert read_layout(tmp_path, pattern=pattern)[0] == "pattern"
    assert listed(tmp_path, pattern=pattern) == [
        ListedImage("test/north door/Ana-12.5.jpg", "Ana", "north door", "gallery", 12.5),
        ListedImage("train/x/Bo.jpg", "Bo", "x", "train", None),
    ]


@pytest.mark.parametrize(
    ("pattern", "layout", "message"),
    [
        ("(?P<camera>", None, "not a valid regular expression"),
        (r"\d+", None, "must have named groups"),
        ("(?P<cam>.)", None, "only these: identity"),
        ("(?P<camera>c9)", None, r"the first is a1\.jpg: it does not match"),
        ("(?P<cam>.)(?P<pid>.)", None, "call cam camera; call pid identity"),
        (r"(?P<camera>.*)\\\\a", None, "forward slashes, not backslashes"),
        ("(?P<split>a)", None, "'a' is not a split"),
        ("(?P<timestamp>a)", None, "'a' is not a time"),
        ("(?P<camera>a)", "folder", "only be used with layout pattern"),
    ],
)
def test_an_invalid_pattern_is_rejected(stub, tmp_path, pattern, layout, message):
    with pytest.raises(DataError, match=message):
        listed(stub(tmp_path, "a1.jpg"), layout, pattern)


WORDS = st.text(string.ascii_letters + string.digits + "äß漢 '\"#%,;", min_size=1, max_size=8).filter(
    lambda word: word == word.strip() and word.lower() != "#recycle"  # a system's folder, which is not listed
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(people=st.sets(st.tuples(WORDS, WORDS, st.integers(0, 999)), min_size=1, max_size=8))
def test_a_pattern_recovers_the_parts_of_a_name(stub, tmp_path_factory, people):
    root = tmp_path_factory.mktemp("set")
    stub(root, *(f"{camera}/{identity}_{number}.jpg" for identity, camera, number in people))
    images = listed(root, pattern=r"^(?P<camera>.*)/(?P<identity>.*)_(?P<timestamp>\d+)\.jpg$")
    # In a training set every text is an identity, 0 included.
    assert {(image.pid, image.camid, image.timestamp) for image in images} == {
        (identity, camera, float(n)) for identity, camera, n in people
    }


CELLS = st.tuples(
    WORDS, WORDS | st.just(""), WORDS | st.just(""), st.floats(-1e9, 1e9) | st.none(), st.sampled_from(["train", "gallery", ""])
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(CELLS, min_size=1, max_size=8))
def test_csv_and_parquet_manifests_give_the_same_images_in_the_same_order(tmp_path, rows):
    rows = [(f"sub/{path}.jpg", *rest) for path, *rest in rows]
    names = ["path", "identity", "camera", "timestamp", "split"]
    write_csv(tmp_path / "m.csv", [names, *(["" if cell is None else cell for cell in row] for row in rows)])
    table = pa.table({name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)})
    pq.write_table(table.append_column("note", pa.array([1] * len(rows))), tmp_path / "m.parquet")
    images = listed(tmp_path / "m.csv")
    assert images == listed(tmp_path / "m.parquet")
    for image, (path, identity, camera, timestamp, split) in zip(images, rows, strict=True):
        special = split == "gallery" and identity and not identity.strip("0")
        assert image == ListedImage(path, 0 if special else identity or None, camera or None, split or "train", timestamp)


def test_a_manifest_with_numbers_times_and_missing_values(tmp_path):
    import pandas as pd

    frame = pd.DataFrame(
        {
            "path": ["a.jpg", "./b//c.jpg", "d.jpg"],
            "identity": [7, None, 9],  # pandas makes them floats
            "timestamp": pd.to_datetime(["1970-01-01 00:01:00", None, "1970-01-01 00:00:00.5"], format="ISO8601"),
        }
    )
    frame.to_parquet(tmp_path / "manifest.parquet")
    assert listed(tmp_path) == [
        ListedImage("a.jpg", "7", None, "train", 60.0),
        ListedImage("b/c.jpg", None, None, "train", None),
        ListedImage("d.jpg", "9", None, "train", 0.5),
    ]


def test_a_csv_with_a_byte_order_mark(tmp_path):
    (tmp_path / "m.csv").write_bytes("\ufeffpath,identity\r\nü.jpg,007\r\n".encode())
    assert listed(tmp_path / "m.csv") == [ListedImage("ü.jpg", "007", None, "train")]


EVIL = [
    "../x.jpg",
    "a/../../x.jpg",
    "a\\..\\x.jpg",
    "/etc/x.jpg",
    "\\\\host\\x.jpg",
    "C:\\x.jpg",
    "~/x.jpg",
    "file:///etc/x.jpg",
    "",
    "a/%2e%2e/x.jpg",
]


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_manifest_path_cannot_lead_out_of_its_folder(tmp_path, evil, suffix):
    manifest = write_csv(tmp_path / "m.csv", [["path", "note"], ["a.jpg", ""], [evil, "x"]])
    if suffix == "parquet":
        pq.write_table(pyarrow.csv.read_csv(manifest), tmp_path / "m.parquet")
    with pytest.raises(DataError, match=r"m\.csv, line 3: " if suffix == "csv" else r"m\.parquet, row 2: "):
        listed(tmp_path / f"m.{suffix}")


@pytest.mark.fault("a manifest whose path or link leaves its folder", "refused, the line named")
def test_a_manifest_cannot_lead_out_by_a_link_either(stub, tmp_path):
    stub(tmp_path / "outside", "x.jpg")
    root = stub(tmp_path / "set", "in/x.jpg")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "file.jpg").symlink_to(tmp_path / "outside" / "x.jpg")
    (root / "inner.jpg").symlink_to(root / "in" / "x.jpg")
    (tmp_path / "set-too").symlink_to(root)
    for place in (root, tmp_path / "set-too"):  # the folder itself may be reached by a link
        manifest = write_csv(root / "m.csv", [["path"], ["in/x.jpg"], ["inner.jpg"]])
        assert len(listed(place / "m.csv")) == 2
        for name in ("folder/x.jpg", "file.jpg"):
            write_csv(manifest, [["path"], ["in/x.jpg"], [name]])
            with pytest.raises(DataError, match=r"line 3: .*link that leads out"):
                listed(place / "m.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no column 'path'"),
        (b"image;identity\na.jpg;1\n", "no column 'path'.*image;identity"),
        (b"path,identity\na.jpg,1,2\n", "line 2 has more fields"),
        (b"path,split\na.jpg,val\n", "line 2: 'val' is not a split"),
        (b"path,timestamp\na.jpg,noon\n", "line 2: 'noon' is not a time"),
        (b"path,timestamp\na.jpg,nan\n", "line 2: 'nan' is not a time"),
        (b"path,split,identity\na.jpg,query,0\n", "a query cannot have identity 0"),
        (b"path,split,identity\na.jpg,query,-1\n", "a query cannot have identity -1"),
        (b'path\n"a.jpg\n', "not valid CSV in UTF-8"),
        (b"path\n\xff\xfe.jpg\n", "not valid CSV in UTF-8"),
        (b"path\n", "holds no images"),
    ],
)
def test_an_invalid_manifest_is_rejected(tmp_path, text, message):
    (tmp_path / "m.csv").write_bytes(text)
    with pytest.raises(DataError, match=message):
        listed(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nonsense://x/m.csv", "has an unsupported protocol"),
        ("memory://nowhere/m.csv", "cannot be opened"),
        ("memory://nowhere/folder", "is not a folder"),
        ("{root}/m.parquet", "not a readable Parquet file"),
        ("{root}/picture.jpg", "is not a folder"),
    ],
)
def test_a_location_that_cannot_be_read_is_rejected(tmp_path, place, message):
    (tmp_path / "m.parquet").write_bytes(b"no parquet at all")
    (tmp_path / "picture.jpg").touch()
    with pytest.raises(DataError, match=message):
        listed(place.format(root=tmp_path))


def test_a_manifest_at_a_url_is_indexed_and_decoded_without_cameras(home, draw):
    fs = fsspec.filesystem("memory")
    for name in ("shop/a b.png", "shop/ü/c.png"):
        file = io.BytesIO()
        Image.fromarray(draw(1, 1, 1)).save(file, format="PNG")
        fs.pipe_file(f"/{name}", file.getvalue())
    fs.pipe_file("/shop/week.csv", "path,identity\na b.png,Ana\nü/c.png,\n".encode())
    images = index.fn("memory://shop/week.csv", "target")
    assert (images.name, images.layout, images.splits) == ("shop-week", "manifest", {"train": 2})
    assert read_table(images.images).column("camid").to_pylist() == [None, None]
    rows, _ = open_pixels(decode.fn(images, split="train", height=64, width=32))
    assert rows.tolist() == [0, 1]


def test_identities_and_cameras_that_are_strings_are_numbered(home, tmp_path, draw):
    for name in ("north/Bo_1.png", "north/Ana_2.png", "south/Ana_3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(draw(1, 1, len(name))).save(tmp_path / name)
    images = index.fn(str(tmp_path), "source", pattern="(?P<camera>[a-z]+)/(?P<identity>[^_]+)")
    camids, pids = column(read_table(images.images), "camid"), column(read_table(images.labels), "pid")
    assert camids[0] == camids[1] != camids[2] and pids[0] == pids[2] != pids[1] and min(pids) > 0


def test_a_listed_file_that_does_not_exist_is_marked_missing(home, tmp_path):
    write_csv(tmp_path / "manifest.csv", [["path"], ["gone.jpg"]])
    table = read_table(index.fn(str(tmp_path), "target").images)
    assert table.select(["path", "problem"]).to_pylist() == [{"path": "gone.jpg", "problem": "missing"}]


def test_a_data_set_is_named_after_its_folder_and_file(stub, tmp_path):
    stub(tmp_path / "shop", "a.csv", "manifest.parquet")
    names = [dataset_name(str(path)) for path in (tmp_path / "shop", tmp_path / "shop/a.csv", tmp_path / "shop/manifest.parquet")]
    assert names == ["shop", "shop-a", "shop"]


def test_listing_a_manifest_needs_the_memory_of_one_batch(tmp_path, monkeypatch):
    import tracemalloc

    monkeypatch.setattr("tasks.data.manifests.BATCH", 500)
    n = 10_000
    paths = pa.array([f"{i // 1000}/{i}.jpg" for i in range(n)])
    pq.write_table(pa.table({"path": paths, "identity": pa.array(range(n))}), tmp_path / "m.parquet")
    tracemalloc.start()
    count = sum(1 for _ in read_layout(Path(tmp_path, "m.parquet"))[1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == n and peak < 1_000_000, f"{peak:,} bytes"
