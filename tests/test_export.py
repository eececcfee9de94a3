"""Exports: files by camera and format, the parity gate, INT8, what is refused, and features of folders, in the real runtimes."""

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pul_core.errors import DataError, UserError
from pul_core.learning.backbone import architecture, build_backbone
from pul_core.learning.camera_statistics import BackboneOnCamera
from pul_core.learning.camera_statistics import estimate_statistics as camera_statistics
from pul_core.learning.deployed import DeployedModel, with_statistics
from pul_core.learning.extraction import extract_features
from pul_core.scoring.parity import EXACT, compare_features, draw_people, exceeded
from pul_core.settings import Statistics
from tasks.decode import decode_crop
from tasks.engine import progress
from tasks.export import export_run, gate, timing
from tasks.export.by_camera import file_names
from tasks.export.embed import embed_folder
from tasks.export.embedder import open_model
from tasks.export.export_run import export_model
from tasks.export.options import Options
from tasks.export.run_model import RunModel
from tasks.export.runtime import open_runtime
from tasks.index import index
from tasks.models import import_model
from tasks.statistics import estimate_statistics
from tasks.store.artifacts import locate, read_table
from tasks.store.licences import Licence, licence_in
from tasks.store.model_file import ModelConfig, read_model, write_model
from tasks.store.statistics_file import statistics_from
from tasks.store.weights_file import read_metadata

PEERS = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
LICENCE = Licence(weights="MIT", source_data="CC-BY-NC-4.0")
SETTINGS = Statistics(by_camera=True, images_per_camera=12, min_images=8)


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    """Time three batches of each size, and not for a second."""
    monkeypatch.setattr(timing, "SECONDS", 0)


@pytest.fixture
def run_model(home, model, tiny_pair, tmp_path):
    """A function that returns what is exported of a run on the tiny target: the tiny model, with statistics by camera or without."""

    def make(statistics=None, model=model):
        target = index.fn(str(tiny_pair[1]), "target")
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        for name, artifact in (("images", target.images), ("labels", target.labels)):
            (folder / f"{name}.parquet").unlink(missing_ok=True)
            (folder / f"{name}.parquet").symlink_to(locate(artifact))
        backbone, config = read_model(model)
        return RunModel(
            "run", folder, 1, backbone.eval(), config, statistics, SETTINGS, str(tiny_pair[1]), False, LICENCE, {"title": "tiny"}
        )

    return make


@pytest.fixture
def statistics(model, pixels, tiny_pair, compute):
    target = index.fn(str(tiny_pair[1]), "target")
    artifact = estimate_statistics.fn(model, pixels, target.images, settings=SETTINGS, seed=3, compute=compute, iteration=0)
    return statistics_from(read_table(artifact))


@pytest.fixture
def crops(tiny_pair):
    """Images (5, 64, 32, 3) of camera 2 of the tiny target, and their paths."""
    paths = sorted((tiny_pair[1] / "bounding_box_train").glob("*_c2s1_*"))[:5]
    return np.stack([decode_crop(path.read_bytes(), 64, 32) for path in paths]), paths


@pytest.fixture
def trunk(home):
    """A model with every switch of the trunk and mirror images, whose BatchNorm statistics are not the initial ones."""
    config = ModelConfig(backbone="test_resnet", height=64, width=32, pool="gem", last_stride=1, neck=True, flip=True)
    backbone = build_backbone(**architecture(config), seed=1).train()
    with torch.no_grad():
        for seed in range(3):
            backbone(torch.randn(8, 3, 64, 32, generator=torch.Generator().manual_seed(seed)))
    return write_model(backbone, config)


def torch_features(backbone, images, *, flip=False, l2=False):
    features = np.concatenate(list(extract_features(backbone, images, flip=flip)))
    return features / np.linalg.norm(features, axis=1, keepdims=True) if l2 else features


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_the_graph_gives_the_features_of_extraction(model, crops, flip, l2):
    backbone, _ = read_model(model)
    deployed = DeployedModel(backbone, preprocess=True, flip=flip, l2=l2).eval()
    with torch.inference_mode():
        features = deployed(torch.from_numpy(crops[0])).numpy()
    np.testing.assert_allclose(features, torch_features(backbone, crops[0], flip=flip, l2=l2), rtol=1e-4, atol=1e-5)


def test_weights_state_trunk_mirror_images_and_licences_and_are_loaded_with_them(run_model, trunk, crops, tmp_path):
    """Exported weights, and the same file imported as a model, give the features of extraction; timm alone refuses them."""
    manifest = export_model(run_model(model=trunk), Options("safetensors", threads=1), tmp_path / "exported")
    file = tmp_path / "exported" / "model.safetensors"
    settings = {"pool": "gem", "last_stride": 1, "neck": True, "flip": True}
    stated = json.loads(read_metadata(file)["pul"])
    assert settings.items() <= stated.items() and settings.items() <= manifest["files"][0].items()
    assert licence_in(read_metadata(file)) == LICENCE
    backbone, _ = read_model(trunk)
    expected = torch_features(backbone, crops[0], flip=True)
    assert not np.allclose(torch_features(backbone, crops[0]), expected, rtol=1e-2), "mirror images matter"
    np.testing.assert_allclose(open_runtime(file, threads=1).features(crops[0]), expected, rtol=1e-4, atol=1e-5)
    imported, config = read_model(import_model.fn(str(file)))
    assert settings.items() <= config.model_dump().items()
    np.testing.assert_allclose(torch_features(imported, crops[0], flip=config.flip), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"bn_neck\.weight"):
        timm.create_model("test_resnet", num_classes=0).load_state_dict(load_file(file))


def test_a_model_file_is_embedded_with_its_mirror_images(trunk, crops):
    embedder = open_model(str(locate(trunk)), device="cpu", threads=1)
    expected = torch_features(read_model(trunk)[0], crops[0], flip=True)
    np.testing.assert_allclose(embedder.features(crops[0], [None] * 5), expected, rtol=1e-4, atol=1e-5)


def test_a_model_with_the_statistics_of_a_camera_is_that_of_extraction_and_leaves_the_original(model, statistics, crops):
    backbone, _ = read_model(model)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    for entry in range(3):
        expected = torch_features(BackboneOnCamera(backbone, statistics, entry).eval(), crops[0])
        np.testing.assert_allclose(torch_features(with_statistics(backbone, statistics, entry), crops[0]), expected, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_differences_are_those_of_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(7, 5)).astype(np.float32)
    features = reference + rng.normal(0, 0.01, (7, 5)).astype(np.float32)

    def cosine(values, i, j):
        return values[i] @ values[j] / np.linalg.norm(values[i]) / np.linalg.norm(values[j])

    largest = max(abs(cosine(features, i, j) - cosine(reference, i, j)) for i in range(7) for j in range(7))
    difference = compare_features(reference, features)
    assert difference.cosine == pytest.approx(largest, rel=1e-4)
    assert difference.feature == pytest.approx(np.abs(features - reference).max() / np.abs(reference).max())
    broken = np.where(np.arange(7)[:, None] == 3, np.nan, features)
    assert len(exceeded(compare_features(reference, broken), None, EXACT)) == 2, "NaN does not pass"


def test_drawn_people_are_whole_and_can_all_be_scored():
    rng = np.random.default_rng(1)
    query, gallery = rng.integers(1, 30, 40), np.concatenate([rng.integers(0, 40, 200), [-1] * 20])
    for limit in (1, 30, 1000):
        at_query, at_gallery = draw_people(query, gallery, limit, seed=limit)
        drawn = set(query[at_query])
        assert drawn == set(gallery[at_gallery]) and not drawn & {0, -1} and len(drawn)
        assert len(at_query) == np.isin(query, list(drawn)).sum() and len(at_gallery) == np.isin(gallery, list(drawn)).sum()
        assert len(at_query) + len(at_gallery) <= limit or len(drawn) == 1


def test_each_camera_has_a_file_that_timm_loads(run_model, statistics, crops, tmp_path):
    out = tmp_path / "exported"
    manifest = export_model(run_model(statistics), Options("safetensors", threads=1), out)
    names = [file["file"] for file in manifest["files"]]
    assert names == ["model-camera-1.safetensors", "model-camera-2.safetensors", "model-other-cameras.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "export.json"])
    assert len(manifest["reports"]["float32"]["rank_1"]) == 2 and manifest["rank_1_images"] == [5, 10]
    backbone = timm.create_model("test_resnet", num_classes=0)
    backbone.load_state_dict(load_file(out / "model-camera-2.safetensors"))
    expected = torch_features(BackboneOnCamera(run_model().backbone, statistics, 1).eval(), crops[0])
    np.testing.assert_allclose(torch_features(backbone.eval(), crops[0]), expected, rtol=1e-5)


@pytest.mark.parametrize("format", ["safetensors", "onnx"])
def test_whitened_features_are_exported(run_model, model, pixels, tiny_pair, compute, crops, tmp_path, format):
    """A safetensors file holds the whitening as a linear layer, which timm does not know, and is no model to start from."""
    target = index.fn(str(tiny_pair[1]), "target")
    settings = replace(SETTINGS, whitening=0.5)
    artifact = estimate_statistics.fn(model, pixels, target.images, settings=settings, seed=3, compute=compute, iteration=0)
    statistics = statistics_from(read_table(artifact))
    manifest = export_model(run_model(statistics), Options(format, threads=1), tmp_path / "exported")
    assert all(file["whitened"] for file in manifest["files"])
    on_camera = BackboneOnCamera(run_model().backbone, statistics, 1).eval()
    expected = torch_features(on_camera, crops[0])
    plain = torch_features(BackboneOnCamera(run_model().backbone, replace(statistics, whitening=None), 1).eval(), crops[0])
    embedded = open_model(str(tmp_path / "exported"), threads=1).features(crops[0], ["2"] * 5)
    np.testing.assert_allclose(embedded, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    if format == "safetensors":
        file = tmp_path / "exported" / "model-camera-2.safetensors"
        state = load_file(file)
        weight, bias = (state.pop(f"whitening.{name}").numpy() for name in ("weight", "bias"))
        timm.create_model("test_resnet", num_classes=0).load_state_dict(state)
        np.testing.assert_allclose(plain @ weight.T + bias, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        with pytest.raises(DataError, match=r"model-camera-2\.safetensors is an export whose features are whitened"):
            import_model.fn(str(file))


def test_statistics_without_cameras_are_exported_as_one_file(run_model, statistics, crops, tmp_path):
    """A run with style groups has statistics of all images only."""
    pooled = replace(statistics, camids=np.array([-3, -2])).of_cameras()
    export_model(run_model(pooled), Options("safetensors", threads=1), tmp_path / "exported")
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"model.safetensors", "export.json"}
    expected = torch_features(BackboneOnCamera(run_model().backbone, statistics, 2).eval(), crops[0])
    embedded = open_model(str(tmp_path / "exported"), threads=1).features(crops[0], ["2"] * 5)
    np.testing.assert_allclose(embedded, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@given(st.lists(st.text() | st.sampled_from(["1", "camera-1", "Camera_1", "camera-1-2", "camera", "other-cameras", "/"]), unique=True))
def test_every_camera_has_a_file_name_of_its_own_that_is_safe(cameras):
    names = file_names(dict(enumerate(cameras, 1)))
    assert list(names) == [*cameras, None] and names[None] == "model-other-cameras"
    assert len({name.lower() for name in names.values()}) == len(names), "also where case does not matter"
    assert all(re.fullmatch(r"model-[A-Za-z0-9_-]{1,80}", name) for name in names.values())


def test_the_log_counts_files_and_scored_images(run_model, statistics, tmp_path, monkeypatch, caplog):
    """A run with many cameras takes minutes to export; without a terminal, the log is all that is seen of it."""
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0)
    monkeypatch.setattr(gate, "BLOCK", 4)
    with caplog.at_level("INFO", "pul"):
        export_model(run_model(statistics), Options("safetensors", threads=1), tmp_path / "exported")
    for text in ("write: 1/3 files", "write: 3 files in", "check: 2/3 files", "score: 4/15 images", "score: 9/15 images"):
        assert text in caplog.text


def test_a_new_camera_gets_its_file_from_its_images(run_model, statistics, tiny_pair, tmp_path):
    """The same images with their cameras renamed: the statistics are those of the images, under the new names."""
    folder = tmp_path / "crops"
    for path in (tiny_pair[1] / "bounding_box_train").iterdir():
        place = folder / ("door" if "_c1s1_" in path.name else "new") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    options = Options("safetensors", threads=1, target=str(folder), pattern="(?P<camera>[^/]+)/")
    settings = replace(SETTINGS, images_per_camera=100)  # all images, so that it does not matter which are drawn
    manifest = export_model(run_model(statistics)._replace(statistics_settings=settings), options, tmp_path / "exported")
    assert [file["camera"] for file in manifest["files"]] == ["door", "new", None] and manifest["rank_1_images"] is None
    state = load_file(tmp_path / "exported" / "model-camera-new.safetensors")
    images = np.stack([decode_crop(path.read_bytes(), 64, 32) for path in sorted((folder / "new").iterdir())])
    expected = camera_statistics(run_model().backbone, images, np.full(len(images), 1), settings, seed=0).means["conv1.1"][0]
    np.testing.assert_allclose(state["conv1.1.running_mean"].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_features_of_a_folder_by_camera_are_those_of_extraction(run_model, statistics, crops, tmp_path, caplog):
    """Cameras are recognised by their names in the folder: camera 2 has its file, camera 7 and no camera get that for others."""
    images, paths = crops
    folder = tmp_path / "crops"
    for camera, path in zip(("2", "7", None), paths, strict=False):
        place = folder / (camera or "") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    (folder / "2" / "damaged.jpg").write_bytes(b"not an image")
    export_model(run_model(statistics), Options("safetensors", threads=1), tmp_path / "exported")
    out = tmp_path / "features.parquet"
    embedded = embed_folder(str(tmp_path / "exported"), str(folder), str(out), pattern=r"((?P<camera>\d)/)?[^/]+$")
    assert (embedded.rows, embedded.skipped) == (3, {"2/damaged.jpg": "not a readable image"})
    assert "2 of 4 images are not from a camera of the model (1, 2), and get its part for other cameras" in caplog.text
    rows = {row["camera"]: np.array(row["feature"], np.float32) for row in pq.read_table(out).to_pylist()}
    for number, (camera, entry) in enumerate((("2", 1), ("7", 2), (None, 2))):
        expected = torch_features(BackboneOnCamera(run_model().backbone, statistics, entry).eval(), images[number : number + 1])[0]
        np.testing.assert_allclose(rows[camera], expected, rtol=1e-4, atol=1e-5)


def test_a_folder_without_images_leaves_an_earlier_file(run_model, tmp_path):
    export_model(run_model(), Options("safetensors", threads=1), tmp_path / "exported")
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops" / "a.jpg").write_bytes(b"x")
    out = tmp_path / "features.parquet"
    out.write_bytes(b"earlier")
    with pytest.raises(DataError, match=r"none of the 1 images .* can be decoded \(1 not a readable image\)"):
        embed_folder(str(tmp_path / "exported" / "model.safetensors"), str(tmp_path / "crops"), str(out))
    assert out.read_bytes() == b"earlier" and {path.name for path in tmp_path.glob(".partial*")} == set()


def test_a_model_that_fails_the_gate_is_not_written_and_an_earlier_export_stays(run_model, tmp_path, monkeypatch):
    """The written file holds other weights than the model: what a wrong exporter would do."""
    out = tmp_path / "exported"
    export_model(run_model(), Options("safetensors", threads=1), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write = export_run.write_safetensors

    def write_changed(deployed, header, path):
        with torch.no_grad():
            deployed.backbone.conv1[0].weight.mul_(1.01)
        write(deployed, header, path)
        with torch.no_grad():
            deployed.backbone.conv1[0].weight.div_(1.01)

    monkeypatch.setattr(export_run, "write_safetensors", write_changed)
    with pytest.raises(DataError, match=r"model\.safetensors fails the parity gate, and nothing was written: a feature differs by"):
        export_model(run_model(), Options("safetensors", threads=1), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not list(tmp_path.glob(".partial*"))


def test_what_cannot_be_exported_is_refused_before_anything_is_read(run_model, tmp_path):
    for options, message in (
        (Options("tflite"), "--format must be one of"),
        (Options("safetensors", l2=True), "--l2 requires a graph"),
        (Options("torch-export", int8=True), "--int8 requires --format onnx"),
    ):
        with pytest.raises(UserError, match=message):
            export_model(run_model(), options, tmp_path / "exported")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files: give an empty folder"):
        export_model(run_model(), Options("safetensors"), tmp_path / "mine")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt2"])
def test_other_files_are_not_taken_for_exports(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match="give a file that `pul export` wrote"):
        open_runtime(path)


def test_a_missing_package_is_named_with_its_extra(run_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"requires the package onnx: pip install 'pul-reid\[export\]'"):
        export_model(run_model(), Options("onnx"), tmp_path / "exported")
    assert not (tmp_path / "exported").exists() and not list(tmp_path.glob(".partial*"))


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="torchreid and reid are not installed: make peers")
def test_timm_and_reid_load_the_weights_in_the_environment_of_the_peers(run_model, crops, tmp_path):
    export_model(run_model(), Options("safetensors", threads=1), tmp_path / "exported")
    script, results = Path(__file__).with_name("peers_features.py"), tmp_path / "features.npz"
    command = [PEERS, script, tmp_path / "exported" / "model.safetensors", results, *crops[1]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    expected = torch_features(run_model().backbone, crops[0])
    for package, features in np.load(results).items():
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-5, err_msg=package)


@pytest.mark.slow
def test_onnx_runs_in_onnxruntime_alone_at_any_batch_size_with_int8_beside_it(run_model, crops, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "exported"
    model = run_model()
    # An untrained model's features are all alike, so that 8 bits cannot tell its images apart; the gate itself is tested elsewhere.
    manifest = export_model(model, Options("onnx", l2=True, int8=True, threads=1), out)
    sizes = {file["file"]: file["bytes"] for file in manifest["files"]}
    assert sizes["model.int8.onnx"] < 0.4 * sizes["model.onnx"]
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3, 5):
        features = session.run(None, {"images": crops[0][:count]})[0]
        np.testing.assert_allclose(features, torch_features(model.backbone, crops[0][:count], l2=True), atol=1e-5)
    header = json.loads(session.get_modelmeta().custom_metadata_map["pul"])
    assert header["card"] == {"title": "tiny"} and header["input_shape"] == ["batch", 64, 32, 3]
    int8 = onnxruntime.InferenceSession(out / "model.int8.onnx", providers=["CPUExecutionProvider"])
    features = int8.run(None, {"images": crops[0]})[0]
    expected = torch_features(model.backbone, crops[0], l2=True)
    assert not np.allclose(features, expected, atol=1e-4) and (features * expected).sum(1).min() > 0.9
    report = manifest["reports"]["int8"]
    assert report["parity"]["model.int8.onnx"]["cosine"] > 0 and [row["batch"] for row in report["timing"]] == [1, 2, 32]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "suffix"), [("onnx", "onnx"), ("torch-export", "pt2"), ("openvino", "xml")])
def test_graphs_contain_the_trunk_and_the_mirror_images(run_model, trunk, crops, tmp_path, name, suffix):
    for package in {"onnx": ["onnxscript", "onnxruntime"], "openvino": ["onnxscript", "openvino"]}.get(name, []):
        pytest.importorskip(package)
    export_model(run_model(model=trunk), Options(name, l2=True, threads=1), tmp_path / "exported")
    runtime = open_runtime(tmp_path / "exported" / f"model.{suffix}", threads=1)
    assert (runtime.header.pool, runtime.header.last_stride, runtime.header.neck, runtime.header.flip) == ("gem", 1, True, True)
    backbone, _ = read_model(trunk)
    for count in (1, 2, 5):
        expected = torch_features(backbone, crops[0][:count], flip=True, l2=True)
        np.testing.assert_allclose(runtime.features(crops[0][:count]), expected, atol=1e-4)
    assert not np.allclose(torch_features(backbone, crops[0], l2=True), torch_features(backbone, crops[0], flip=True, l2=True), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch-export", "openvino"])
def test_other_runtimes_pass_the_gate_with_preprocessing_outside_the_graph(run_model, crops, tmp_path, name):
    if name == "openvino":
        pytest.importorskip("openvino")
        pytest.importorskip("onnxscript")
    out = tmp_path / "exported"
    model = run_model()
    manifest = export_model(model, Options(name, in_graph=False, threads=1), out)
    assert manifest["files"][0]["input_dtype"] == "float32"
    suffix = {"torch-export": "pt2", "openvino": "xml"}[name]
    runtime = open_runtime(out / f"model.{suffix}", threads=1)
    assert runtime.header.preprocessing.mean == (0.485, 0.456, 0.406)
    np.testing.assert_allclose(runtime.features(crops[0]), torch_features(model.backbone, crops[0]), rtol=1e-3, atol=1e-5)
    if name == "torch-export":
        names = zipfile.ZipFile(out / "model.pt2").namelist()
        assert any(entry.endswith("pul.json") for entry in names)
