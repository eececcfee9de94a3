"""The header of an exported file: what a program needs to know to use it. It is stored in the metadata of each file, as JSON."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pul_core.learning.backbone import IMAGENET_MEAN, IMAGENET_STD

Format = Literal["onnx", "torch-export", "safetensors", "openvino"]
KEY = "pul"  # of the metadata; a model file of this project has the same key, so that an exported safetensors file is one, too
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors", "openvino": ".xml"}


class Preprocessing(BaseModel):
    """How a crop becomes the input. With ``in_graph`` only resizing is left to the caller, otherwise also (pixel / 255 - mean) / std."""

    model_config = ConfigDict(frozen=True)

    in_graph: bool
    resize: str = "bilinear, antialiased, aspect ratio not kept (Pillow's Image.resize with BILINEAR)"
    colours: Literal["RGB"] = "RGB"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


class ExportHeader(BaseModel):
    """Format, input and output of an exported file, the camera that it is for, and the model card."""

    model_config = ConfigDict(frozen=True)

    backbone: str
    height: int  # of the input, in pixels
    width: int
    format: Format
    precision: Literal["float32", "int8"] = "float32"
    input: str = "images"
    input_shape: tuple[str | int, ...] = ()
    input_dtype: Literal["uint8", "float32"] = "uint8"
    output: str = "features"
    dimensions: int  # d of the features
    l2: bool  # whether the features have length 1
    preprocessing: Preprocessing
    camera: str | None = None  # the name of the camera; None: all cameras, or all that have no file of their own
    card: dict[str, Any]
