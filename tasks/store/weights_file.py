"""Weights files of any project: reads their tensors without running code from them, and says what a file is that has none.

The format is read from the content, not from the name.
"""

import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar as np_scalar
from safetensors import SafetensorError, safe_open
from safetensors import torch as tensors

from pul_core.errors import DataError

# The beginning of files that are not weights: what they are, and what to do.
OTHER_FILES = {
    rb"$": "is empty: copy or download it again",
    rb"version https://git-lfs": "is a Git LFS pointer instead of the weights: fetch them with git lfs pull",
    rb"(\xef\xbb\xbf)?\s*<": "is a web page instead of the weights: download the file itself, e.g. in a browser",
    rb"\s*[\[{]": "is a JSON text instead of the weights: give the file of the weights",
    rb"\x89HDF": "is an HDF5 file (Keras): convert the weights to a PyTorch state dict or safetensors",
    rb"\x93NUMPY": "is a NumPy array: convert the weights to a PyTorch state dict or safetensors",
    rb"\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd": "is a compressed archive: unpack it, and give the file in it",
    rb"\x08[\x01-\x20]\x12": "is an ONNX model: give the PyTorch checkpoint that it was exported from",
}
# torchreid's checkpoints contain their rank-1 as a NumPy number, whose types have to be allowed.
NUMBERS: list[Any] = [np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, type(np.float64(0)), np_scalar]


class Placeholder(dict[Any, Any]):
    """Takes the place of every object in a checkpoint that is neither a tensor nor a plain value; nothing of it is run."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        """Ignore the state."""


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as a safetensors file: the length of a JSON header, and the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file; an empty dict for other files.

    Raises:
        DataError: it is a damaged safetensors file.
    """
    if not is_safetensors(path):
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise DataError(f"{path} is a damaged or incomplete safetensors file ({error}): copy or download it again") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in a file by name; a nested tensor is named by its path, joined by dots.

    Raises:
        DataError: the file is missing, damaged, or is not a file of tensors.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist: give a file of weights")
    if is_safetensors(path):
        read_metadata(path)
        return tensors.load_file(path)
    _refuse_other_files(path)
    if zipfile.is_zipfile(path):
        with torch.serialization.safe_globals(NUMBERS):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        loaded = _load(path, [*NUMBERS, *((Placeholder, name) for name in names)], mmap=path.suffix != ".safetensors")
    else:
        names = []
        loaded = _load(path, NUMBERS, mmap=False)
    named_tensors = dict(_nested_tensors(loaded))
    if not named_tensors and names:
        raise DataError(
            f"{path} holds pickled objects ({', '.join(sorted(names)[:3])}) and no named tensors: in the project that wrote it, save "
            "model.state_dict() instead of the model"
        )
    if not named_tensors:
        raise DataError(f"{path} has no named tensors: give the checkpoint of a model")
    return named_tensors


def _load(path: Path, allowed: list[Any], *, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals(allowed), path.open("rb") as file:  # torch.load reads what is named *.safetensors as that
            return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many kinds of errors for files that are not checkpoints
        if unsupported := re.search(r"GLOBAL (\S+)", str(error)):
            raise DataError(
                f"{path} holds pickled objects ({unsupported[1]}), which are not loaded: in the project that wrote it, save "
                "model.state_dict() instead of the model"
            ) from error
        raise DataError(f"{path} is not a checkpoint of PyTorch or is incomplete ({type(error).__name__}): download it again") from error


def _refuse_other_files(path: Path) -> None:
    """Raise a DataError that says what a file is, if it is recognised and is not a checkpoint."""
    with path.open("rb") as file:
        start = file.read(512)
    for pattern, problem in OTHER_FILES.items():
        if re.match(pattern, start):
            raise DataError(f"{path} {problem}")
    if path.suffix == ".onnx":
        raise DataError(f"{path} is an ONNX model: give the PyTorch checkpoint that it was exported from")
    if start.startswith(b"PK"):
        _refuse_other_zips(path)
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            names = [name for name in archive.getnames() if not name.rpartition("/")[2].startswith(".")]
        if "storages" in names:
            raise DataError(f"{path} was written by PyTorch before 0.2: load it there, and save model.state_dict() with a newer one")
        raise DataError(f"{path} is a tar archive of {', '.join(names[:3])}: unpack it, and give the file of the weights")


def _refuse_other_zips(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is incomplete, its end is missing: copy or download it again")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        raise DataError(
            f"{path} is a TorchScript archive: save its weights with torch.save(torch.jit.load(FILE).state_dict(), NEW), and give that file"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise DataError(f"{path} is a zip archive of {', '.join(names[:3])}: unpack it, and give the file of the weights")


def _nested_tensors(value: Any, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield place.removesuffix("."), value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _nested_tensors(part, f"{place}{key}.")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _nested_tensors(part, f"{place}{number}.")
