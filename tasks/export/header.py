"""The header of an exported file: what a program needs to know to use it. It is stored in the metadata of each file, as JSON."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pul_core.learning.backbone import IMAGENET_MEAN, IMAGENET_STD
from tasks.store.licences import Licence
from tasks.store.model_file import ModelConfig

Format = Literal["onnx", "torch-export", "safetensors", "openvino"]
KEY = "pul"  # of the metadata; a model file of this project has the same key: an exported safetensors file is one, too, unless whitened
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors", "openvino": ".xml"}


class Preprocessing(BaseModel):
    """How a crop becomes the input. With ``in_graph`` only resizing is left to the caller, otherwise also (pixel / 255 - mean) / std."""

    model_config = ConfigDict(frozen=True)

    in_graph: bool
    resize: str = "bilinear, antialiased, aspect ratio not kept (Pillow's Image.resize with BILINEAR)"
    colours: Literal["RGB"] = "RGB"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


class ExportHeader(ModelConfig):
    """The config of the model, format, input and output of an exported file, the camera that it is for, licences and the model card.

    With ``flip``, a feature is the mean of those of an image and of its mirror image. A graph computes this mean; a safetensors file holds
    weights only, and leaves it to the program that loads them.
    """

    format: Format
    precision: Literal["float32", "int8"] = "float32"
    input: str = "images"
    input_shape: tuple[str | int, ...] = ()
    input_dtype: Literal["uint8", "float32"] = "uint8"
    output: str = "features"
    dimensions: int  # d of the features
    l2: bool  # whether the features have length 1
    whitened: bool = False  # whether the network has a last linear layer, the tensors "whitening.weight" and "whitening.bias"
    preprocessing: Preprocessing
    camera: str | None = None  # the name of the camera; None: all cameras, or all that have no file of their own
    licence: Licence = Licence()  # where a model file of this project has it
    card: dict[str, Any]
