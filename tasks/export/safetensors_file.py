"""Safetensors: the weights, which this project loads, and timm and reid if it has their pooling and strides, no neck and no whitening."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as tensors

from pul_core.arrays import Features
from pul_core.learning.backbone import architecture, build_backbone
from pul_core.learning.deployed import DeployedModel, add_whitening
from tasks.export.header import KEY, ExportHeader
from tasks.export.metadata import not_a_model, parse_header


def write_safetensors(model: DeployedModel, header: ExportHeader, path: Path) -> None:
    """Write the weights of the backbone under the names of its own tensors, which are timm's, with the header in the metadata."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.backbone.state_dict().items()}
    tensors.save_file(state, path, {KEY: header.model_dump_json()})


def open_safetensors(path: Path, threads: int | None) -> tuple[ExportHeader, Callable[[np.ndarray], Features]]:
    """Load a safetensors file into the backbone that its header states; returns the header and the function from pixels to features.

    The function takes pixels (n, 3, h, w), and averages features with those of mirror images if the header states ``flip``.

    Raises:
        DataError: the file is damaged or was not exported by this project.
    """
    try:
        with safe_open(path, "pt") as file:
            header = parse_header(path, (file.metadata() or {}).get(KEY))
        backbone = build_backbone(**architecture(header), initialise=False)
        if header.whitened:
            add_whitening(backbone)
        backbone.load_state_dict(tensors.load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise not_a_model(path, error) from error
    model = DeployedModel(backbone, preprocess=False, flip=header.flip, l2=False).eval()
    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> Features:
        features: Features = model(torch.from_numpy(pixels)).numpy()
        return features

    return header, run
