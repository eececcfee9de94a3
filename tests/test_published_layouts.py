"""Readers of published data sets: published counts on empty files named as in the authors' lists; other layouts on small folders."""

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from pul_core.errors import DataError
from tasks.data.layouts import read_layout

LISTS = Path(os.environ.get("PUL_SHARED", Path(__file__).parent.parent.parent / "shared")) / "data" / "lists"
FOLDERS = {"train.list": "bounding_box_train", "query.list": "query", "test.list": "bounding_box_test"}


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
    with pytest.raises(DataError, match="state the layout, cuhk03-np-detected or cuhk03-np-labelled"):
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
