"""Folders of identities with splits and cameras around them, plain folders that look like a known set, and patterns on real names."""

import itertools
import re
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pul_core.errors import DataError
from tasks.data.cells import SPLIT_NAMES, clean_cell
from tasks.data.check import check_set
from tasks.data.layouts import LAYOUTS, read_layout
from tasks.data.listing import is_hidden, iter_image_paths
from tasks.index import index


def read(root, layout=None, pattern=None):
    """Return (pid, camid, split) of each path, and the notes with the number of their images."""
    images = list(read_layout(root, layout, pattern)[1])
    assert len({image.path for image in images}) == len(images)
    notes = Counter(note for image in images for note in image.notes)
    return {image.path: (image.pid, image.camid, image.split) for image in images}, notes


NAMES = st.text(string.ascii_letters + string.digits + "äß漢 '#%", min_size=4, max_size=8).filter(
    lambda name: (
        name == clean_cell(name)
        and not is_hidden(name)
        and not re.search(r"(?i)cam|kam|c\d|ch|view|sensor|cctv|train|test|val|dev|query|queries|probe|galler", name)
    )
)
SPLIT_FOLDERS = [
    (spelling, split) for split, names in SPLIT_NAMES.items() for name in names for spelling in (name, name.title(), name.upper())
]
SPELLINGS = st.sampled_from([(name, split) for name, split in SPLIT_FOLDERS if re.sub(r"\W|_", "", name.lower()) != "trainall"])
CAMERAS = st.builds(
    "{}{}{}".format, st.sampled_from(["cam", "Cam", "camera", "CAMERA", "view", "ch"]), st.sampled_from(["", "_", "-"]), st.integers(1, 99)
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    people=st.lists(st.tuples(NAMES, SPELLINGS, CAMERAS), min_size=1, max_size=6),
    order=st.sampled_from([o for size in (1, 2, 3) for o in itertools.permutations("scp", size) if "p" in o]),
)
def test_identities_are_found_between_folders_of_splits_and_cameras(stub, tmp_path_factory, people, order):
    """The order is of split (s), camera (c) and person (p), from the root; a part that is missing is not stated."""
    root = tmp_path_factory.mktemp("set")
    expected = {}
    for number, (name, (split_folder, split), camera) in enumerate(people):
        folders = {"s": split_folder, "c": camera, "p": name}
        path = "/".join([*(folders[part] for part in order), f"{number}.jpg"])
        expected[path] = (name, camera if "c" in order else None, split if "s" in order else "train")
    stub(root, *expected)
    found, notes = read(root, "folder-per-identity")
    assert found == {
        path: (0 if split == "gallery" and not pid.strip("0") else pid, c, split) for path, (pid, c, split) in expected.items()
    }
    assert not notes


PREPARED = [
    *(f"pytorch/{top}/0002/0002_c{shot}s1_00{shot}_00.jpg" for shot in (1, 2) for top in ("train_all", "train" if shot == 1 else "val")),
    "pytorch/train/0003/0003_c1s1_001_00.jpg",
    "pytorch/query/0004/0004_c2s1_001_00.jpg",
    "pytorch/gallery/0004/0004_c3s1_001_00.jpg",
    "pytorch/gallery/-1/-1_c3s1_001_00.jpg",
    "pytorch/gallery/0000/0000_c12s1_001_00.jpg",
    "pytorch/multi-query/0004/0004_c1s1_001_00.jpg",
]


def test_the_prepared_folder_of_a_baseline_counts_each_image_once(stub, tmp_path):
    found, notes = read(stub(tmp_path, *PREPARED), "folder-per-identity")
    assert found == {
        PREPARED[0]: ("0002", "1", "train"),
        PREPARED[2]: ("0002", "2", "train"),
        PREPARED[4]: ("0003", "1", "train"),  # in no other folder
        PREPARED[5]: ("0004", "2", "query"),
        PREPARED[6]: ("0004", "3", "gallery"),
        PREPARED[7]: (-1, "3", "gallery"),
        PREPARED[8]: (0, "12", "gallery"),
    }
    assert sorted(notes) == [
        f"images not read: 1, the first is {PREPARED[9]}: it is beside the folders gallery, query, train, train_all, val; "
        "move it into one of these if it belongs there",
        f"images not read: 2, the first is {PREPARED[1]}: it is in the folder of all training images, too",
    ]


@pytest.mark.parametrize(
    ("names", "pids", "note"),
    [
        (["siteA/Ana/1.jpg", "siteA/Bo/2.jpg", "siteB/Cy/1.jpg"], {"siteA", "siteB"}, "their images are in several folders such as 'Ana'"),
        (["all/Ana/1.jpg", "all/Bo/2.jpg"], {"all"}, "give the folder that holds them"),
        (["cam1/1.jpg", "cam2/1.jpg"], {"cam1", "cam2"}, "look like cameras"),
        (["train/cam_a/1.jpg"], {"cam_a"}, "look like cameras"),
        (["test_2026/1.jpg", "Ana/1.jpg"], {"test_2026", "Ana"}, "look like splits"),
        (["rgb/train/A/1.jpg", "sketch/train/B/1.jpg"], {"A", "B"}, "above the splits are not used"),
        (["rgb/test/A/002/1.jpg", "rgb/test/A/003/1.jpg"], {"A"}, "their images are in several folders"),
        (["north-cam/1.jpg", "Ana/1.jpg"], {"north-cam", "Ana"}, "look like cameras"),
        (["train/Ana/1.jpg", "train/Val/2.jpg"], {"Ana", "Val"}, "look like splits"),
        (["Ana/1.jpg", "Ana/evening/2.jpg", "Bo/night/1.jpg", "Cy/cam1/1.jpg", "Cy/cam2/1.jpg"], {"Ana", "Bo", "Cy"}, None),
    ],
)
def test_folders_that_may_not_be_identities_are_noted(stub, tmp_path, names, pids, note):
    found, notes = read(stub(tmp_path, *names), "folder-per-identity")
    assert {pid for pid, _, _ in found.values()} == pids
    assert (list(notes) == []) if note is None else (len(notes) == 1 and note in next(iter(notes)))


@pytest.mark.parametrize(
    ("outer", "inner", "split"),
    [
        ("test", "query", "query"),
        ("Testing", "probe", "query"),
        ("test", "gallery", "gallery"),
        ("gallery", "test", "gallery"),
        ("val", "query", None),
        ("train", "test", None),
        ("test", "train", None),
        ("query", "gallery", None),
    ],
)
def test_a_split_in_a_split(stub, tmp_path, outer, inner, split):
    stub(tmp_path, "train/Ana/1.jpg", f"{outer}/{inner}/Bo/2.jpg")
    found, notes = read(tmp_path, "folder-per-identity")
    assert found.get(f"{outer}/{inner}/Bo/2.jpg") == (("Bo", None, split) if split else None)
    assert list(notes) == [] if split else any(f"in the folders of two splits, {outer} and {inner}" in note for note in notes)


def test_a_person_with_the_name_of_a_split(stub, tmp_path):
    stub(tmp_path, "Ana/1.jpg", "Dev/2.jpg", "Val/3.jpg")
    assert not read(tmp_path, pattern="^(?P<identity>[^/]+)/")[1]
    with pytest.raises(DataError, match=r"Dev/2\.jpg is not in the folder of an identity \(Dev is read as a split\)"):
        read(tmp_path, "folder-per-identity")


@pytest.mark.parametrize("names", [["train/1.jpg", "val/2.jpg"], ["train/Ana/1.jpg", "query/1.jpg"], ["train/Ana/1.jpg", "loose.jpg"]])
def test_an_image_in_no_folder_of_an_identity_is_an_error(stub, tmp_path, names):
    with pytest.raises(DataError, match="is not in the folder of an identity"):
        read(stub(tmp_path, *names), "folder-per-identity")


@pytest.mark.parametrize("prefix", ["", "2026/", "rgb/site/"])
@pytest.mark.parametrize(("name", "split"), [pair for pair in SPLIT_FOLDERS if not pair[0].lower().startswith("bounding_box_")])
def test_no_name_of_a_split_is_taken_for_crops_without_a_word(stub, tmp_path, name, split, prefix):
    stub(tmp_path, f"{prefix}train/a.jpg", f"{prefix}{name}/b.jpg", "x/c.jpg")
    if split == "train":
        _, notes = read(tmp_path)
        assert "train" in name.lower() or any("look like validation images" in note for note in notes)
        return
    with pytest.raises(DataError, match=re.escape(f"give the training images alone ({tmp_path}/{prefix}train), or state a --pattern")):
        read(tmp_path)
    found, notes = read(tmp_path, "folder")  # stated
    assert len(found) == 3 and any(f"folders such as {name!r} look like {split} images" in note for note in notes)


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["test/1.jpg"], "look like gallery images"),
        (["probe_3/1.jpg"], "look like query images"),
        (["cam1/1.jpg", "cam2/1.jpg"], "look like cameras"),
        (["a/c2/1.jpg"], "look like cameras"),
        (["frames_cam1/1.jpg"], "look like cameras"),
        (["north-cam/1.jpg"], "look like cameras"),
        (["NVR_ch01_main/1.jpg"], "look like cameras"),
        (["192.168.1.10/1.jpg"], "look like cameras"),
        (["a/b/c/d/query_images/1.jpg"], "look like query images"),
        (["eval_2026/1.jpg"], "look like gallery images"),
        (["DCIM/Camera/1.jpg", "scampi/2.jpg"], None),
        (["0002_c1s1_000451_03.jpg"], "names look like a published set's"),
        (["a/0001C1T0001F001.jpg"], "names look like a published set's"),
        (["subset/0000000_s00_c00_f00002.jpg"], "names look like a published set's"),
        (["a.jpg", "exp/train_id.txt"], "exp/train_id.txt may list splits"),
        (["a.jpg", "train-test people splits/splits.mat", "name_query.txt"], "name_query.txt"),
        (["a.jpg", "notes.txt", "contest.txt", "retrain/b.jpg", "attest/c.jpg", "camel/d.jpg"], None),
        (["monday/1.jpg", "north door/2.jpg", "train/3.jpg"], None),
    ],
)
def test_names_in_a_plain_folder_that_are_not_used_are_noted(home, draw, tmp_path, names, note):
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
        if name.endswith(".jpg"):
            Image.fromarray(draw(number, 1, 1)).save(tmp_path / name)
    _, notes = read(tmp_path)
    assert (not notes) if note is None else any(note in text for text in notes)
    report = check_set(index.fn(str(tmp_path), "target"))
    assert report.verdict == ("sound" if note is None else "usable")


def test_a_note_is_written_once_for_many_folders(stub, tmp_path):
    stub(tmp_path, *(f"cam{number}/person{number}/a.jpg" for number in range(50)))
    assert list(read(tmp_path)[1].values()) == [50]
    stub(tmp_path, *(f"p{number}/{shot}/a.jpg" for number in range(50) for shot in ("x", "y")))
    assert list(read(tmp_path, "folder-per-identity")[1].values()) == [100]


def test_what_systems_write_beside_images_is_not_listed(stub, tmp_path):
    junk = [
        "__MACOSX/a/._1.jpg",
        "a/._1.jpg",
        "@eaDir/1.jpg/THUMB.jpg",
        "a/#recycle/1.jpg",
        "$RECYCLE.BIN/1.jpg",
        ".Trash/1.jpg",
        "a/Thumbs.db",
    ]
    stub(tmp_path, "a/1.jpg", *junk)
    assert list(iter_image_paths(tmp_path)) == ["a/1.jpg"]
    for layout, pattern in ((None, None), ("folder-per-identity", None), ("pattern", "(?P<camera>.)/")):
        assert list(read(tmp_path, layout, pattern)[0]) == ["a/1.jpg"]


def test_a_pattern_that_matches_a_part_says_how_many_images_are_left_out(stub, tmp_path):
    stub(tmp_path, "cam1/a.jpg", "cam2/b.jpg", "north/c.jpg", "south/d.jpg")
    found, notes = read(tmp_path, pattern=r"^cam(?P<camera>\d)")
    assert found == {"cam1/a.jpg": (None, "1", "train"), "cam2/b.jpg": (None, "2", "train")}
    (note,) = notes
    assert note.startswith(r"images not read: 2, the first is north/c.jpg: it does not match the pattern '^cam(?P<camera>\d)'; correct")


def test_a_pattern_without_a_split_notes_folders_that_look_like_splits(stub, tmp_path):
    stub(tmp_path, "train/1_a.jpg", "test/2_a.jpg", "test/3_a.jpg", "query/4_a.jpg")
    _, notes = read(tmp_path, pattern=r"(?P<identity>\d)_")
    assert sorted(notes.values()) == [1, 2] and all("a --pattern with a group split" in note for note in notes)
    assert not read(tmp_path, pattern=r"(?P<split>\w+)/(?P<identity>\d)_")[1]


DOCUMENTED = [  # the images in the rows of the table of patterns
    [(None, "3", "train")],
    [("ana", "2", "train"), ("bo", "1", "gallery")],
    [("1", "4", "train"), ("1", None, "train")],
    [("0001", "1", "train"), (-1, "1", "gallery")],
    [("0002", "1", "train"), (None, "2", "train")],
    [("0001", "a", "train")],
    [("001", "1", "train")],
    [("0001", "1", "train")],
    [("0001", "01", "train"), ("0006", "03", "query")],
    [("1", None, "train"), ("5", None, "gallery")],
    [("0001", "6", "train")],
    [("00005", "0", "query"), ("00005", "1", "gallery")],
    [("001", "A", "train")],
    [("0000000", "00", "train")],
]


def test_the_patterns_in_the_docs_match_the_names_beside_them(stub, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    rows = page.split("| names | pattern |")[1].split("\n\n")[0].splitlines()[2:]
    for number, (row, expected) in enumerate(zip(rows, DOCUMENTED, strict=True)):
        names, pattern = re.findall(r"`([^`]+)`", row)[:-1], re.findall(r"`([^`]+)`", row)[-1].replace("\\|", "|")
        found, notes = read(stub(tmp_path / str(number), *names), pattern=pattern)
        assert [found[name] for name in names] == expected and not notes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_case_and_punctuation_of_a_layouts_name_do_not_matter(stub, tmp_path, layout):
    for spelling in (layout.upper(), layout.replace("-", "_"), layout.replace("-", " "), layout.replace("-", ""), f" {layout.title()} "):
        with pytest.raises(DataError) as error:
            read(tmp_path, spelling)
        assert "unknown layout" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("market", "market1501"),
        ("Market-1501", "market1501"),
        ("duke", "market1501"),
        ("DukeMTMC-reID", "market1501"),
        ("MSMT17_V2", "msmt17"),
        ("identity-folders", "folder-per-identity"),
        ("folder_per_person", "folder-per-identity"),
        ("VeRi", "veri776"),
        ("csv", "manifest"),
        ("plain", "folder"),
    ],
)
def test_other_names_of_layouts(stub, tmp_path, name, layout):
    messages = []
    for spelling in (name, layout):
        with pytest.raises(DataError) as error:
            read(tmp_path, spelling)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("name", "close"),
    [("makret1501", "market1501"), ("folder-per-idenity", "folder-per-identity"), ("cuhk03", "cuhk03-np-detected"), ("vipr", "viper")],
)
def test_an_unknown_layout_is_answered_with_the_closest_one(tmp_path, name, close):
    with pytest.raises(DataError, match=rf"unknown layout '{name}': did you mean {close}\? Choose one of folder"):
        read(tmp_path, name)
