"""INT8: static quantisation of an ONNX file by onnxruntime, calibrated on crops of the target."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pul_core.arrays import Images
from tasks.export.header import ExportHeader
from tasks.export.onnx_file import set_header
from tasks.export.packages import require
from tasks.export.runtime import to_pixels

CALIBRATION_BATCH = 16
PERCENTILE = 99.99  # of the values of an activation; larger ones are clipped
# The preprocessing, the pooling, the whitening and the L2 normalisation stay in float32. With the activations, the range of a convolution
# is that after its activation, which is then left out.
LAYERS = ["Conv", "Gemm", "MatMul", "Clip", "Relu"]


def quantise(source: Path, header: ExportHeader, crops: Images, target: Path) -> None:
    """Write an ONNX file with 8-bit weights (per channel) and activations (per tensor, ranges from the crops).

    Args:
        source: the float32 ONNX file.
        header: of the new file.
        crops: (n, h, w, 3) uint8, unlabelled images of the target.
        target: the new file.

    Raises:
        UserError: a package of the extra ``export`` is not installed.
    """
    onnx, quantization = require("onnx"), require("onnxruntime.quantization")
    preprocessing = require("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder, "prepared.onnx")
        preprocessing.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(str(prepared)).graph
        quantization.quantize_static(
            str(prepared),
            str(target),
            _Reader(header, crops),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=LAYERS,
            nodes_to_exclude=[node.name for node in graph.node if any("whitening" in name for name in node.input)],
            per_channel=True,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": PERCENTILE},
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QUInt8,  # signed weights overflow on CPUs without VNNI, see docs/adr/0015-exports.md
        )
    proto = onnx.load(str(target))
    set_header(proto, header)
    onnx.save(proto, str(target))


class _Reader:
    """Gives onnxruntime the crops in batches: the interface of its ``CalibrationDataReader``."""

    def __init__(self, header: ExportHeader, crops: Images) -> None:
        self.batches: Iterator[dict[str, Any]] = (
            {header.input: block if header.preprocessing.in_graph else to_pixels(block)}
            for block in np.array_split(crops, max(1, len(crops) // CALIBRATION_BATCH))
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch, or None at the end."""
        return next(self.batches, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what onnxruntime's quantiser logs and prints for its own developers."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
