"""The options of an export, and the checks that need no model."""

from pathlib import Path
from typing import NamedTuple

from pul_core.errors import UserError
from tasks.export.header import SUFFIXES, Format

MANIFEST = "export.json"


class Options(NamedTuple):
    """What to export."""

    format: Format = "onnx"
    l2: bool = False
    in_graph: bool = True  # preprocessing in the graph
    int8: bool = False
    threads: int | None = None
    target: str | None = None  # other images in the place of the run's target; statistics by camera are estimated from them
    layout: str | None = None  # of these images
    pattern: str | None = None  # of these images


def check_options(options: Options) -> None:
    """Check that a format supports the options.

    Raises:
        UserError: it does not.
    """
    if options.format not in SUFFIXES:
        raise UserError(f"--format must be one of {', '.join(SUFFIXES)}, got {options.format!r}")
    if options.format == "safetensors" and options.l2:
        raise UserError("--l2 requires a graph, but safetensors files hold weights only: choose another format, or normalise the features")
    if options.int8 and options.format != "onnx":
        raise UserError(f"--int8 requires --format onnx, got {options.format}: leave one of the two out")


def check_folder(folder: Path) -> None:
    """Check that a folder is missing, empty, or holds an earlier export.

    Raises:
        UserError: it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise UserError(f"--out {folder} holds other files: give an empty folder, or one that does not exist")
