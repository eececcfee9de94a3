"""ONNX: writing a model as a graph, and running it in onnxruntime."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from pul_core.arrays import Features
from pul_core.learning.deployed import DeployedModel
from tasks.export.header import KEY, ExportHeader
from tasks.export.metadata import not_a_model, parse_header
from tasks.export.packages import require
from tasks.export.torch_file import EXAMPLE_BATCH, dynamic_batch, example_input

OPSET = 20


def write_onnx(model: DeployedModel, header: ExportHeader, path: Path) -> None:
    """Write a model as ONNX with a dynamic batch size and the header in its metadata.

    Raises:
        UserError: a package of the extra ``export`` is not installed.
    """
    onnx = require("onnx")
    require("onnxscript")
    with _quiet():
        program = torch.onnx.export(
            model,
            (example_input(header, EXAMPLE_BATCH),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[header.input],
            output_names=[header.output],
            dynamic_shapes=(dynamic_batch(),),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    set_header(proto, header)
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))


def set_header(proto: object, header: ExportHeader) -> None:
    """Put the header into the metadata of an ONNX model, and describe the model for viewers."""
    require("onnx").helper.set_model_props(proto, {KEY: header.model_dump_json()})
    proto.producer_name, proto.doc_string = "pul-reid", header.card.get("title", "")  # type: ignore[attr-defined]


def open_onnx(path: Path, threads: int | None) -> tuple[ExportHeader, Callable[[np.ndarray], Features]]:
    """Open an ONNX file in onnxruntime; returns its header and the function from its input to features.

    Raises:
        DataError: the file is damaged or was not exported by this project.
        UserError: onnxruntime is not installed.
    """
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of errors for each status, all without a common base
        raise not_a_model(path, error) from error
    header = parse_header(path, session.get_modelmeta().custom_metadata_map.get(KEY))
    return header, lambda images: session.run([header.output], {header.input: images})[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch's exporter prints for its own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
