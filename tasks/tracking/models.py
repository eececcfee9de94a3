"""Models in MLflow: the model of each iteration is logged, and that of the last iteration is registered."""

import functools
import io
import shutil
import tempfile
import warnings
from importlib.metadata import version as version_of
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType
from PIL import Image

from pul_core.identities import NO_CAMERA
from pul_core.synthetic.people import draw_image, plan_domain
from tasks.store.artifacts import Artifact, locate, read_bytes, read_table, verify
from tasks.store.licences import Licence
from tasks.store.model_file import model_size
from tasks.store.readers import camids
from tasks.tracking import reid_model
from tasks.tracking.client import client
from tasks.tracking.results import run_id_of

RUN_TAG = "pul.run"  # tag of a version of a registered model: the id of its run
MODEL_ID_TAG = "pul.model_id"  # tag of a nested run: the id of the iteration's model in MLflow


def log_iteration_model(run: Run, model: Artifact, statistics: Artifact | None = None) -> str:
    """Log a model to the MLflow run of its iteration, unless the run already has one.

    Args:
        run: the MLflow run.
        model: a model file of this project.
        statistics: its BatchNorm statistics by camera, and its whitening, joined to the model; it then takes the camera of each image.

    Returns:
        The id of the model in MLflow.
    """
    if model_id := run.data.tags.get(MODEL_ID_TAG):
        return str(model_id)
    size = model_size(model)
    by_camera = statistics is not None and bool((camids(read_table(statistics, ["camid"])) > NO_CAMERA).any())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pending = mlflow.initialize_logged_model("model", run.info.run_id, params=run.data.params, experiment_id=run.info.experiment_id)
        # Model.log, because pyfunc.log_model would need an active run, which takes several more requests.
        logged = Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            model_id=pending.model_id,
            run_id=run.info.run_id,
            python_model=reid_model.__file__,
            artifacts={"weights": str(_named_file(model, Path(folder, "model.safetensors")))}
            | ({"statistics": str(_named_file(statistics, Path(folder, "statistics.parquet")))} if statistics else {}),
            signature=signature(by_camera=by_camera),
            input_example=input_example(**size, by_camera=by_camera),
            pip_requirements=[f"{package}=={version_of(package)}" for package in ("pul-reid", "safetensors", "timm", "torch")],
        )
    client().set_tag(run.info.run_id, MODEL_ID_TAG, logged.model_id)
    return str(logged.model_id)


def iteration_of(uri: str) -> str:
    """Return the iteration, as RUN/iteration=N, that logged a model in MLflow."""
    nested = client().get_run(mlflow.models.get_model_info(uri).run_id)
    return f"{run_id_of(client().get_run(nested.data.tags['mlflow.parentRunId']))}/iteration={nested.data.tags['pul.iteration']}"


def _named_file(model: Artifact, path: Path) -> Path:
    """Make a model available under a path: a hard link to its file, or a copy if the file is on another disk or in a remote store."""
    if "://" in locate(model):
        path.write_bytes(read_bytes(model))
        return path
    try:
        path.hardlink_to(verify(model))
    except OSError:
        shutil.copyfile(verify(model), path)
    return path


def licence_tags(licence: Licence) -> dict[str, str]:
    """Return the licences as tags of a run or a model version.

    Example:
        >>> licence_tags(Licence(weights="MIT"))["pul.licence.weights"]
        'MIT'
    """
    return {f"pul.licence.{name}": text for name, text in licence}


def signature(*, by_camera: bool) -> ModelSignature:
    """Return the signature of a model: a table whose rows have an image as bytes, as a path or as pixels, and perhaps its camera.

    Args:
        by_camera: whether the model uses the camera of each image.

    Example:
        >>> signature(by_camera=True).inputs.input_names()
        ['image', 'path', 'pixels', 'camid']
    """
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.binary, "image", required=False),
        ColSpec(DataType.string, "path", required=False),
        ColSpec(AnyType(), "pixels", required=False),  # type: ignore[no-untyped-call]
        *([ColSpec(DataType.long, "camid", required=False)] if by_camera else []),
    ]
    return ModelSignature(Schema(columns), Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]))


@functools.cache
def input_example(height: int, width: int, *, by_camera: bool) -> pd.DataFrame:
    """Return an input of one row: the bytes of an image of a drawn person."""
    planned = plan_domain("target", 0)[0]
    file = io.BytesIO()
    Image.fromarray(draw_image("target", 0, planned)).resize((width, height)).save(file, "PNG")
    return pd.DataFrame({"image": [file.getvalue()]} | ({"camid": [NO_CAMERA]} if by_camera else {}))


def register_model(run_id: str, name: str, run_name: str, licence: Licence) -> str:
    """Register the model of an iteration as a new version, unless it is already registered, and return its version.

    Args:
        run_id: the MLflow run of the iteration.
        name: name of the registered model.
        run_name: name of the parent run, recorded as a tag of the model version.
        licence: licences of the model, recorded as tags of the model version.
    """
    for version in client().search_model_versions(f"name = '{name}'"):
        if version.run_id == run_id:
            return str(version.version)
    registered = mlflow.register_model(f"models:/{client().get_run(run_id).data.tags[MODEL_ID_TAG]}", name)
    for tag, value in ({RUN_TAG: run_name} | licence_tags(licence)).items():
        client().set_model_version_tag(name, registered.version, tag, value)
    return str(registered.version)
