"""Features of images by timm and the package reid from an exported safetensors file; run by the interpreter of .venv-peers."""

import json
import sys
import warnings

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

warnings.filterwarnings("ignore")

from reid import ReIDModel  # noqa: E402
from reid.preprocessing import ReIDPreprocessing  # noqa: E402


def with_timm(path, header, images):
    backbone = timm.create_model(header["backbone"], num_classes=0)
    backbone.load_state_dict(load_file(path))
    size = header["width"], header["height"]
    pixels = np.stack([np.asarray(Image.open(image).resize(size, Image.Resampling.BILINEAR), np.float32) / 255 for image in images])
    mean, std = header["preprocessing"]["mean"], header["preprocessing"]["std"]
    with torch.inference_mode():
        return backbone.eval()(torch.from_numpy((pixels - mean) / std).float().permute(0, 3, 1, 2)).numpy()


def with_reid(path, header, images):
    preprocessing = ReIDPreprocessing(input_size=(header["height"], header["width"]))
    model = ReIDModel.from_pretrained(path, architecture=f"timm:{header['backbone']}", preprocessing=preprocessing, device="cpu")
    return model.extract_embeddings_from_paths(images)


def main(path, target, *images):
    with safe_open(path, "np") as file:
        header = json.loads(file.metadata()["pul"])
    np.savez(target, timm=with_timm(path, header, images), reid=with_reid(path, header, list(images)))


if __name__ == "__main__":
    main(*sys.argv[1:])
