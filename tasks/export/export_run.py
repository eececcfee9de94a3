"""Exporting the model of a run: files in a format, checked by the parity gate before any of them is put into place."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from pul_core.arrays import Features, Images
from pul_core.errors import DataError
from pul_core.learning.deployed import DeployedModel, with_statistics
from pul_core.learning.extraction import extract_features
from pul_core.scoring.parity import EXACT, INT8, INT8_WHITENED, Bounds
from tasks.engine.progress import progress
from tasks.engine.status import activity
from tasks.export import gate
from tasks.export.by_camera import ByCamera, file_names
from tasks.export.crops import Crops, Target, other_target, target_of_run
from tasks.export.header import SUFFIXES, ExportHeader, Preprocessing
from tasks.export.onnx_file import write_onnx
from tasks.export.openvino_file import write_openvino
from tasks.export.options import MANIFEST, Options, check_folder, check_options
from tasks.export.quantise import quantise
from tasks.export.run_model import RunModel, read_run_model
from tasks.export.runtime import open_runtime
from tasks.export.safetensors_file import write_safetensors
from tasks.export.timing import time_batches
from tasks.export.torch_file import write_torch_export
from tasks.store.home import home

GATE_CROPS = 35 * 2  # two rounds of batches of 1, 2 and 32
CALIBRATION_CROPS = 256
EXPORTS = "exports"  # folder below $PUL_HOME
SEED = 0  # of the choice of crops


Models = dict[str | None, gate.FeaturesOf]  # by the name of the camera


class File(NamedTuple):
    """A written file, with the camera that it is for, and the model in torch that it has to agree with."""

    path: Path
    camera: str | None
    header: ExportHeader
    reference: gate.FeaturesOf


def export_run(reference: str, options: Options, *, iteration: int | None = None, out: Path | None = None) -> dict[str, Any]:
    """Export the model of a run, check it against the model in torch on crops of the run's target, and write the files.

    Args:
        reference: the run, see `tasks.store.runs.find_run_folder`.
        options: format and graph.
        iteration: whose model; None: the last one.
        out: the folder to write; None: ``$PUL_HOME/exports/RUN/iteration=N/FORMAT``. An earlier export in it is replaced.

    Returns:
        The manifest, which is also written to export.json: the files with their headers and digests, parity, and timing.

    Raises:
        UserError: the run, its images or a package is missing, or the format does not support an option.
        DataError: the exported model differs too much from the one in torch; nothing is written.
    """
    model = read_run_model(reference, iteration)
    return export_model(model, options, out or home() / EXPORTS / model.run_id / f"iteration={model.iteration}" / options.format)


def export_model(model: RunModel, options: Options, folder: Path) -> dict[str, Any]:
    """Export a model to a folder; see `export_run`."""
    check_options(options)
    check_folder(folder)
    if options.threads:
        torch.set_num_threads(options.threads)
    size = model.config.height, model.config.width
    if options.target is None:
        target = target_of_run(model.folder, model.target, *size)
    else:
        target = other_target(options.target, options.layout, options.pattern, *size)
        if model.statistics is not None:
            settings = model.statistics_settings
            if model.statistics.whitening is None:  # a run from before there was this setting of its recipe
                settings = replace(settings, whitening=0)
            statistics = target.estimate_statistics(model.backbone, settings, seed=SEED)
            model = model._replace(statistics=statistics, target=options.target)
    staging = folder.parent / f".partial-{uuid.uuid4().hex}"
    staging.mkdir(parents=True)
    try:
        manifest = _write_and_check(model, options, target, staging)
        if folder.exists():
            shutil.rmtree(folder)
        staging.replace(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return {**manifest, "folder": str(folder)}


def _write_and_check(model: RunModel, options: Options, target: Target, folder: Path) -> dict[str, Any]:
    files = list(_write_files(model, options, target, folder))
    labelled = target.draw_labelled(seed=SEED)
    crops = {file.camera: _crops_for(file, model, target) for file in files}
    reports = {"float32": _check(files, crops, labelled, model, target, options, EXACT)}
    if options.int8:
        quantised = list(_quantise_files(files, model, target, options))
        bounds = INT8_WHITENED if files[0].header.whitened else INT8
        reports["int8"] = _check(quantised, crops, labelled, model, target, options, bounds)
        files += quantised
    manifest = {
        "format": options.format,
        "run": model.run_id,
        "iteration": model.iteration,
        "target": model.target,
        "rank_1_images": [len(part.pids) for part in labelled] if labelled else None,
        "files": [_describe(file) for file in files],
        "reports": reports,
        "card": model.card,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _write_files(model: RunModel, options: Options, target: Target, folder: Path) -> Iterator[File]:
    """Yield one file for all cameras, or one for each camera with statistics of its own and one for all others."""
    names = target.camera_names()
    entries: list[tuple[str | None, nn.Module, str]] = []
    if model.statistics is None:
        entries.append((None, model.backbone, "model"))
    else:
        cameras = {camid: names[camid] for camid in model.statistics.camids.tolist()}
        for entry, (camera, name) in enumerate(file_names(cameras).items()):
            entries.append((camera, with_statistics(model.backbone, model.statistics, entry), name if cameras else "model"))
    with progress("write", len(entries), "files") as progress_bar:
        for camera, backbone, name in entries:
            header = _header(model, options, camera)
            path = folder / f"{name}{SUFFIXES[options.format]}"
            deployed = DeployedModel(backbone.eval(), preprocess=header.preprocessing.in_graph, flip=header.flip, l2=options.l2).eval()
            if options.format == "onnx":
                write_onnx(deployed, header, path)
            elif options.format == "torch-export":
                write_torch_export(deployed, header, path)
            elif options.format == "openvino":
                write_onnx(deployed, header, path.with_suffix(".onnx"))
                write_openvino(path.with_suffix(".onnx"), header, path)
                path.with_suffix(".onnx").unlink()
            else:
                write_safetensors(deployed, header, path)
            progress_bar.advance(1)
            yield File(path, camera, header, _reference(backbone, flip=header.flip, l2=options.l2))


def _quantise_files(files: list[File], model: RunModel, target: Target, options: Options) -> Iterator[File]:
    with progress("quantise", len(files), "files") as progress_bar:
        for file in files:
            header = file.header.model_copy(update={"precision": "int8"})
            path = file.path.with_name(f"{file.path.stem}.int8.onnx")
            crops = _crops_for(file, model, target, CALIBRATION_CROPS, seed=SEED + 1)
            quantise(file.path, header, crops.images, path)
            progress_bar.advance(1)
            yield file._replace(path=path, header=header)


def _check(
    files: list[File],
    crops: dict[str | None, Crops],
    labelled: tuple[Crops, Crops] | None,
    model: RunModel,
    target: Target,
    options: Options,
    bounds: Bounds,
) -> dict[str, Any]:
    """Run the parity gate on files that belong together, and time the first of them."""
    runtimes = {file.camera: open_runtime(file.path, threads=options.threads) for file in files}
    differences = {}
    with progress("check", len(files), "files") as progress_bar:
        for file in files:
            images = crops[file.camera].images
            differences[file.camera] = gate.compare_runtimes(file.reference, runtimes[file.camera].features, images)
            progress_bar.advance(1)
    models: list[Models] = [
        {file.camera: file.reference for file in files},
        {camera: runtime.features for camera, runtime in runtimes.items()},
    ]
    scores = [_rank_1(by_camera, labelled, model, target) for by_camera in models] if labelled else None
    loss = scores[0] - scores[1] if scores else None
    parity = {
        file.path.name: gate.check(file.path.name, differences[file.camera], loss, bounds) | {"crops": len(crops[file.camera].images)}
        for file in files
    }
    first = files[0]
    with activity(f"time {first.path.name}"):
        timing = time_batches(runtimes[first.camera].features, crops[first.camera].images)
    return {"parity": parity, "rank_1": scores, "timing": timing}


def _rank_1(models: Models, labelled: tuple[Crops, Crops], model: RunModel, target: Target) -> float:
    """Return rank-1 of models by camera."""
    by_camera, names = ByCamera(models), target.camera_names()

    def features_of(crops: Crops) -> Features:
        return by_camera.features(crops.images, [names.get(camid) for camid in crops.camids.tolist()])

    return gate.rank_1(features_of, labelled, centre_cameras=model.centre_cameras)


def _crops_for(file: File, model: RunModel, target: Target, count: int = GATE_CROPS, *, seed: int = SEED) -> Crops:
    """Draw crops of the cameras that a file is for; of all cameras, if there are none of them."""
    if model.statistics is None:
        return _not_empty(target.draw(count, seed=seed), model)
    own = model.statistics.camids
    if file.camera is None:
        others = np.setdiff1d(np.unique(target.camids), own)
        crops = target.draw(count, seed=seed, of=others)
        return crops if len(crops.pids) else _not_empty(target.draw(count, seed=seed), model)
    camid = next(camid for camid, name in target.camera_names().items() if name == file.camera)
    return _not_empty(target.draw(count, seed=seed, of=np.array([camid])), model)


def _not_empty(crops: Crops, model: RunModel) -> Crops:
    if not len(crops.pids):
        raise DataError(f"the target of run {model.run_id} has no usable training image, which the parity gate requires")
    return crops


def _reference(backbone: nn.Module, *, flip: bool, l2: bool) -> gate.FeaturesOf:
    """Return the function that the exported file has to agree with: the features of the model in torch, in float32."""

    def features_of(images: Images) -> Features:
        features = np.concatenate(list(extract_features(backbone, images, flip=flip)))
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12) if l2 else features

    return features_of


def _header(model: RunModel, options: Options, camera: str | None) -> ExportHeader:
    height, width = model.config.height, model.config.width
    in_graph = options.in_graph and options.format != "safetensors"
    return ExportHeader(
        **model.config.model_dump(),
        format=options.format,
        input_shape=("batch", height, width, 3) if in_graph else ("batch", 3, height, width),
        input_dtype="uint8" if in_graph else "float32",
        dimensions=int(model.backbone.num_features),  # type: ignore[arg-type]
        l2=options.l2,
        whitened=model.statistics is not None and model.statistics.whitening is not None,
        preprocessing=Preprocessing(in_graph=in_graph),
        camera=camera,
        licence=model.licence,
        card=model.card,
    )


def _describe(file: File) -> dict[str, Any]:
    parts = [file.path, *([file.path.with_suffix(".bin")] if file.path.suffix == ".xml" else [])]
    return {
        "file": file.path.name,
        "camera": file.camera,
        "bytes": sum(part.stat().st_size for part in parts),
        "sha256": hashlib.sha256(file.path.read_bytes()).hexdigest(),
        **file.header.model_dump(exclude={"card"}),
    }
