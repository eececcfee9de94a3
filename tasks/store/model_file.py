"""The model file: safetensors weights with the architecture and the input size in the header. Nothing is unpickled."""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict
from safetensors import torch as tensors
from torch import nn

from pul_core.learning.backbone import architecture, build_backbone
from pul_core.settings import Model, Pool
from tasks.store.artifacts import Artifact, read_bytes, write_bytes


class ModelConfig(BaseModel):
    """What the header of the file states: settings of `pul_core.settings.Model` by name. Those that have their defaults are left out."""

    model_config = ConfigDict(frozen=True)

    backbone: str
    height: int
    width: int
    pool: Pool = Model.pool
    last_stride: Literal[1, 2] = Model.last_stride
    neck: bool = Model.neck
    flip: bool = Model.flip


def write_model(backbone: nn.Module, config: ModelConfig) -> Artifact:
    """Write the weights of a backbone with its config in the header."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    # A single metadata entry, because safetensors writes several in random order, which would change the digest.
    return write_bytes("models", "safetensors", len(state), tensors.save(state, {"pul": config.model_dump_json(exclude_defaults=True)}))


def read_model(artifact: Artifact) -> tuple[nn.Module, ModelConfig]:
    """Build the backbone of a model artifact.

    Raises:
        DamagedArtifactError: it is missing or damaged.
    """
    return read_model_bytes(read_bytes(artifact))


def read_model_bytes(data: bytes) -> tuple[nn.Module, ModelConfig]:
    """Build the backbone of a model file of this project from the file's bytes."""
    config = read_model_config(data)
    backbone = build_backbone(**architecture(config), initialise=False)
    backbone.load_state_dict(tensors.load(data))
    return backbone, config


def model_size(artifact: Artifact) -> dict[str, int]:
    """Return the input size of a model: height and width in pixels. Only the header of the file is read."""
    length = 8 + int.from_bytes(read_bytes(artifact, 8), "little")
    return read_model_config(read_bytes(artifact, length)).model_dump(include={"height", "width"})


def read_model_config(data: bytes) -> ModelConfig:
    """Return the config in the header of a model file of this project."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return ModelConfig.model_validate_json(header["__metadata__"]["pul"])
