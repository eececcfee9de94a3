"""MLflow's model of an iteration: images as bytes, paths and pixels, cameras, refusals, and `mlflow models serve` over HTTP."""

import base64
import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from pul_core.learning.extraction import extract_features
from pul_core.settings import Statistics
from tasks.decode import decode_crop
from tasks.index import index
from tasks.statistics import estimate_statistics
from tasks.store.artifacts import read_table
from tasks.store.model_file import read_model
from tasks.store.statistics_file import statistics_from
from tasks.tracking.client import client
from tasks.tracking.models import input_example, log_iteration_model

ROOT = Path(__file__).parents[1]
SETTINGS = Statistics(by_camera=True, images_per_camera=12, min_images=8)


@pytest.fixture
def paths(tiny_pair):
    """Two images of camera 1 and one of camera 2."""
    folder = tiny_pair[1] / "bounding_box_train"
    return [*sorted(folder.glob("*_c1s1_*"))[:2], sorted(folder.glob("*_c2s1_*"))[0]]


@pytest.fixture
def logged(home, monkeypatch, model, pixels, tiny_pair, compute, tracking):
    """A model with statistics by camera in MLflow: its URI, and the function from images (n, h, w, 3) and cameras to its features."""
    target = index.fn(str(tiny_pair[1]), "target")
    statistics = estimate_statistics.fn(model, pixels, target.images, settings=SETTINGS, seed=3, compute=compute, iteration=0)
    experiment_id = client().create_experiment("serving", (home / "mlartifacts").as_uri())
    run = client().create_run(experiment_id, run_name="serving")
    model_id = log_iteration_model(run, model, statistics)
    backbone, _ = read_model(model)
    by_camera = statistics_from(read_table(statistics))

    def expected(images, camids):
        return np.concatenate(list(extract_features(backbone, images, statistics=by_camera, camids=np.array(camids))))

    return f"models:/{model_id}", expected


def test_bytes_paths_and_pixels_give_the_same_features(logged, paths):
    loaded = mlflow.pyfunc.load_model(logged[0])
    crops = np.stack([decode_crop(path.read_bytes(), 64, 32) for path in paths])
    expected = logged[1](crops, [1, 1, 2])
    for column, values in (("image", [path.read_bytes() for path in paths]), ("path", list(map(str, paths))), ("pixels", list(crops))):
        np.testing.assert_array_equal(loaded.predict(pd.DataFrame({column: values, "camid": [1, 1, 2]})), expected)
    mixed = pd.DataFrame({"path": [str(paths[0]), None, None], "pixels": [None, crops[1].tolist(), crops[2].tolist()], "camid": [1, 1, 2]})
    np.testing.assert_array_equal(loaded.predict(mixed), expected)
    unknown = loaded.predict(pd.DataFrame({"path": list(map(str, paths))}))
    np.testing.assert_array_equal(unknown, logged[1](crops, [-1, -1, -1]))
    assert not np.array_equal(unknown, expected)


def test_a_row_without_a_usable_image_is_refused_by_its_number(logged, paths, tmp_path):
    loaded = mlflow.pyfunc.load_model(logged[0])
    good = str(paths[0])
    for table, message in (
        ({"path": [good, str(tmp_path / "missing.jpg")]}, "row 1 is refused: its image cannot be read or decoded"),
        ({"image": [paths[0].read_bytes(), b"no image"]}, "row 1 is refused: its image cannot be read or decoded"),
        ({"path": [good, None]}, "row 1 is refused: it has 0 images"),
        ({"path": [good], "image": [paths[0].read_bytes()]}, "row 0 is refused: it has 2 images"),
        ({"pixels": [[[1, 2], [3, 4]]]}, "row 0 is refused: its image"),
    ):
        with pytest.raises(MlflowException, match=message):
            loaded.predict(pd.DataFrame(table))


def test_the_input_example_is_a_drawn_person_that_the_model_accepts(logged):
    loaded = mlflow.pyfunc.load_model(logged[0])
    example = input_example(64, 32, by_camera=True)
    with Image.open(io.BytesIO(example["image"][0])) as image:
        assert image.size == (32, 64)
    features = loaded.predict(loaded.input_example)
    assert features.shape == (1, 96)
    np.testing.assert_array_equal(features, loaded.predict(example))


@pytest.mark.slow
def test_mlflow_serves_the_model_over_http(logged, paths, home, free_port):
    port = free_port()
    environment = {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"], "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [
        sys.executable,
        "-P",
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        logged[0],
        "--env-manager",
        "local",
        "-p",
        str(port),
        "-w",
        "1",
    ]
    with (home / "serve.log").open("w") as log:
        server = subprocess.Popen(
            command,
            env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home)} | environment,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 240
        while not answers(port):
            assert server.poll() is None and time.monotonic() < deadline, (home / "serve.log").read_text()
            time.sleep(0.5)
        images = [base64.b64encode(path.read_bytes()).decode() for path in paths]
        crops = np.stack([decode_crop(path.read_bytes(), 64, 32) for path in paths])
        rows = [{"image": image, "camid": camid} for image, camid in zip(images, (1, 1, 2), strict=True)]
        served = np.array(post(port, {"dataframe_records": rows})["predictions"], np.float32)
        np.testing.assert_allclose(served, logged[1](crops, [1, 1, 2]), rtol=1e-4, atol=1e-5)
        pixels = {"dataframe_split": {"columns": ["pixels"], "data": [[crops[0].tolist()]]}}
        served = np.array(post(port, pixels)["predictions"], np.float32)
        np.testing.assert_allclose(served, logged[1](crops[:1], [-1]), rtol=1e-4, atol=1e-5)
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(port, {"dataframe_records": [{"image": base64.b64encode(b"x").decode()}]})
        assert refused.value.code == 400 and "row 0 is refused" in json.load(refused.value)["message"]
    finally:
        server.terminate()
        server.wait(30)


def answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def post(port, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
