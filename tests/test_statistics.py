"""The step estimate_statistics: its file, the features and the MLflow model that use it, and what is checked before a run."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pul_core.errors import UserError
from pul_core.learning import camera_statistics
from pul_core.learning.camera_statistics import CameraStatistics, Whitening
from pul_core.learning.extraction import extract_features as extract
from pul_core.settings import Statistics
from tasks.extract import extract_features
from tasks.index import index
from tasks.operations import purge
from tasks.preflight import checked_plan
from tasks.statistics import estimate_statistics
from tasks.store.artifacts import column, locate, read_table
from tasks.store.config import Overrides, parameters_of, resolve_plan
from tasks.store.model_file import read_model
from tasks.store.readers import open_pixels
from tasks.store.references import TargetStatistics
from tasks.store.statistics_file import statistics_from, statistics_of_iteration, write_statistics
from tasks.tracking.reid_model import ReIDModel

SETTINGS = Statistics(by_camera=True, images_per_camera=10, min_images=8, whitening=0.5)


@pytest.fixture
def target(home, tiny_pair):
    """36 training images, 18 on each of two cameras."""
    return index.fn(str(tiny_pair[1]), "target")


@pytest.fixture
def statistics(model, pixels, target, compute):
    statistics = estimate_statistics.fn(model, pixels, target.images, settings=SETTINGS, seed=3, compute=compute, iteration=0)
    return TargetStatistics(statistics=statistics, cameras=target.images)


@pytest.fixture
def cameras(target, pixels):
    return column(read_table(target.images), "camid")[open_pixels(pixels)[0]]


def same(one, other):
    assert one.camids.tolist() == other.camids.tolist() and one.num_images.tolist() == other.num_images.tolist()
    for values, expected in ((one.means, other.means), (one.variances, other.variances)):
        assert list(values) == list(expected)
        assert all(values[layer].dtype == np.float32 and np.array_equal(values[layer], expected[layer]) for layer in expected)
    assert (one.whitening is None) == (other.whitening is None)
    return other.whitening is None or all(map(np.array_equal, one.whitening, other.whitening))


def test_a_file_has_a_row_for_each_layer_and_camera_and_comes_back(home):
    means = {"a": np.arange(6, dtype=np.float32).reshape(3, 2), "b.c": np.ones((3, 4), np.float32)}
    written = CameraStatistics(np.array([2, 9]), np.array([5, 6, 7]), means, {layer: values + 0.5 for layer, values in means.items()})
    artifact = write_statistics(written)
    rows = read_table(artifact).to_pylist()
    assert [(row["layer"], row["camid"], row["images"]) for row in rows[:4]] == [("a", 2, 5), ("a", 9, 6), ("a", None, 7), ("b.c", 2, 5)]
    assert rows[1]["mean"] == [2, 3] and rows[1]["variance"] == [2.5, 3.5]
    assert same(statistics_from(read_table(artifact)), written)
    whitening = replace(written, whitening=Whitening(np.arange(3, dtype=np.float32), np.arange(9, dtype=np.float32).reshape(3, 3)))
    table = read_table(write_statistics(whitening))
    assert same(statistics_from(table), whitening)
    last = table.to_pylist()[-1]
    assert (last["layer"], last["camid"], last["images"], last["variance"]) == ("features", None, 18, None)
    assert last["transform"] == list(range(9)) and table["transform"].null_count == 6
    none = CameraStatistics(np.empty(0, np.int64), np.array([7]), {"a": means["a"][:1]}, {"a": means["a"][1:2]})
    assert same(statistics_from(read_table(write_statistics(none))), none)


def test_new_images_have_no_style_group(home, tmp_path):
    """The statistics that a run's model is deployed with leave the groups out; new images get those of all groups together."""
    means = {"a": np.arange(8, dtype=np.float32).reshape(4, 2)}
    written = CameraStatistics(np.array([-3, -2, 4]), np.array([5, 6, 7, 18]), means, {"a": means["a"] + 0.5})
    (folder := tmp_path / "iteration=1").mkdir()
    (folder / "statistics.parquet").symlink_to(locate(write_statistics(written)))
    statistics = statistics_of_iteration(folder)
    assert statistics.camids.tolist() == [4] and statistics.num_images.tolist() == [7, 18]
    assert statistics.means["a"].tolist() == means["a"][2:].tolist()
    assert statistics.entries(np.array([-3, -2, -1, 4])).tolist() == [1, 1, 1, 0]


def test_the_step_writes_the_statistics_of_the_core(model, pixels, statistics, cameras):
    backbone, _ = read_model(model)
    expected = camera_statistics.estimate_statistics(backbone, open_pixels(pixels)[1], cameras, SETTINGS, seed=3)
    assert expected.camids.tolist() == [1, 2] and expected.num_images.tolist() == [10, 10, 10]
    assert same(statistics_from(read_table(statistics.statistics)), expected)


def test_the_step_extracts_with_them(model, pixels, statistics, cameras, compute):
    backbone, _ = read_model(model)
    by_camera = statistics_from(read_table(statistics.statistics))
    expected = np.concatenate(list(extract(backbone, open_pixels(pixels)[1], statistics=by_camera, camids=cameras)))
    place = {"compute": compute, "iteration": 0, "split": "train"}
    table = read_table(extract_features.fn(model, pixels, statistics, **place))
    np.testing.assert_array_equal(column(table, "feature"), expected)
    assert column(table, "row").tolist() == open_pixels(pixels)[0].tolist()
    assert not np.array_equal(column(read_table(extract_features.fn(model, pixels, **place)), "feature"), expected)


def test_the_model_in_mlflow_uses_them(model, pixels, statistics, cameras):
    images = open_pixels(pixels)[1]
    backbone, _ = read_model(model)
    by_camera = statistics_from(read_table(statistics.statistics))

    def predict(camids=None, **artifacts):
        loaded, context = ReIDModel(), SimpleNamespace(artifacts={"weights": locate(model), **artifacts})
        loaded.load_context(context)
        table = pd.DataFrame({"pixels": list(images)} | ({} if camids is None else {"camid": camids}))
        return loaded.predict(context, table)

    joined = {"statistics": locate(statistics.statistics)}

    def expected(camids):
        return np.concatenate(list(extract(backbone, images, statistics=by_camera, camids=camids)))

    np.testing.assert_array_equal(predict(cameras, **joined), expected(cameras))
    np.testing.assert_array_equal(predict(2, **joined), expected(np.full(36, 2)))
    np.testing.assert_array_equal(predict(**joined), expected(np.full(36, -1)))
    np.testing.assert_array_equal(predict(), np.concatenate(list(extract(backbone, images))))


@pytest.mark.parametrize("statistics", [None, {"share": 0.7}, Overrides[Statistics]()])
def test_modern_has_statistics_if_the_backbone_has_batch_norm(statistics):
    """Unset, they are used if possible; requested ones that are not possible are refused."""
    parameters = {"recipe": "modern", "source": "x", "target": "x", "statistics": statistics}
    transformer = {"backbone": "vit_tiny_patch16_224", "weights": "random"}
    for model, by_camera in (
        ({"backbone": "resnet10t", "weights": "random"}, True),
        (transformer, False),
        (transformer | {"neck": True}, True),
    ):
        plan = checked_plan(parameters | {"model": model})
        style = {"style_groups": 0} if "neck" in model else {}  # the BatchNorm of a neck is not of a feature map
        expected = {"model": model, "statistics": {**dict(statistics or {}), "by_camera": by_camera, **style}}
        epsilon = {} if by_camera else {"dbscan": {"max_distance": 0.45}}  # that of the recipe is one of whitened features
        assert plan == resolve_plan(parameters | expected | epsilon)
    requested = parameters | {"model": transformer, "statistics": {"by_camera": True}}
    with pytest.raises(UserError, match=r"no BatchNorm layer.*set statistics\.by_camera=false, or choose"):
        checked_plan(requested)
    assert not checked_plan(parameters_of(checked_plan(parameters | {"model": transformer}))).statistics.by_camera, "the saved config"


def test_statistics_are_deleted_with_the_images_they_are_estimated_from(statistics, target, monkeypatch):
    monkeypatch.setattr(purge, "running_runs", list)
    digest = read_table(target.images)["sha256"][0].as_py()
    assert locate(statistics.statistics) in {str(path) for path in purge.purge_images({digest}).removed}
