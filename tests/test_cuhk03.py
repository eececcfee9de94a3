"""CUHK03's MATLAB file: a small handmade file with MATLAB 7.3's structure is extracted into images and manifests."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from deployments.data_cli import data_app
from pul_core.errors import DataError
from tasks.data.cuhk03 import extract_cuhk03
from tasks.data.layouts import read_layout

h5py = pytest.importorskip("h5py")


def pixels(pair, person, image):
    return np.random.default_rng((pair, person, image)).integers(0, 256, (9, 4, 3), np.uint8)


def write_mat(path):
    """Write two camera pairs with 3 and 2 people, 2 + 1 images each, and two test sets; person 2 of pair 1 has no image 10."""
    with h5py.File(path, "w") as file:

        def cells(name, array):  # a MATLAB cell array: references, transposed
            refs = np.empty(array.shape, h5py.ref_dtype)
            for position, value in np.ndenumerate(array):
                refs[position] = file.create_dataset(f"#refs#/{name}-{'-'.join(map(str, position))}", data=value).ref
            return refs.T

        for boxes in ("detected", "labeled"):
            pairs = np.empty((2, 1), object)
            for pair, people in enumerate((3, 2), 1):
                images = np.empty((people, 10), object)
                for (person, image), _ in np.ndenumerate(images):
                    exists = image in (0, 4) or (image == 9 and (pair, person) != (1, 1))
                    images[person, image] = pixels(pair, person + 1, image + 1).T if exists else np.zeros(2, np.uint64)
                pairs[pair - 1, 0] = cells(f"{boxes}{pair}", images)
            file.create_dataset(boxes, data=cells(boxes, pairs))
        tests = np.empty((2, 1), object)
        tests[0, 0], tests[1, 0] = np.array([[1.0, 1.0], [2.0, 2.0]]).T, np.array([[1.0, 2.0], [1.0, 3.0]]).T
        file.create_dataset("testsets", data=cells("testsets", tests))
    return path


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    from scipy.io import savemat

    root = tmp_path_factory.mktemp("cuhk03")
    (root / "cuhk03_release").mkdir()
    filelist = np.empty((3, 1), object)
    filelist[:, 0] = ["1_001_1_01.png", "2_001_1_01.png", "2_001_2_10.png"]
    split = {"train_idx": [[1]], "query_idx": [[2]], "gallery_idx": [[3]]}
    savemat(root / "cuhk03_new_protocol_config_detected.mat", {"filelist": filelist, "labels": [[1], [844], [844]], **split})
    mat = write_mat(root / "cuhk03_release" / "cuhk-03.mat")
    done = CliRunner().invoke(data_app, ["extract", str(mat), "--out", str(root / "out")])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "5 manifests" in done.output
    return root / "out"


def test_every_image_equals_the_one_in_the_file(extracted):
    for boxes in ("detected", "labeled"):
        names = {path.name for path in (extracted / f"images_{boxes}").iterdir()}
        people = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]
        shots = [(pair, person, image) for pair, person in people for image in (1, 5, 10) if (pair, person, image) != (1, 2, 10)]
        assert names == {f"{pair}_{person:03d}_{1 if image < 6 else 2}_{image:02d}.png" for pair, person, image in shots}
        for pair, person, image in shots:
            with Image.open(extracted / f"images_{boxes}" / f"{pair}_{person:03d}_{1 if image < 6 else 2}_{image:02d}.png") as picture:
                np.testing.assert_array_equal(np.asarray(picture), pixels(pair, person, image))


def test_the_manifests_of_both_protocols(extracted):
    first = {image.path: (image.pid, image.camid, image.split) for image in read_layout(extracted / "labelled-old-01.parquet")[1]}
    assert first["images_labeled/1_001_1_05.png"] == ("1_001", "1", "query")
    assert first["images_labeled/2_002_2_10.png"] == ("2_002", "2", "gallery")
    assert first["images_labeled/1_002_1_01.png"] == ("1_002", "1", "train")
    assert {pid for pid, _, split in first.values() if split != "train"} == {"1_001", "2_002"}
    second = read_layout(extracted / "detected-old-02.parquet")[1]
    assert {image.pid for image in second if image.split != "train"} == {"1_002", "1_003"}
    new = {image.path: (image.pid, image.camid, image.split) for image in read_layout(extracted / "detected-new.parquet")[1]}
    assert new == {
        "images_detected/1_001_1_01.png": ("1", "1", "train"),
        "images_detected/2_001_1_01.png": ("844", "1", "query"),
        "images_detected/2_001_2_10.png": ("844", "2", "gallery"),
    }


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" * 100])
def test_another_file_is_rejected_and_leaves_nothing_behind(tmp_path, content):
    (tmp_path / "cuhk-03.mat").write_bytes(content)
    with pytest.raises(DataError, match="is not CUHK03's"):
        extract_cuhk03(tmp_path / "cuhk-03.mat", tmp_path / "out")
    with pytest.raises(DataError, match="pul data extract"):
        read_layout(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cuhk-03.mat"]
