"""Safetensors: the plain weights, which timm, the package reid and this project load into a backbone of their own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as tensors

from pul_core.arrays import Features
from pul_core.learning.deployed import DeployedModel
from tasks.export.header import KEY, ExportHeader
from tasks.export.metadata import not_a_model, parse_header


def write_safetensors(model: DeployedModel, header: ExportHeader, path: Path) -> None:
    """Write the weights of the backbone under timm's names, with the header in the metadata."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.backbone.state_dict().items()}
    tensors.save_file(state, path, {KEY: header.model_dump_json()})


def open_safetensors(path: Path, threads: int | None) -> tuple[ExportHeader, Callable[[np.ndarray], Features]]:
    """Load a safetensors file into timm's backbone; returns its header and the function from pixels (n, 3, h, w) to features.

    Raises:
        DataError: the file is damaged or was not exported by this project.
    """
    try:
        with safe_open(path, "pt") as file:
            header = parse_header(path, (file.metadata() or {}).get(KEY))
        backbone = timm.create_model(header.backbone, pretrained=False, num_classes=0, global_pool="avg")
        backbone.load_state_dict(tensors.load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise not_a_model(path, error) from error
    backbone.eval()
    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> Features:
        features: Features = backbone(torch.from_numpy(pixels)).numpy()
        return features

    return header, run
