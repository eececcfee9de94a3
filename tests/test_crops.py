"""Crops from video: boxes compared with a pixel-by-pixel oracle, complete folders or none, and error messages for invalid sequences."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from deployments.data_cli import data_app
from pul_core.errors import DataError
from tasks.data.boxes import FILTERS, read_boxes
from tasks.data.crops import Box, clip, crop_sequences
from tasks.data.layouts import read_layout

INFO = "[Sequence]\nname=../../x\nimDir=img1\nframeRate=25\nseqLength=6\nimExt=.jpg\n"
DET = [
    "1,-1,11,21,30,70,0.9,-1,-1,-1",
    "1, -1, 100.4, 5.2, 30.0, 90.0, 0.4, -1, -1, -1",
    "4,-1,-9,61,40,400,0.5,-1,-1,-1",
    "4,-1,5,5,20,10,1,-1,-1,-1",
]
GT = ["1,7,11,21,30,70,1,1,1", "2,7,12,21,30,70,1,1,0.5", "2,8,60,21,30,70,0,1,1", "3,9,60,21,30,70,1,3,1"]


@pytest.fixture
def sequence(tmp_path):
    """A function that writes a sequence of 6 frames, 160 x 120, whose pixels encode frame, row and column."""

    def write(name="north door", *, det=DET, gt=None, info=INFO, suffix=".png"):
        folder = tmp_path / name
        (folder / "img1").mkdir(parents=True)
        rows, columns = np.mgrid[:120, :160]
        for frame in range(1, 7):
            pixels = np.stack((np.full_like(rows, 40 * frame), rows, columns), axis=2).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "img1" / f"{frame:06d}{suffix}")
        for kind, lines in (("det", det), ("gt", gt)):
            if lines is not None:
                (folder / kind).mkdir()
                (folder / kind / f"{kind}.txt").write_text("\n".join(lines) + "\n")
        if info:
            (folder / "seqinfo.ini").write_text(info)
        return folder

    return write


def rows(out):
    return pq.read_table(out / "manifest.parquet").to_pylist()


def test_detected_boxes_become_crops_with_camera_and_time(sequence, tmp_path):
    done = crop_sequences([sequence()], tmp_path / "out", min_height=40)
    assert (done.frames, done.boxes, done.crops, done.removed, done.notes) == (2, 4, 2, {"too_small": 1, "unsure": 1}, [])
    first, second = rows(tmp_path / "out")
    assert (first["identity"], first["camera"], first["timestamp"], first["confidence"]) == (None, "north door", 1 / 25, 0.9)
    assert first["box"] == [10, 20, 30, 70] and second["box"] == [0, 60, 30, 60], "clipped to the frame"
    for row in (first, second):
        left, top, width, height = row["box"]
        with Image.open(tmp_path / "out" / row["path"]) as crop:
            pixels = np.asarray(crop).astype(int)
        assert pixels.shape == (height, width, 3)
        expected = np.stack(np.broadcast_arrays(40 * row["frame"], np.arange(top, top + height)[:, None], np.arange(left, left + width)), 2)
        assert np.abs(pixels - expected).mean() < 6, "the crop comes from this position in this frame, up to JPEG compression"
    layout, listed = read_layout(tmp_path / "out")
    assert layout == "manifest"
    assert [(image.path, image.pid, image.camid, image.timestamp) for image in listed] == [
        (row["path"], None, "north door", row["timestamp"]) for row in (first, second)
    ]


def test_ground_truth_has_identities_per_sequence_and_skips_marked_boxes(sequence, tmp_path):
    folders = [sequence("a", gt=GT), sequence("b", gt=GT, info=None)]
    crop_sequences(folders, tmp_path / "out", boxes="gt")
    records = [(row["identity"], row["camera"], row["frame"], row["timestamp"]) for row in rows(tmp_path / "out")]
    assert records == [("a/7", "a", 1, 0.04), ("a/7", "a", 2, 0.08), ("b/7", "b", 1, None), ("b/7", "b", 2, None)]
    assert {image.pid for image in read_layout(tmp_path / "out")[1]} == {"a/7", "b/7"}


def test_every_nth_frame(sequence, tmp_path):
    crop_sequences([sequence(det=[f"{frame},-1,1,1,50,80,1" for frame in range(1, 7)])], tmp_path / "out", every=3)
    assert [row["frame"] for row in rows(tmp_path / "out")] == [1, 4]


NUMBERS = st.floats(-300, 300, allow_subnormal=False)


@given(left=NUMBERS, top=NUMBERS, width=NUMBERS, height=NUMBERS)
def test_a_clipped_box_contains_the_pixels_inside_the_box(left, top, width, height):
    x0, y0, x1, y1 = clip(Box(1, 1, left, top, width, height, 1.0), 64, 48)
    assert 0 <= x0 <= x1 <= 64 and 0 <= y0 <= y1 <= 48
    for begin, size, first, last, most in ((left - 1, width, x0, x1, 64), (top - 1, height, y0, y1, 48)):
        inside = [pixel for pixel in range(most) if begin <= pixel and pixel + 1 <= begin + size]
        assert all(first <= pixel < last for pixel in inside)
        assert last - first <= max(len(inside) + 2, 0), "rounding adds at most two pixels"


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"det": None}, {}, "no det/det.txt and no gt/gt.txt"),
        ({}, {"boxes": "gt"}, "no gt/gt.txt"),
        ({"det": ["1,-1,a,1,1,1,1"]}, {}, r"det\.txt is not a file of boxes"),
        ({"det": ["1,-1,1,1,50,80,1", "1,2"]}, {}, r"det\.txt is not a file of boxes"),
        ({"det": ["1,-1,1,1"]}, {}, "has 4 columns"),
        ({"det": ["0,0.5,0.5,0.2,0.6"]}, {}, "has 5 columns .YOLO"),
        ({"det": ["1,1,0.5,0.5,0.2,0.4,1"]}, {}, "in shares of the frame"),
        ({"det": ["1,1,100,20,150,110,1", "2,1,90,20,140,110,1"]}, {}, "look like two corners"),
        ({"det": ["frame,id,x1,y1,x2,y2,conf", "1,1,10,20,50,100,1"]}, {}, "has the columns frame,id,x1"),
        ({"det": ["1,1,500,400,150,310,1"]}, {}, "beyond the frame of 160 x 120"),
        ({"det": ["1,-1,1,1,50,80,1,3,-1"]}, {}, "1 have another class than person"),
        ({"det": ["1,,1,1,50,80,1"]}, {}, "is not a file of boxes"),
        ({"det": ["1,-1,1,1,50,80,1", "1,-1,nan,1,50,80,1"]}, {}, "line 2: frame numbers"),
        ({"det": ["-1,-1,1,1,50,80,1"]}, {}, "line 1: frame numbers"),
        ({"det": ["1.5,-1,1,1,50,80,1"]}, {}, "line 1: frame numbers"),
        ({"det": ["9,-1,1,1,50,80,1"]}, {}, "boxes in frame 9"),
        ({"det": []}, {}, "none of the 0 boxes"),
        ({"det": DET}, {"min_confidence": 2.0}, "4 have a confidence below --min-confidence: lower --min-confidence"),
        (
            {"det": DET},
            {"min_height": 119},
            "none of the 4 boxes.*1 have a confidence below.*3 are lower than --min-height: lower --min-height",
        ),
        ({"info": "frameRate=25"}, {}, "no section"),
        ({"info": "[Sequence]\nframeRate=0\n"}, {}, "frameRate must be above 0"),
        ({"info": "[Sequence]\nframeRate=25\nimDir=..\n"}, {}, "imDir must be a plain folder name"),
        ({"info": "[Sequence]\nframeRate=25\nimDir=frames\n"}, {}, "no folder frames"),
    ],
)
def test_an_invalid_sequence_is_rejected_and_leaves_nothing_behind(sequence, tmp_path, changes, options, message):
    folder = sequence(**changes)
    with pytest.raises(DataError, match=message):
        crop_sequences([folder], tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_broken_frame_leaves_nothing_behind(sequence, tmp_path):
    folder = sequence()
    (folder / "img1" / "000004.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"000004\.png cannot be decoded"):
        crop_sequences([folder], tmp_path / "out", min_height=1)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_equal_camera_names_and_an_existing_output_folder_are_rejected(sequence, tmp_path):
    folder = sequence()
    with pytest.raises(DataError, match="the same name"):
        crop_sequences([folder, folder], tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="already exists"):
        crop_sequences([folder], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command(sequence, tmp_path):
    options = ["--out", str(tmp_path / "out"), "--min-height", "40", "--min-confidence", "0.3", "--every", "3"]
    done = CliRunner().invoke(data_app, ["crop", str(sequence("a")), str(sequence("b")), *options])
    assert done.exit_code == 0, done.output
    assert "6 crops from 4 frames; of 8 boxes 2 are lower than --min-height" in done.output
    assert isinstance(CliRunner().invoke(data_app, ["crop", str(tmp_path / "a"), "--out", "x", "--boxes", "hand"]).exception, ValueError)


PEOPLE = [(frame, person, 11 + 50 * person, 21, 32, 80) for frame in range(1, 5) for person in (1, 2)]


def lines_of(*rest, separator=",", first=1):
    return [separator.join(map(str, (frame + first - 1, *box, *rest))) for frame, *box in PEOPLE]


@pytest.mark.parametrize(
    ("kind", "lines", "note"),
    [
        ("det", lines_of(-1, -1, -1, -1, separator=" "), "states no confidence"),
        ("det", lines_of(0.9, separator="\t"), ""),
        ("det", lines_of(0.9, -1, -1, -1, separator=", "), ""),
        ("det", lines_of(0.9, separator=";"), ""),
        ("det", [line.replace(".", ",") for line in lines_of(0.9, separator=";")], ""),
        ("det", [f"{line}," for line in lines_of(0.9)], ""),
        ("det", ["\ufeff" + lines_of(0.9)[0], *lines_of(0.9)[1:]], ""),
        ("det", ["frame,id,bb_left,bb_top,bb_width,bb_height,conf", *lines_of(0.9)], ""),
        ("det", ["# frame id left top width height", *lines_of(separator=" ")], "states no confidence"),
        ("det", lines_of(), "states no confidence"),
        ("det", lines_of("nan"), "states no confidence"),
        ("det", lines_of(0), "confidence of all boxes is 0"),
        ("det", lines_of(87.0), "up to 87 are read as percent"),
        ("det", lines_of("2.3e0"), "from 2.3 to 2.3 are no shares"),
        ("det", lines_of(0.9, 0, -1), "a person is class 0"),
        ("gt", lines_of(0.87, 0), "a person is class 0"),
        ("gt", lines_of(0, 0, -1), "column 7 is 0 for all boxes"),
        ("gt", lines_of(1, 1, 0.4), ""),
        ("gt", lines_of(1, -14.069, 4.9, 0), ""),
        ("gt", lines_of(-1, -1, -1, -1), ""),
        ("gt", lines_of(), ""),
        ("det", lines_of(0.9, first=0), "they are taken to be the same"),
    ],
)
def test_the_files_of_common_trackers_give_the_same_crops(sequence, tmp_path, kind, lines, note):
    folder = sequence(det=lines if kind == "det" else None, gt=lines if kind == "gt" else None)
    done = crop_sequences([folder], tmp_path / "out")
    assert (done.crops, done.frames, done.removed) == (8, 4, {})
    assert [(row["box"], row["identity"]) for row in rows(tmp_path / "out")] == [
        ([box[1] - 1, 20, min(32, 160 - box[1] + 1), 80], f"north door/{box[0]}" if kind == "gt" else None) for _, *box in PEOPLE
    ]
    assert note in "; ".join(done.notes) and bool(note) == bool(done.notes)


def test_images_that_count_from_0_are_matched_with_boxes_that_count_from_1(sequence, tmp_path):
    folder = sequence(det=[f"{frame},-1,1,1,50,80,1" for frame in range(1, 7)])
    for frame in range(1, 7):
        (folder / "img1" / f"{frame:06d}.png").rename(folder / "img1" / f"{frame - 1:06d}.png")
    done = crop_sequences([folder], tmp_path / "out")
    assert done.crops == 6 and "they are taken to be the same" in done.notes[0]
    with Image.open(tmp_path / "out" / rows(tmp_path / "out")[0]["path"]) as crop:
        assert abs(np.asarray(crop)[..., 0].mean() - 40) < 6, "the pixels are those of the first frame"


@given(
    st.lists(st.sampled_from([*FILTERS, "used"]), min_size=1, max_size=20),
)
def test_every_box_is_a_crop_or_counted_under_one_filter(tmp_path_factory, fates):
    folder, out = tmp_path_factory.mktemp("s") / "cam", tmp_path_factory.mktemp("o") / "out"
    (folder / "img1").mkdir(parents=True)
    for frame in range(1, 4):
        Image.new("RGB", (160, 120)).save(folder / "img1" / f"{frame}.png")
    (folder / "img1" / "._1.png").write_bytes(b"a Mac's")
    usual = {"frame": 1, "left": 60, "top": 1, "height": 100, "flag": 1, "class": 1}
    changes = {
        "skipped": {"frame": 2},
        "ignored": {"flag": 0},
        "other_class": {"class": 3},
        "no_image": {"frame": 9},
        "outside": {"left": -100},
        "too_small": {"height": 20},
    }
    fates = [fate for fate in fates if fate != "unsure"] + ["used"] * 30
    boxes = [usual | changes.get(fate, {}) for fate in fates]
    text = "".join("{frame},7,{left},{top},40,{height},{flag},{class},1\n".format(**box) for box in boxes)
    (folder / "gt.txt").write_text(text)
    done = crop_sequences([folder], out, every=2)
    assert done.boxes == len(fates) and done.crops == fates.count("used")
    assert done.removed == {fate: fates.count(fate) for fate in set(fates) - {"used"}}


@pytest.mark.parametrize(
    ("info", "timestamp"),
    [
        ("[sequence]\nimdir=img1\nframerate=5\n", 0.2),
        ("\ufeff[Sequence]\nimDir=img1\nimExt=.jpg\n", None),
        ("[Sequence]\nframeRate=29.97\n", 1 / 29.97),
        ("[Sequence]\nframeRate=30000/1001\n", 1001 / 30000),
    ],
)
def test_seqinfo_in_other_forms(sequence, tmp_path, info, timestamp):
    crop_sequences([sequence(info=info)], tmp_path / "out", min_height=40)
    assert rows(tmp_path / "out")[0]["timestamp"] == timestamp


def test_frames_beside_the_boxes_elsewhere_and_twice(sequence, tmp_path):
    folder = sequence(info=None)
    for path in sorted((folder / "img1").iterdir()):
        path.rename(folder / path.name)
    (folder / "img1").rmdir()
    assert crop_sequences([folder], tmp_path / "out", min_height=40).crops == 2
    Image.new("RGB", (160, 120)).save(folder / "1.jpg")
    with pytest.raises(DataError, match="are both frame 1"):
        crop_sequences([folder], tmp_path / "again", min_height=40)
    other = sequence("other", info=None)
    (other / "img1").rename(other / "pictures")
    with pytest.raises(DataError, match="state imDir=pictures"):
        crop_sequences([other], tmp_path / "again", min_height=40)


@pytest.mark.parametrize(
    ("titles", "is_read"),
    [
        ("frame,id,x,y,w,h,conf", True),
        ("Frame;Track ID;BB Left;BB Top;BB Width;BB Height;Score", True),
        ("frame_id,object,left,top,width,height,something", True),
        ("frame\tidentity\txmin\tymin\twidth\theight\tconfidence", True),
        ("#frame,track_id,bb_left,bb_top,bb_width,bb_height,conf", True),
        ("frame,x,y,w,h,id,conf", False),
        ("frame,track,width,height,left,top,conf", False),
        ("frame,id,y,x,w,h,conf", False),
        ("frame,id,conf,x,y,w,h", False),
        ("frame,id,x,y,h,w,conf", False),
        ("frame,id,cx,cy,w,h,conf", False),
        ("frame,id,x_center,y_center,w,h,conf", False),
        ("frame,id,x1,y1,x2,y2,conf", False),
        ("id,frame,x,y,w,h,conf", False),
    ],
)
def test_titles_in_another_order_are_refused(tmp_path, titles, is_read):
    file = tmp_path / "det.txt"
    separator = next(character for character in ";\t," if character in titles)
    file.write_text(f"{titles}\n{separator.join(['1', '7', '10', '20', '50', '120', '0.9'])}\n")
    if is_read:
        assert read_boxes(file, min_confidence=0.5).values.tolist() == [[1, 7, 10, 20, 50, 120, 0.9]]
        return
    with pytest.raises(DataError, match="in this order, with the width and height") as error:
        read_boxes(file, min_confidence=0.5)
    assert str(error.value).count("det.txt") == 1


def test_frames_without_numbers_are_named(sequence, tmp_path):
    folder = sequence()
    for path in sorted((folder / "img1").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_a"))
    with pytest.raises(DataError, match="has no image whose name ends in the number of its frame"):
        crop_sequences([folder], tmp_path / "out")
