"""Users' own data: folders, patterns and manifests; malicious or invalid input is rejected, and unusual names are kept."""

import csv
import io
import re
import string
import unicodedata
from datetime import date
from decimal import Decimal
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pul_core.errors import DataError
from tasks.data.cells import HELD_OUT_NAMES, MISSING, SPLIT_NAMES, clean_cell
from tasks.data.layouts import read_layout
from tasks.data.listing import ListedImage, iter_image_paths
from tasks.data.locations import dataset_name
from tasks.data.manifests import unread_tables
from tasks.data.times import parse_timestamp
from tasks.decode import decode
from tasks.index import index
from tasks.preflight import check_path
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
        ("(?P<camera>a)", "folder", "only be used with --layout pattern"),
    ],
)
def test_an_invalid_pattern_is_rejected(stub, tmp_path, pattern, layout, message):
    with pytest.raises(DataError, match=message):
        listed(stub(tmp_path, "a1.jpg"), layout, pattern)


WORDS = st.text(string.ascii_letters + string.digits + "äß漢 '\"#%,;", min_size=1, max_size=8).filter(
    lambda word: word == word.strip() and word not in MISSING and word.lower() != "#recycle"  # a system's folder, which is not listed
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
    WORDS,
    WORDS | st.just(""),
    WORDS | st.just(""),
    st.floats(-1e9, 1e9, allow_subnormal=False) | st.none(),
    st.sampled_from(["train", "gallery", ""]),
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
        (b"picture;identity\na.jpg;1\n", "no column 'path'.*picture;identity"),
        (b"a.jpg,1,2\n", "begins with an image instead of headings"),
        (b"path,pid,label\na.jpg,1,2\n", "columns 'pid' and 'label', which all mean identity"),
        (b"path,Path\na.jpg,b.jpg\n", "columns 'path' and 'Path', which all mean path"),
        (b"path,is_query,is_gallery\na.jpg,True,True\n", "line 2: an image with is_query and is_gallery"),
        (b"path,is_query,split\na.jpg,1,train\n", "line 2: an image of split 'train' has is_query"),
        (b"path,is_query\na.jpg,maybe\n", "line 2: is_query is 'maybe': write True or False"),
        (b"path,identity\na.jpg,1,2\n", "line 2 has more fields"),
        (b"path,split\na.jpg,fold 3\n", "line 2: 'fold 3' is not a split: write train, query or gallery, or another"),
        (b"path,timestamp\na.jpg,noon\n", "line 2: 'noon' is not a time"),
        (b'path\n"a.jpg\n', "not valid CSV in UTF-8"),
        (b"path\na.jpg\n\xfc.jpg\n", "line 3 is not valid CSV in UTF-8"),
        ("path,pid\na.jpg,1\n".encode("utf-16-le"), "may be UTF-16: save it as UTF-8"),
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
    (tmp_path / "there.jpg").touch()
    write_csv(tmp_path / "manifest.csv", [["path"], ["gone.jpg"], ["there.jpg"]])
    table = read_table(index.fn(str(tmp_path), "target").images)
    assert table.select(["path", "problem"]).slice(0, 1).to_pylist() == [{"path": "gone.jpg", "problem": "missing"}]


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


HEADING_LINES = [
    "path,identity,camera,split",
    "path, identity, camera, split",
    ' "Path" ,IDENTITY , Camera,split',
    "\ufeffPATH,Identity,CAMERA,Split",
    "image_path,pid,camid,subset",
    "File Name,person_id,Cam-ID,partition",
    "img,label,cam,set",
    "filename,personID,cameraId,SPLIT",
    "# path,person,cam_id,split",
]


@pytest.mark.parametrize("heading", HEADING_LINES)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_headings_mean_the_same_in_any_spelling_dialect_and_encoding(tmp_path, heading, delimiter, encoding):
    text = f"\n{heading}\r\na.jpg, 7.0 ,c 1, Probe\r\n,,,\r\n\r\n".replace(",", delimiter)
    (tmp_path / "m.csv").write_bytes(text.encode(encoding))
    assert listed(tmp_path / "m.csv") == [ListedImage("a.jpg", "7", "c 1", "query")]


@pytest.mark.parametrize(
    ("headings", "named"),
    [
        (["path", "Identity (global)"], ["identity"]),
        (["path", "track_id", "camera site", "recorded date"], ["identity", "camera", "timestamp"]),
        (["path", "is_train"], ["split"]),
        (["path", "id", "view"], ["identity", "camera"]),
        (["path", "identity", "label"], ["'identity' is"]),
        (["path", "identity", "track_id", "width", "confidence", "Unnamed: 0", "__index_level_0__"], []),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_that_looks_known_but_is_not_read_is_named(home, tmp_path, headings, named, suffix):
    (tmp_path / "a.jpg").touch()
    if suffix == "csv":
        write_csv(tmp_path / "m.csv", [headings, ["a.jpg", *"1" * (len(headings) - 1)]])
    else:
        pq.write_table(pa.table({name: ["a.jpg" if name == "path" else "1"] for name in headings}), tmp_path / "m.parquet")
    report = check_path(str(tmp_path / f"m.{suffix}"))[0]
    advice = [finding.advice for finding in report.findings if finding.code == "not_as_written"]
    assert len(advice) == len(named)
    assert all(name in text and "ignore this" in text for name, text in zip(named, advice, strict=True))


def test_query_and_gallery_flags_decide_the_split(tmp_path):
    rows = ["1,a.jpg,validation,True,False", "1,b.jpg,validation,False,True", "2,c.jpg,train,,", "2,d.jpg,train,False,0.0"]
    (tmp_path / "m.csv").write_text("\n".join(["label,path,split,is_query,is_gallery", *rows]), encoding="utf-8")
    assert [image.split for image in listed(tmp_path / "m.csv")] == ["query", "gallery", "train", "train"]


@pytest.mark.parametrize("name", [spelling for names in SPLIT_NAMES.values() for name in names for spelling in (name, f" {name.upper()} ")])
def test_every_name_of_a_split_is_read_and_held_out_images_are_named(tmp_path, name):
    (image,) = listed(write_csv(tmp_path / "m.csv", [["path", "split"], ["a.jpg", name]]))
    assert name.strip().lower() in SPLIT_NAMES[image.split]
    assert any("is read as train" in note for note in image.notes) == (name.strip().lower() in HELD_OUT_NAMES)


NUMBERS = st.integers(-1, 12)
COLUMNS = st.sampled_from(
    [
        lambda values: pd.array(values, dtype="Int64"),
        lambda values: pd.array([None if value is None else float(value) for value in values], dtype="Float64"),
        lambda values: np.array([np.nan if value is None else value for value in values], np.float64),
        lambda values: np.array([np.nan if value is None else value for value in values], np.float32),
        lambda values: pd.Categorical(values),
        lambda values: pd.array([None if value is None else f" {value}" for value in values], dtype="string"),
        lambda values: pd.array([None if value is None else f"{value:03}" for value in values], dtype=object),
        lambda values: [None if value is None else Decimal(value).quantize(Decimal("0.01")) for value in values],
    ]
)
TIMES = st.sampled_from(
    [
        lambda values: [float("nan") if value is None else value / 4 for value in values],
        lambda values: pd.array([None if value is None else 1_769_860_805_000 + value for value in values], dtype="Int64"),
        lambda values: pd.to_datetime([None if value is None else 1_769_860_805 + value for value in values], unit="s"),
        lambda values: pd.to_datetime([None if value is None else 1_769_860_805 + value for value in values], unit="s", utc=True),
        lambda values: pd.to_datetime([None if value is None else value for value in values], unit="D").tz_localize("Asia/Tokyo"),
        lambda values: [None if value is None else date(2026, 1, 2 + value) for value in values],
    ]
)
TABLE = st.lists(st.tuples(NUMBERS | st.none(), NUMBERS | st.none(), NUMBERS | st.none(), st.booleans()), min_size=1, max_size=6)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TABLE, identity=COLUMNS, camera=COLUMNS, time=TIMES)
def test_any_table_of_pandas_gives_the_same_images_through_csv_and_parquet(tmp_path, rows, identity, camera, time):
    identities, cameras, times, is_train = map(list, zip(*rows, strict=True))
    frame = pd.DataFrame(
        {
            "file": [f"{number}.jpg" for number in range(len(rows))],
            "pid": identity(identities),
            "cam id": camera(cameras),
            "time": time(times),
            "is_gallery": [not train for train in is_train],
            "subset": pd.Categorical(["train" if train else None for train in is_train]),
        }
    )
    frame.to_csv(tmp_path / "m.csv", index=False)
    frame.to_parquet(tmp_path / "m.parquet")
    images = listed(tmp_path / "m.csv")
    assert images == listed(tmp_path / "m.parquet")
    for image, pid, camid, shot, train in zip(images, identities, cameras, times, is_train, strict=True):
        assert image.split == ("train" if train else "gallery")
        assert (image.pid is None) == (pid is None or (train and pid == -1))
        assert (image.pid in (0, -1)) == (not train and pid in (0, -1))
        assert (image.camid is None) == (camid in (None, -1))
        assert (image.timestamp is None) == (shot is None)


TIME_TEXTS = {
    "1769860805": 1769860805,
    "1769860805.5": 1769860805.5,
    "1769860805500": 1769860805.5,
    "1769860805500000": 1769860805.5,
    "1769860805500000000": 1769860805.5,
    "2026-01-31T12:00:05Z": 1769860805,
    "2026-01-31 12:00:05.500": 1769860805.5,
    "2026-01-31T12:00:05,5+00:00": 1769860805.5,
    "2026-01-31 13:00:05 +0100": 1769860805,
    "2026/01/31 12:00:05": 1769860805,
    "2026:01:31 12:00:05": 1769860805,
    "2026-1-31 12:00:05 UTC": 1769860805,
    "20260131T120005": 1769860805,
    "2026-01-31": 1769817600,
    "12.5": 12.5,
    "-3": -3,
    "31.01.2026 12:00": "order of day and month",
    "01/31/2026 12:00:05": "order of day and month",
    "12:00:05": "has no date",
    "20260131": "may be a date or a number of seconds",
    "20260131120005": "may be a date or a number of seconds",
    "202601311200.0": "may be a date or a number of seconds",
    "134000000000000000": "not a time of this century",
    "638000000000000000": "not a time of this century",
    "inf": "not a time of this century",
    "2026-02-30": "is not a time",
    "0 days 00:00:12": "is not a time",
}


@pytest.mark.parametrize(("text", "expected"), TIME_TEXTS.items())
def test_times_are_read_in_the_unit_in_which_they_are_written_or_refused(text, expected):
    if isinstance(expected, str):
        with pytest.raises(DataError, match=f"line 2: '.*{expected}.*2026-01-31T12:00:05"):
            parse_timestamp(text, "m.csv, line 2")
    else:
        assert parse_timestamp(text, "") == expected


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (["12.5", "2026-01-31"], "some count from 1970 and others do not"),
        (["46053.5", "46053.6"], "look like a spreadsheet's days"),
        (["0", "90000"], None),
    ],
)
def test_times_of_two_kinds_in_a_column_are_named(home, tmp_path, times, words):
    for number in range(len(times)):
        (tmp_path / f"{number}.jpg").touch()
    write_csv(tmp_path / "m.csv", [["path", "time"], *([f"{number}.jpg", time] for number, time in enumerate(times))])
    advice = [finding.advice for finding in check_path(str(tmp_path / "m.csv"))[0].findings if finding.code == "odd_times"]
    assert len(advice) == (words is not None) and all(words in text for text in advice)


NFC, NFD = (unicodedata.normalize(form, "zoë/ü.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("sub/b.jpg", "sub\\b.jpg"),
        ("sub/b.jpg", ".\\sub\\b.jpg"),
        ("sub/b.jpg", "./sub//b.jpg"),
        ("sub/b.jpg", "{root}/sub/b.jpg"),
        ("sub/b.jpg", "{link}/sub/b.jpg"),
        ("a b.jpg", "file://{root}/a%20b.jpg"),
        ("a b.jpg", "a%20b.jpg"),
        ("50%20.jpg", "50%20.jpg"),
        ("a.jpg", " a.jpg "),
        (" a.jpg", " a.jpg"),
        ("a\\b.jpg", "a\\b.jpg"),
        ("a.JPG", "a.jpg"),
        ("a.png", "a.PNG"),
        (NFD, NFC),
        (NFC, NFD),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_path_finds_the_file_that_it_means(stub, tmp_path, name, spelling, suffix):
    root = stub(tmp_path / "set", name)
    (tmp_path / "link").symlink_to(root)
    path = spelling.format(root=root, link=tmp_path / "link")
    pd.DataFrame({"path": [path]}).to_csv(root / "m.csv", index=False)
    pd.DataFrame({"path": [path]}).to_parquet(root / "m.parquet")
    assert [image.path for image in listed(root / f"m.{suffix}")] == [name]


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("set/sub/b.jpg", "remove 'set/' from the paths"),
        ("D:\\data\\sub\\b.jpg", r"remove 'D:\\\\data\\\\' from the paths"),
        ("/mnt/x/sub/b.jpg", "remove '/mnt/x/' from the paths"),
        ("other/c.jpg", "move the file that lists the images to"),
        ("sub/b", "write the paths with their suffix"),
        ("sub/b.png", "correct the suffix"),
        ("b.jpg", "sub/b.jpg has the same name"),
        ("sub/x.jpg", "correct the paths, which must be relative to"),
    ],
)
def test_a_list_of_which_no_image_exists_says_why(home, stub, tmp_path, written, advice):
    root = stub(tmp_path / "set", "sub/b.jpg")
    stub(tmp_path, "other/c.jpg")
    report = check_path(str(write_csv(root / "m.csv", [["path"], [written]])))[0]
    (finding,) = report.findings
    assert report.verdict == "unusable" and "\n" not in finding.advice
    assert re.search(advice, finding.advice), finding.advice


@pytest.mark.parametrize("name", ["labels.csv", "Annotations.CSV", "metadata.parquet", "people.xlsx", "train.tsv"])
def test_a_table_that_is_not_read_is_named(home, stub, tmp_path, name):
    (finding,) = [f for f in check_path(str(stub(tmp_path, "a.jpg", name)))[0].findings if f.code == "not_as_written"]
    assert str(tmp_path / name) in finding.advice


def test_a_manifest_is_recognised_in_any_case(stub, tmp_path):
    write_csv(stub(tmp_path, "a.jpg", "b.jpg") / "Manifest.CSV", [["path"], ["a.jpg"]])
    assert [image.path for image in listed(tmp_path)] == ["a.jpg"]


def test_an_image_that_is_listed_twice_is_named(home, stub, tmp_path):
    write_csv(stub(tmp_path, "a.jpg", "b.jpg") / "m.csv", [["path", "split"], ["a.jpg", "query"], ["./a.jpg", "gallery"], ["b.jpg", ""]])
    (finding,) = [finding for finding in check_path(str(tmp_path / "m.csv"))[0].findings if finding.code == "listed_twice"]
    assert (finding.count, finding.examples) == (1, ["a.jpg"])


def test_names_that_differ_only_in_zeros_or_case_are_named(home, stub, tmp_path):
    write_csv(stub(tmp_path, "a.jpg", "b.jpg") / "m.csv", [["path", "pid", "cam"], ["a.jpg", "007", "North"], ["b.jpg", "7", "north"]])
    advice = [finding.advice for finding in check_path(str(tmp_path / "m.csv"))[0].findings if finding.code == "not_as_written"]
    assert len(advice) == 2 and "'007' and '7'" in advice[0] and "'North' and 'north'" in advice[1]


SPLIT_OF_FOLDER = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


@pytest.mark.parametrize("reader", ["market1501", "csv", "folder-per-identity", "pattern"])
@pytest.mark.parametrize("numbered_from_zero", [True, False])
def test_identity_0_and_minus_1_mean_the_same_in_every_layout(home, stub, tmp_path, reader, numbered_from_zero):
    people = [("bounding_box_train", pid) for pid in (0, 1, -1)] + [("bounding_box_test", pid) for pid in (0, 3, -1)] + [("query", 3)]
    people += [("query", 0)] if numbered_from_zero else []
    rows = [(f"{folder}/{pid:04d}_c1s1_{shot:06d}_00.jpg", folder, pid) for shot, (folder, pid) in enumerate(people)]
    root, options = tmp_path / "set", {"layout": reader}
    if reader == "folder-per-identity":
        stub(root, *(f"{SPLIT_OF_FOLDER[folder]}/{pid}/{shot}.jpg" for shot, (_, folder, pid) in enumerate(rows)))
    else:
        stub(root, *(path for path, _, _ in rows))
    if reader == "csv":
        root, options = (
            write_csv(root / "m.csv", [["path", "pid", "split"], *((path, f"{pid}.0", folder) for path, folder, pid in rows)]),
            {},
        )
    elif reader == "pattern":
        options = {"pattern": r"(?P<split>\w+)/(?P<identity>-?\d+)_c"}
    images = index.fn(str(root), "check", **options)
    splits, pids = read_table(images.images)["split"].to_pylist(), column(read_table(images.labels), "pid").tolist()
    zero = {
        split: pid
        for split, pid, name in zip(splits, pids, read_table(images.labels)["identity"].to_pylist(), strict=True)
        if name is not None and name.strip("0") == ""
    }
    assert zero["train"] > 0
    assert zero["gallery"] == (zero["query"] if numbered_from_zero else 0)
    assert sorted(pid for split, pid in zip(splits, pids, strict=True) if split == "gallery")[0] == -1
    assert check_path(str(root), **options)[0].identities == 3  # 0, 1 and 3
    notes = [note for note in images.notes if note.startswith("identity 0")]
    assert len(notes) == (not numbered_from_zero)


@pytest.mark.parametrize(
    ("heading", "cell", "column"),
    [
        ("name", "Ana", "identity"),
        ("global_id", "7", "identity"),
        ("human", "7", "identity"),
        ("uid", "7", "identity"),
        ("cid", "1", "camera"),
        ("sensor_id", "1", "camera"),
        ("Location", "gate", "camera"),
        ("Kamera", "gate", "camera"),
        ("ts_ms", "1769860805000", "timestamp"),
        ("created", "2026-01-31", "timestamp"),
        ("fold", "test", "split"),
        ("type", "Query", "split"),
        ("usage", "bounding_box_train", "split"),
        ("image_id", "7", None),
        ("frame", "7", None),
        ("width", "64", None),
        ("type", "jpg", None),
        ("name of nobody", "", None),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_that_looks_known_is_named(tmp_path, heading, cell, column, suffix):
    write_csv(tmp_path / "m.csv", [["path", heading], ["a.jpg", cell]])
    if suffix == "parquet":
        pd.read_csv(tmp_path / "m.csv", dtype=str).to_parquet(tmp_path / "m.parquet")
    (image,) = listed(tmp_path / f"m.{suffix}")
    note = f"column {heading!r} is not read: rename it to {column} if it holds that, or ignore this"
    assert image.notes == ((note,) if column else ())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\u200bAna", "Ana"),
        ("Ana\ufeff", "Ana"),
        ("\u202aAna\u202c", "Ana"),
        ("Ana\u00a0", "Ana"),
        ("\u22121", "-1"),
        (" \u20131.0", "-1"),
        ("A\u2013B", "A\u2013B"),
    ],
)
def test_invisible_characters_and_other_minus_signs_make_no_other_name(text, value):
    assert clean_cell(text) == value


@pytest.mark.parametrize("text", ["12_0005", "1_0"])
def test_a_time_with_an_underscore_is_no_number(text):
    assert parse_timestamp("20260131_120005", "m.csv") == parse_timestamp("2026-01-31 12:00:05", "m.csv")
    with pytest.raises(DataError, match="is not a time"):
        parse_timestamp(text, "m.csv")


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["unknown", "Ana"], "identities such as 'unknown' are read like all others"),
        (["Not labelled", "Ana"], "identities such as 'Not labelled'"),
        (["-2", "3"], "identities such as '-2'"),
        (["\uff11", "1"], "are read as different ones"),
        (["Ana", "Bo", "-1", ""], None),
        (["Unknowles", "Bo"], None),
    ],
)
def test_names_that_mean_unknown_are_noted(home, stub, tmp_path, names, note):
    stub(tmp_path, *(f"{number}.jpg" for number in range(len(names))))
    write_csv(tmp_path / "manifest.csv", [["path", "identity"], *([f"{number}.jpg", name] for number, name in enumerate(names))])
    notes = list(index.fn(str(tmp_path), "target").notes)
    assert (notes == []) if note is None else (len(notes) == 1 and note in notes[0])


@pytest.mark.parametrize(
    ("name", "content", "noted"),
    [
        ("readings.csv", b"a,b\n1,2\n", False),
        ("log.tsv", b"time\tmessage\n1\tx\n", False),
        ("crops.csv", b"nr,who\n1,a.JPG\n", True),
        ("crops.csv", b"Image Name;Person\na;Ana\n", True),
        ("crops.csv", "nr,who\n1,a.jpg\n".encode("utf-16"), True),
        ("crops.jsonl", b'{"img": "a.jpg"}\n', True),
        ("events.jsonl", b'{"id": 1}\n', False),
        ("crops.xlsx", b"PK\x03\x04", True),
        ("damaged.parquet", b"x", True),
    ],
)
def test_a_table_beside_the_images_is_named_if_it_may_list_them(tmp_path, name, content, noted):
    (tmp_path / name).write_bytes(content)
    assert unread_tables(tmp_path) == [name] * noted


@pytest.mark.parametrize(("column", "noted"), [("path", True), ("Image", True), ("reading", False)])
def test_a_parquet_table_beside_the_images_is_named_if_it_may_list_them(tmp_path, column, noted):
    pq.write_table(pa.table({column: ["a"]}), tmp_path / "t.parquet")
    assert unread_tables(tmp_path) == ["t.parquet"] * noted


def test_text_that_a_program_wrote_as_bytes_is_read(tmp_path):
    pq.write_table(pa.table({"path": [b"a.jpg"], "identity": [b"Ana"]}), tmp_path / "m.parquet")
    assert listed(tmp_path / "m.parquet") == [ListedImage("a.jpg", "Ana", None, "train")]
    pq.write_table(pa.table({"path": [b"\xff.jpg"]}), tmp_path / "m.parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        listed(tmp_path / "m.parquet")
