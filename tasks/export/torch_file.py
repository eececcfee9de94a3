"""torch.export: writing a model as a graph that torch loads without its Python code, and running it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pul_core.arrays import Features
from pul_core.learning.deployed import DeployedModel
from tasks.export.header import KEY, ExportHeader
from tasks.export.metadata import not_a_model, parse_header

EXAMPLE_BATCH = 2  # with a batch of one image, torch would take the size for a constant
HEADER_FILE = f"{KEY}.json"  # in the archive


def write_torch_export(model: DeployedModel, header: ExportHeader, path: Path) -> None:
    """Write a model as a torch.export archive (.pt2) with a dynamic batch size and the header as an extra file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (example_input(header, EXAMPLE_BATCH),), dynamic_shapes=(dynamic_batch(),), strict=False)
        torch.export.save(program, path, extra_files={HEADER_FILE: header.model_dump_json()})


def open_torch_export(path: Path, threads: int | None) -> tuple[ExportHeader, Callable[[np.ndarray], Features]]:
    """Open a .pt2 file with torch.export's loader; returns its header and the function from its input to features.

    Raises:
        DataError: the file is damaged or was not exported by this project.
    """
    extra_files: dict[str, Any] = {HEADER_FILE: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(path, extra_files=extra_files).module()
    except Exception as error:  # zip, JSON or schema errors
        raise not_a_model(path, error) from error
    header = parse_header(path, extra_files[HEADER_FILE])
    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(images: np.ndarray) -> Features:
        features: Features = module(torch.from_numpy(np.require(images, requirements="W"))).numpy()
        return features

    return header, run


def example_input(header: ExportHeader, batch: int) -> Tensor:
    """Return an input of the right shape and type, from which a graph is traced."""
    if header.preprocessing.in_graph:
        return torch.zeros(batch, header.height, header.width, 3, dtype=torch.uint8)
    return torch.zeros(batch, 3, header.height, header.width)


def dynamic_batch() -> dict[int, Any]:
    """Return the dynamic dimensions of the input: the batch."""
    return {0: torch.export.Dim("batch", min=1)}
