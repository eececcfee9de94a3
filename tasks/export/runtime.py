"""A runtime: the function that maps images to features in the software that an exported file is for, whatever the format."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pul_core.arrays import Features, Images
from pul_core.learning.backbone import normalise
from tasks.export.header import ExportHeader
from tasks.export.onnx_file import open_onnx
from tasks.export.openvino_file import open_openvino
from tasks.export.safetensors_file import open_safetensors
from tasks.export.torch_file import open_torch_export

OPENERS = {".onnx": open_onnx, ".pt2": open_torch_export, ".safetensors": open_safetensors, ".xml": open_openvino}


class Runtime(NamedTuple):
    """An exported file that is ready to use."""

    header: ExportHeader
    features: Callable[[Images], Features]  # (n, h, w, 3) uint8 -> (n, d) float32


def open_runtime(path: Path, *, threads: int | None = None) -> Runtime:
    """Open an exported file in its runtime: onnxruntime, torch.export's loader, torch or OpenVINO.

    Args:
        path: the exported file.
        threads: CPU threads; None leaves the choice to the runtime.

    Raises:
        DataError: the file is not one of this project, or is damaged.
        UserError: the package of the runtime is not installed.
    """
    header, run = OPENERS[path.suffix](path, threads)
    return Runtime(header, run if header.preprocessing.in_graph else lambda images: run(to_pixels(images)))


def to_pixels(images: Images) -> Features:
    """Return images (n, h, w, 3) uint8 as the input of a file without preprocessing in the graph: (n, 3, h, w) float32.

    Example:
        >>> to_pixels(np.zeros((2, 8, 4, 3), np.uint8)).shape
        (2, 3, 8, 4)
    """
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return np.ascontiguousarray(normalise(tensor).numpy())
