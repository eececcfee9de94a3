"""OpenVINO: converting an ONNX file to OpenVINO's own format, a pair of .xml and .bin, and running it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pul_core.arrays import Features
from tasks.export.header import KEY, ExportHeader
from tasks.export.metadata import not_a_model, parse_header
from tasks.export.packages import require


def write_openvino(onnx: Path, header: ExportHeader, path: Path) -> None:
    """Convert an ONNX file with float32 weights, and write the header into the model's runtime information.

    OpenVINO's reader is used, not its converter for the command line, which reports to Intel.

    Raises:
        UserError: OpenVINO is not installed.
    """
    openvino = require("openvino")
    model = openvino.Core().read_model(str(onnx))
    model.set_rt_info(header.model_dump_json(), [KEY])
    openvino.save_model(model, str(path), compress_to_fp16=False)


def open_openvino(path: Path, threads: int | None) -> tuple[ExportHeader, Callable[[np.ndarray], Features]]:
    """Open an .xml file in OpenVINO on the CPU; returns its header and the function from its input to features.

    Raises:
        DataError: the file is damaged or was not exported by this project.
        UserError: OpenVINO is not installed.
    """
    core = require("openvino").Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    try:
        model = core.read_model(str(path))
        text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise not_a_model(path, error) from error
    return parse_header(path, text), lambda images: np.array(compiled(images)[0])
