"""Readers of published data sets: published counts on empty files named as in the authors' lists; other layouts on small folders."""

import os
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pul_core.errors import DataError
from tasks.data.layouts import read_layout

LISTS = Path(os.environ.get("PUL_SHARED", Path(__file__).parent.parent.parent / "shared")) / "data" / "lists"
FOLDERS = {"train.list": "bounding_box_train", "query.list": "query", "test.list": "bounding_box_test"}


KNOWN_SETS = {  # names as distributed: pid, camid, split
    "market1501": {
        "bounding_box_train/0002_c1s1_000451_03.jpg": (2, 1, "train"),
        "bounding_box_test/-1_c1s1_000401_03.jpg": (-1, 1, "gallery"),
        "bounding_box_test/0000_c6s3_088642_01.jpg.jpg": (0, 6, "gallery"),
        "query/0001_c1s1_001051_00.jpg": (1, 1, "query"),
    },
    "veri776": {
        "image_train/0001_c001_00016450_0.jpg": (1, 1, "train"),
        "image_query/0002_c002_00030600_0.jpg": (2, 2, "query"),
        "image_test/0002_c020_00030605_0.jpg": (2, 20, "gallery"),
    },
    "ltcc": {
        "train/001_1_c5_015833.png": ("001", 5, "train"),
        "query/000_1_c10_015900.png": ("000", 10, "query"),
        "test/000_2_c6_016002.png": ("000", 6, "gallery"),
    },
    "mars": {
        "bbox_train/0001/0001C1T0001F001.jpg": (1, 1, "train"),
        "bbox_test/00-1/00-1C1T0001F001.jpg": (-1, 1, "gallery"),
        "bbox_test/0000/0000C6T0001F001.jpg": (0, 6, "gallery"),
        "bbox_test/0002/0002C2T0001F001.jpg": (2, 2, "gallery"),
    },
    "grid": {
        "probe/0001_1_25004_107_32_106_221.jpeg": (1, 1, "query"),
        "gallery/0001_2_25023_116_-34_84_209.jpeg": (1, 2, "gallery"),
        "gallery/0000_8_25698_131_32_122_261.jpeg": (0, 8, "gallery"),
    },
    "viper": {"cam_a/000_45.bmp": ("000", 1, "query"), "cam_b/000_90.bmp": ("000", 2, "gallery")},
    "cuhk01": {
        f"campus/000{pid}00{n}.png": (pid, (n + 1) // 2, split) for pid, n, split in ((1, 1, "train"), (2, 2, "query"), (2, 3, "gallery"))
    },
}
BESIDE = {  # what is distributed with the images, or comes from systems
    "veri776": ["name_train.txt", "name_query.txt", "train_label.xml", "gt_index.txt"],
    "ltcc": ["info/cloth-change_id_train.txt", "info/readme.txt"],
    "grid": ["features_and_partitions.mat", "README.txt"],
    "market1501": ["gt_bbox/0001_c1s1_001051_00.jpg", "gt_query/0001_c1s1_001051_00_good.mat", "readme.txt"],
}
JUNK = ["__MACOSX/x/._0002_c1s1_000451_03.jpg", "README.md", "set.zip", ".DS_Store", "@eaDir/a.jpg", "._a.jpg", "Thumbs.db"]


def labels_by_path(root, layout=None, pattern=None):
    """Return the layout, and (pid, camid, split) of each path; listing twice must give the same images in the same order."""
    name, listing = read_layout(root, layout, pattern)
    images = list(listing)
    assert list(read_layout(root, layout, pattern)[1]) == images
    assert len({image.path for image in images}) == len(images)
    return name, {image.path: (image.pid, image.camid, image.split) for image in images}


@pytest.fixture(scope="module", params=["Market", "Duke", "CUHK03"])
def authors_set(request):
    """A data set of empty files with the names in the authors' lists, and the lists beside them."""
    if not (LISTS / request.param).is_dir():
        pytest.skip("the authors' lists are not here")
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="pul-stubs-", dir=memory if memory.is_dir() else None))
    for name, folder in FOLDERS.items():
        (root / folder).mkdir()
        shutil.copy(LISTS / request.param / name, root)
        for line in (root / name).read_text().splitlines():
            os.close(os.open(root / folder / line.split()[0], os.O_CREAT))
    shutil.copy(LISTS / request.param / "25train.list", root)
    yield request.param, root
    shutil.rmtree(root)


# Images and identities of each split; matches per query from other cameras: mean, minimum, number of queries with exactly one.
# All of it follows from the lists, except CUHK03's labelled boxes, which are in no list, and CUHK03's mean, which has two digits only.
GOLDEN = {
    "Market": ({"train": (12936, 751), "query": (3368, 750), "gallery": (19732, 752)}, (14.74, 1, 18)),
    "Duke": ({"train": (16522, 702), "query": (2228, 702), "gallery": (17661, 1110)}, (15.18, 1, 2)),
    "CUHK03": ({"train": (7365, 767), "query": (1400, 700), "gallery": (5332, 700)}, (3.81, 1, 23)),
}


def test_published_counts(authors_set):
    name, root = authors_set
    layout, images = read_layout(root)
    assert layout == "market1501"
    pids, gallery, queries = defaultdict(list), Counter(), []
    for image in images:
        pids[image.split].append(image.pid)
        if image.split == "gallery":
            gallery[image.pid, image.camid] += 1
            gallery[image.pid] += 1
        elif image.split == "query":
            queries.append((image.pid, image.camid))
    counts, matches_per_query = GOLDEN[name]
    assert {split: (len(split_pids), len(set(split_pids))) for split, split_pids in pids.items()} == counts
    matches = np.array([gallery[pid] - gallery[pid, camid] for pid, camid in queries])
    assert (round(matches.mean(), 2), matches.min(), (matches == 1).sum()) == matches_per_query
    if name == "Market":
        kinds = Counter(min(pid, 1) for pid in pids["gallery"])
        assert kinds == {1: 13115, 0: 2798, -1: 3819}


def test_the_authors_lists_agree_with_the_file_names(authors_set):
    _, root = authors_set
    by_names = {image.path: image for image in read_layout(root)[1]}
    assert {image.path: image for image in read_layout(root, "lists")[1]} == by_names
    few = list(read_layout(root / "25train.list")[1])
    assert {image.path for image in few} == {path for path, image in by_names.items() if image.split == "train"}
    labelled = [image for image in few if image.pid is not None]
    assert len({image.pid for image in labelled}) == 25 and all(by_names[image.path] == image for image in labelled)


def test_lists_of_other_names_use_the_label_as_identity(tmp_path):
    (tmp_path / "train.list").write_text("shop 1/a b.jpg 0\nc.jpg -1\n\nshop 1/ü.jpg 12\n", encoding="utf-8")
    (tmp_path / "test.list").write_text("d.jpg\n0007_c2_f1.jpg\n")
    assert labels_by_path(tmp_path) == (
        "lists",
        {
            "shop 1/a b.jpg": ("0", None, "train"),
            "c.jpg": (None, None, "train"),
            "shop 1/ü.jpg": ("12", None, "train"),
            "d.jpg": (None, None, "gallery"),
            "0007_c2_f1.jpg": (7, 2, "gallery"),
        },
    )


def test_duke_and_both_boxes_of_cuhk03_np_are_named_like_market(stub, tmp_path):
    stub(tmp_path, "detected/bounding_box_train/0001_c2_f0046182.jpg", "labeled/bounding_box_train/0001_c1_1.png")
    assert labels_by_path(tmp_path / "detected") == ("market1501", {"bounding_box_train/0001_c2_f0046182.jpg": (1, 2, "train")})
    assert labels_by_path(tmp_path / "labeled") == ("market1501", {"bounding_box_train/0001_c1_1.png": (1, 1, "train")})
    with pytest.raises(DataError, match=r"two kinds of boxes: give \S+/detected or \S+/labeled"):
        read_layout(tmp_path)


def test_msmt17_has_two_digit_cameras_and_identities_from_0_in_train_and_test(stub, tmp_path):
    train, test = tmp_path / "mask_train_v2", tmp_path / "mask_test_v2"
    stub(train, "0000/0000_000_01_0303morning_0015_0.jpg", "0000/0000_001_14_0303noon_0008_0.jpg")
    stub(test, "0000/0000_000_15_0302afternoon_0001_1.jpg", "0000/0000_001_09_0302afternoon_0001_1.jpg")
    (tmp_path / "list_train.txt").write_text("0000/0000_000_01_0303morning_0015_0.jpg 0\n")
    (tmp_path / "list_val.txt").write_text("0000/0000_001_14_0303noon_0008_0.jpg 0\n")
    (tmp_path / "list_query.txt").write_text("0000/0000_000_15_0302afternoon_0001_1.jpg 0\n")
    (tmp_path / "list_gallery.txt").write_text("0000/0000_001_09_0302afternoon_0001_1.jpg 0\n")
    assert labels_by_path(tmp_path) == (
        "msmt17",
        {
            "mask_train_v2/0000/0000_000_01_0303morning_0015_0.jpg": ("train/0", 1, "train"),
            "mask_train_v2/0000/0000_001_14_0303noon_0008_0.jpg": ("train/0", 14, "train"),
            "mask_test_v2/0000/0000_000_15_0302afternoon_0001_1.jpg": ("test/0", 15, "query"),
            "mask_test_v2/0000/0000_001_09_0302afternoon_0001_1.jpg": ("test/0", 9, "gallery"),
        },
    )
    (tmp_path / "list_gallery.txt").write_text("0000/0000_001_09_x.jpg 0\n../../secret.jpg 1\n")
    with pytest.raises(DataError, match=r"list_gallery\.txt, line 2: .*leads out"):
        list(read_layout(tmp_path)[1])
    (tmp_path / "list_val.txt").unlink()
    with pytest.raises(DataError, match=r"list_val\.txt is missing"):
        list(read_layout(tmp_path)[1])


def test_cuhk01_maps_images_to_cameras_and_splits_its_identities_in_half(stub, tmp_path):
    stub(tmp_path, *(f"campus/{pid:04d}{image:03d}.png" for pid in (1, 2, 971) for image in range(1, 5)))
    layout, listed = labels_by_path(tmp_path)
    assert layout == "cuhk01"
    assert listed["campus/0001002.png"] == (1, 1, "train") and listed["campus/0001003.png"] == (1, 2, "train")
    assert listed["campus/0002001.png"] == (2, 1, "query") and listed["campus/0971004.png"] == (971, 2, "gallery")
    assert Counter(split for _, _, split in listed.values()) == {"train": 4, "query": 4, "gallery": 4}


def test_viper_whole_and_in_ten_halves(stub, tmp_path):
    people = [f"{pid:03d}" for pid in range(0, 40, 2)]
    stub(tmp_path, *(f"cam_a/{pid}_45.bmp" for pid in people), *(f"cam_b/{pid}_90.bmp" for pid in people))
    layout, whole = labels_by_path(tmp_path)
    assert layout == "viper" and set(whole.values()) == {(pid, c, s) for pid in people for c, s in ((1, "query"), (2, "gallery"))}
    halves = [
        frozenset(path for path, (_, _, split) in labels_by_path(tmp_path, f"viper-{half}")[1].items() if split == "train")
        for half in range(1, 11)
    ]
    assert {len(half) for half in halves} == {20} and len(set(halves)) == 10
    for half in halves:
        assert {path[6:9] for path in half if path.startswith("cam_a")} == {path[6:9] for path in half if path.startswith("cam_b")}


def new_protocol_file(path, names, labels, train, query, gallery):
    from scipy.io import savemat

    filelist = np.empty((len(names), 1), object)
    filelist[:, 0] = names
    indices = {f"{split}_idx": np.array(rows)[:, None] + 1 for split, rows in (("train", train), ("query", query), ("gallery", gallery))}
    savemat(path, {"filelist": filelist, "labels": np.array(labels)[:, None], **indices})


def test_cuhk03_np_extracted(stub, tmp_path):
    names = ["1_001_1_01.png", "1_001_2_06.png", "5_049_1_01.png", "5_049_2_10.png"]
    stub(tmp_path, *(f"images_detected/{name}" for name in names))
    with pytest.raises(DataError, match=r"config_detected\.mat is missing"):
        read_layout(tmp_path)
    new_protocol_file(tmp_path / "cuhk03_new_protocol_config_detected.mat", names, [1, 1, 1467, 1467], [0, 1], [2], [3])
    expected = {
        "images_detected/1_001_1_01.png": (1, 1, "train"),
        "images_detected/1_001_2_06.png": (1, 2, "train"),
        "images_detected/5_049_1_01.png": (1467, 1, "query"),
        "images_detected/5_049_2_10.png": (1467, 2, "gallery"),
    }
    assert labels_by_path(tmp_path) == ("cuhk03-np-detected", expected)
    (tmp_path / "images_labeled").mkdir()
    with pytest.raises(DataError, match="state --layout cuhk03-np-detected or --layout cuhk03-np-labelled"):
        read_layout(tmp_path)
    assert labels_by_path(tmp_path, "cuhk03-np-detected")[1] == expected
    (tmp_path / "cuhk03_new_protocol_config_detected.mat").write_bytes(b"no MATLAB")
    with pytest.raises(DataError, match="not the configuration of CUHK03's new protocol"):
        read_layout(tmp_path, "cuhk03-np-detected")


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("campus/0001005.png", "cuhk01", "not named like CUHK01"),
        ("photos/a.jpg", "cuhk01", "no campus"),
        ("cam_a/x.bmp", "viper", "not named like VIPeR"),
        ("cam_a/000_0.bmp", "viper", "no cam_b"),
        ("a.jpg", "msmt17", "no folder train"),
        ("a.jpg", "market1501", "holds no images"),
        ("a.jpg", "lists", "holds no images"),
        ("a.jpg", "manifest", "0 manifests"),
        ("a.jpg", "pattern", "requires a pattern"),
        ("a.jpg", "cuhk3", "unknown layout 'cuhk3'"),
        ("cuhk-03.mat", None, "pul data extract"),
    ],
)
def test_a_layout_that_does_not_fit_is_rejected(stub, tmp_path, name, layout, message):
    stub(tmp_path, name)
    with pytest.raises(DataError, match=message):
        list(read_layout(tmp_path, layout)[1])


def test_folders_named_like_a_published_data_set_are_plain_folders(stub, tmp_path):
    stub(tmp_path, "campus/monday.jpg", "cam_a/monday.jpg", "cam_b/monday.jpg", "query/a.jpg")
    assert read_layout(tmp_path)[0] == "folder"


WRAPPERS = st.lists(st.sampled_from(["data", "Market-1501-v15.09.15", "a b", "ünï", "archive (1)", "camera", "val", "train"]), max_size=3)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(sorted(KNOWN_SETS)),
    wrappers=WRAPPERS,
    junk=st.sets(st.sampled_from(JUNK)),
    stated=st.booleans(),
    upper=st.booleans(),
)
def test_a_known_set_is_found_up_to_three_folders_deeper(stub, tmp_path_factory, layout, wrappers, junk, stated, upper):
    root = tmp_path_factory.mktemp("set")
    expected = dict(KNOWN_SETS[layout])
    if upper and layout not in ("viper", "cuhk01"):  # folders in another case, as some archives have them
        expected = {re.sub("^[^/]*", lambda match: match[0].title(), path): labels for path, labels in expected.items()}
    folder = "".join(f"{name}/" for name in wrappers)
    stub(root, *(folder + path for path in expected), *(folder + path for path in BESIDE.get(layout, ())), *junk)
    name, found = labels_by_path(root, layout if stated else None)
    assert name == layout and found == {folder + path: labels for path, labels in expected.items()}
    notes = {note for image in read_layout(root)[1] for note in image.notes}
    assert all(layout == "mars" and "no info/query_IDX.mat, so there is no query" in note for note in notes)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts=st.lists(st.sampled_from(sorted(KNOWN_SETS)), min_size=2, max_size=4), depth=st.integers(0, 1))
def test_several_sets_below_a_folder_are_all_named(stub, tmp_path_factory, layouts, depth):
    root = tmp_path_factory.mktemp("sets")
    folders = ["sub/" * depth + f"set{number}/" for number in range(len(layouts))]
    for folder, layout in zip(folders, layouts, strict=True):
        stub(root, *(folder + path for path in KNOWN_SETS[layout]))
    with pytest.raises(DataError, match=f"holds {len(layouts)} data sets: give one of") as error:
        read_layout(root)
    assert all(f"{root / folder} ({layout})" in str(error.value) for folder, layout in zip(folders, layouts, strict=True))


@pytest.mark.parametrize("other", ["crops/a.jpg", "a.jpg", "sub/market/../b.jpg", "sub/other/c/d.png"])
def test_a_set_beside_other_images_is_named(stub, tmp_path, other):
    stub(tmp_path, *(f"sub/market/{path}" for path in KNOWN_SETS["market1501"]), other)
    with pytest.raises(DataError, match=r"holds a data set in \S+/sub/market \(layout market1501\) beside other images such as"):
        read_layout(tmp_path)
    assert read_layout(tmp_path, "market")[0] == "market1501"
    assert read_layout(tmp_path, "folder")[0] == "folder"


UNREAD = {  # sets that have no reader, as distributed, and what the message or a note names
    "PRCC": (["rgb/train/001/A_cropped_rgb001.jpg", "rgb/test/A/002/1.jpg", "sketch/train/001/A_1.jpg", "sketch/test/A/1.jpg"], "rgb/test"),
    "cuhksysu4reid": (["train/s1_1.png", "query/s2_1.png", "gallery/s2_2.png", "combine/s1_1.png"], "query"),
    "CUHK-SYSU": (["Image/SSM/s1.jpg", "annotation/test/train_test/TestG50.mat"], "CUHK-SYSU"),
    "PRID2011": (["single_shot/cam_a/person_0001.png", "multi_shot/cam_a/person_0001/0001.png"], "PRID2011"),
    "PRID2011, single": (["cam_a/person_0001.png", "cam_b/person_0001.png"], "look like cameras"),
    "iLIDS-VID": (["i-LIDS-VID/sequences/cam1/person001/cam1_1.png", "train-test people splits/splits.mat"], "iLIDS-VID"),
    "DukeMTMC-VideoReID": (["train/0001/0001/0001_C6_F1.jpg", "query/2/1/2_C6_F1.jpg", "gallery/2/2/2_C5_F1.jpg"], "gallery, query, train"),
    "SenseReID": (["SenseReID/test_gallery/00000_0.jpg", "SenseReID/test_probe/00000_1.jpg"], "SenseReID/test_probe"),
    "Partial-REID": (["occluded_body_images/001_01.jpg", "whole_body_images/001_06.jpg"], "Partial-REID"),
    "P-DukeMTMC-reID": (["train/occluded_body_images/1/a.jpg", "test/whole_body_images/2/a.jpg"], "test, train"),
    "SYSU-MM01": (["cam1/0001/0001.jpg", "cam6/0001/0001.jpg", "exp/train_id.txt", "exp/test_id.txt"], "exp/test_id.txt"),
    "RegDB": (["Visible/1/v_1.bmp", "Thermal/1/t.bmp", "idx/train_visible_1.txt", "idx/test_visible_1.txt"], "idx/test_visible_1.txt"),
    "LLCM": (["vis/0001/0001_c01.jpg", "nir/0001/0001_c01.jpg", "test_vis/cam1/0002/a.jpg", "idx/train_vis.txt"], "test_vis"),
    "Celeb-reID": (["train/1_1_0.jpg", "query/2_1_0.jpg", "gallery/2_2_0.jpg"], "gallery, query, train"),
    "VC-Clothes": (["train/0001-01-01-01.jpg", "query/0006-01-01-01.jpg", "gallery/0006-02-01-01.jpg"], "gallery, query, train"),
    "RandPerson": (["RandPerson/subset/0000000_s00_c00_f00002.jpg"], "names look like a published set's"),
    "PersonX": (["PersonX/1/bounding_box_train/0001_c1s1_1.jpg", "PersonX/2/bounding_box_train/0001_c1s1_1.jpg"], "PersonX/2"),
    "LaST": (["train/000001/000001_1_0_1.jpg", "val/query/1_1.jpg", "test/query/2_1.jpg", "test/gallery/2_1.jpg"], "test, train, val"),
    "CUHK02": (["P1/cam1/0010010.png", "P1/cam2/0010010.png", "P2/cam1/1.png", "P3/cam1/1.png"], "CUHK02"),
    "one folder of Market-1501": (["0002_c1s1_000451_03.jpg"], "give the folder above"),
    "MARS, unpacked in part": (["bbox_train/0001/1.jpg", "bbox_test/0002/1.jpg"], "bbox_test, bbox_train"),
    "VeRi, renamed": (["image_train/car1/a.jpg", "image_test/car2/b.jpg"], "image_test, image_train"),
}


@pytest.mark.parametrize("above", ["", "unpacked/"])
@pytest.mark.parametrize("name", UNREAD)
def test_a_set_without_a_reader_is_named(stub, tmp_path, name, above):
    names, expected = UNREAD[name]
    stub(tmp_path, *(above + path for path in names))
    try:
        notes = " ".join(note for image in read_layout(tmp_path)[1] for note in image.notes)
    except DataError as error:
        notes = str(error)
    assert expected.replace(", ", f", {above}") in notes or expected in notes


def test_an_annotation_tools_export_has_a_folder_for_each_subset(stub, tmp_path):
    stub(tmp_path, "task/bounding_box_default/0002_c1s1_000000_00.jpg", "task/query/0001_c1s1_000001_00.jpg", "task/images_default.txt")
    layout, listed = labels_by_path(tmp_path)
    assert layout == "market1501"
    assert listed == {
        "task/bounding_box_default/0002_c1s1_000000_00.jpg": (2, 1, "train"),
        "task/query/0001_c1s1_000001_00.jpg": (1, 1, "query"),
    }
    assert [note for image in read_layout(tmp_path)[1] for note in image.notes] == [
        "folder 'bounding_box_default' is read as training images: rename it to bounding_box_test if it is the gallery"
    ]


def test_grid_in_ten_halves_keeps_the_distractors_in_the_gallery(stub, tmp_path):
    stub(tmp_path, *(f"{folder}/{pid:04d}_{c}_1_1_1_1_1.jpeg" for pid in range(1, 21) for c, folder in ((1, "probe"), (2, "gallery"))))
    stub(tmp_path, "gallery/0000_3_1_1_1_1_1.jpeg")
    halves = set()
    for half in range(1, 11):
        _, listed = labels_by_path(tmp_path, f"grid-{half}")
        assert Counter(split for _, _, split in listed.values()) == {"train": 20, "query": 10, "gallery": 11}
        assert listed["gallery/0000_3_1_1_1_1_1.jpeg"] == (0, 3, "gallery")
        halves.add(frozenset(pid for pid, _, split in listed.values() if split == "train"))
    assert len(halves) == 10


def mars_info(folder, tracks, queries):
    """Write MARS's lists of the test tracks, each with its name and number of images, and the numbers of the query tracks from 1."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    names = [f"{track}F{frame:03d}.jpg" for track, frames in tracks for frame in range(1, frames + 1)]
    (folder / "test_name.txt").write_text("\n".join(names) + "\n")
    ends = np.cumsum([frames for _, frames in tracks])
    rows = [[end - frames + 1, end, 1, 1] for (_, frames), end in zip(tracks, ends, strict=True)]
    savemat(folder / "tracks_test_info.mat", {"track_test_info": np.array(rows)})
    savemat(folder / "query_IDX.mat", {"query_IDX": np.array([queries])})
    return names


@pytest.mark.parametrize("place", ["info", "MARS-evaluation/info"])
def test_the_query_tracks_of_mars_come_from_its_lists(stub, tmp_path, place):
    names = mars_info(tmp_path / place, [("00-1C1T0001", 2), ("0000C1T0001", 1), ("0002C1T0001", 3), ("0002C2T0002", 2)], [4])
    stub(tmp_path, *(f"bbox_test/{name[:4]}/{name}" for name in names), "bbox_train/0001/0001C1T0001F001.jpg")
    images = list(read_layout(tmp_path)[1])
    assert Counter((image.pid, image.split) for image in images) == {
        (-1, "gallery"): 2,
        (0, "gallery"): 1,
        (2, "gallery"): 3,
        (2, "query"): 2,
        (1, "train"): 1,
    }
    assert not any(image.notes for image in images)
    (tmp_path / place / "test_name.txt").write_text("0001C1T0001F001.jpg\n")
    with pytest.raises(DataError, match="does not fit tracks_test_info"):
        read_layout(tmp_path)
    (tmp_path / place / "query_IDX.mat").write_bytes(b"no MATLAB")
    with pytest.raises(DataError, match="does not hold the lists of MARS"):
        read_layout(tmp_path)
    (tmp_path / place / "tracks_test_info.mat").unlink()
    with pytest.raises(DataError, match=r"tracks_test_info\.mat is missing"):
        read_layout(tmp_path)


def test_an_archive_beside_nothing_is_named(stub, tmp_path):
    stub(tmp_path, "bbox_train.zip")
    with pytest.raises(DataError, match=r"unpack bbox_train\.zip first"):
        read_layout(tmp_path)
    with pytest.raises(DataError, match="unpack it, and give the folder"):
        read_layout(tmp_path / "bbox_train.zip")


@pytest.mark.parametrize(
    ("folder", "split", "noted"),
    [
        ("query", "query", False),
        ("probe", "query", False),
        ("Queries", "query", False),
        ("val", None, True),
        ("test_query_2", None, True),
        ("multi_query", None, False),
        ("gt_bbox", None, False),
        ("pytorch", None, False),
    ],
)
def test_folders_beside_those_of_market1501(stub, tmp_path, folder, split, noted):
    stub(tmp_path, "bounding_box_train/0002_c1s1_000451_03.jpg", f"{folder}/0001_c1s1_001051_00.jpg")
    images = list(read_layout(tmp_path)[1])
    assert [image.split for image in images if image.path.startswith(folder)] == [split] * bool(split)
    assert [folder in note for image in images for note in image.notes] == [True] * noted


DOCUMENTED_SETS = {  # the layout of each tree in docs/data.md, and its (split, identity, camera); trees of MATLAB files are tested above
    "market1501": ("market1501", [("gallery", -1, 1), ("query", 1, 1), ("train", 2, 1)]),
    "VeRi": ("veri776", [("gallery", 2, 3), ("query", 2, 2), ("train", 1, 1)]),
    "LTCC_ReID": ("ltcc", [("gallery", "002", 6), ("query", "002", 5), ("train", "001", 5)]),
    "MARS": ("mars", [("gallery", -1, 1), ("gallery", 0, 1), ("train", 1, 1)]),  # its lists are MATLAB files: no query
    "underground_reid": ("grid", [("gallery", 0, 1), ("gallery", 1, 2), ("query", 1, 1)]),
    "cuhk01": ("cuhk01", [("gallery", 1, 2), ("query", 1, 1), ("query", 1, 1)]),
    "MSMT17_V1": ("msmt17", [("query", "test/0", 14), ("train", "train/0", 1)]),
    "VIPeR": ("viper", [("gallery", "000", 2), ("query", "000", 1)]),
    "mine": ("lists", [("query", None, None), ("train", "0", None)]),
}
MSMT17_LINES = {
    "list_train.txt": "0000/0000_000_01_0303morning_0015_0.jpg 0",
    "list_query.txt": "0000/0000_000_14_0302afternoon_0001_1.jpg 0",
}


def documented_trees():
    """Return the lines of each tree in the part of docs/data.md about published sets, by the name of its folder."""
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8").split("## Published sets")[1]
    trees = [block.strip().splitlines() for block in page.split("```")[1::2]]
    return {tree[0].rstrip("/"): [line.strip() for line in tree[1:] if line.startswith("  ")] for tree in trees}


def test_every_documented_tree_is_tested():
    assert documented_trees().keys() - {"cuhk03"} == DOCUMENTED_SETS.keys()


@pytest.mark.parametrize("name", DOCUMENTED_SETS)
def test_the_documented_trees_are_read(stub, tmp_path, name):
    layout, expected = DOCUMENTED_SETS[name]
    for line in documented_trees()[name]:
        path, _, text = line.partition(" ")
        if path.endswith((".list", ".txt,")):  # the line of a list, or MSMT17's lists
            files = {path: text.strip()} if path.endswith(".list") else dict.fromkeys(line.split(", "), "") | MSMT17_LINES
            for file, content in files.items():
                (tmp_path / file).write_text(f"{content}\n")
        elif not path.endswith(".mat,"):
            stub(tmp_path, path)
    found, images = read_layout(tmp_path)
    assert found == layout
    assert sorted(((image.split, image.pid, image.camid) for image in images), key=str) == expected
