"""Any model of ours as one function from images and their cameras to features: a run, a model file, an MLflow model, or an export."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from pul_core.arrays import Features, Images
from pul_core.errors import DataError
from pul_core.learning.camera_statistics import CameraStatistics
from pul_core.learning.extraction import extract_features
from pul_core.settings import Machine
from tasks.engine.compute import prepare, resolve_compute
from tasks.export.by_camera import ByCamera
from tasks.export.options import MANIFEST
from tasks.export.runtime import OPENERS, open_runtime
from tasks.models import MLFLOW_URI, import_model, model_file, named_run
from tasks.store.artifacts import read_bytes
from tasks.store.home import user_path
from tasks.store.model_file import read_model_bytes
from tasks.store.readers import camera_names
from tasks.store.statistics_file import deployed_statistics, statistics_of_iteration
from tasks.store.weights_file import read_metadata


class Embedder(NamedTuple):
    """A model that is ready to use: its input size in pixels, and the function from images and camera names to features."""

    height: int
    width: int
    dimensions: int
    features: Callable[[Images, Sequence[str | None]], Features]  # (n, h, w, 3) uint8, n names -> (n, d) float32
    cameras: frozenset[str] = frozenset()  # those that the model has a part of its own for


def open_model(model: str, *, device: str | None = None, threads: int | None = None) -> Embedder:
    """Open a model.

    Args:
        model: a folder or file that `pul export` wrote, a run (its last iteration), RUN/iteration=N, a model file, or an MLflow URI.
        device: a torch device for models that torch runs; exported files run on the CPU.
        threads: CPU threads.

    Raises:
        DataError: there is no such model.
        UserError: the package of its runtime is not installed.
    """
    path = user_path(model)
    if (path / MANIFEST).is_file():
        return _open_export(path, threads)
    if path.is_file() and path.suffix in OPENERS and (path.suffix != ".safetensors" or _is_exported(path)):
        return _open_files({None: path}, threads)
    return _open_torch_model(model, device, threads)


def _open_export(folder: Path, threads: int | None) -> Embedder:
    files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return _open_files({file["camera"]: folder / file["file"] for file in files if file["precision"] == "float32"}, threads)


def _open_files(files: dict[str | None, Path], threads: int | None) -> Embedder:
    runtimes = {camera: open_runtime(path, threads=threads) for camera, path in files.items()}
    header = next(iter(runtimes.values())).header
    by_camera = ByCamera({camera: runtime.features for camera, runtime in runtimes.items()})
    return Embedder(header.height, header.width, header.dimensions, by_camera.features, frozenset(camera for camera in files if camera))


def _open_torch_model(model: str, device: str | None, threads: int | None) -> Embedder:
    compute = resolve_compute(Machine(device=device, threads=threads)).inference
    prepare(compute)
    statistics: CameraStatistics | None = None
    if MLFLOW_URI.match(model):
        with model_file(model) as file:
            logged = file.parent / "statistics.parquet"
            statistics = deployed_statistics(logged) if logged.exists() else None
        model = _iteration_with_names(model) if statistics is not None and len(statistics.camids) else model
    backbone, config = read_model_bytes(read_bytes(import_model.fn(model)))
    camids: dict[str, int] = {}
    if run := named_run(model):
        statistics, camids = _statistics_of_run(model, run[0])

    def features(images: Images, cameras: Sequence[str | None]) -> Features:
        numbers = np.array([camids.get(camera, -1) if camera is not None else -1 for camera in cameras], np.int64)
        batches = extract_features(
            backbone, images, statistics=statistics, camids=numbers, flip=config.flip, device=compute.device, dtype=compute.dtype
        )
        return np.concatenate(list(batches))

    return Embedder(config.height, config.width, int(backbone.num_features), features, frozenset(camids))  # type: ignore[arg-type]


def _iteration_with_names(uri: str) -> str:
    """Return the RUN/iteration=N that logged a model in MLflow: its folder has the names of the cameras, which MLflow does not have."""
    from tasks.tracking.models import iteration_of  # MLflow takes seconds to import

    iteration = iteration_of(uri)
    if named_run(iteration) is None:
        raise DataError(
            f"{uri} has statistics by camera, whose names are in the folder of {iteration} on the machine of that run: use it there"
        )
    return iteration


def _statistics_of_run(model: str, folder: Path) -> tuple[CameraStatistics | None, dict[str, int]]:
    """Return the statistics that the model of a run is used with, and the number of each camera with an entry by its name."""
    with model_file(model) as file:
        statistics = statistics_of_iteration(file.parent)
    if statistics is None:
        return None, {}
    names = camera_names(pq.read_table(folder / "images.parquet", columns=["camid", "camera"]))
    return statistics, {names[camid]: camid for camid in statistics.camids.tolist()}


def _is_exported(path: Path) -> bool:
    """Return whether a safetensors file was exported; others are model files of runs or checkpoints."""
    return '"preprocessing"' in read_metadata(path).get("pul", "")
