"""What is typed after `pul`, made into parameters of a flow."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pul_core.errors import UserError

# Options that mean the same in several commands.
Source = Annotated[list[str] | None, typer.Option(help="Labelled images to train the original model on; may be given again.")]
OriginalModel = Annotated[str | None, typer.Option(help="Instead of a source: a model file, or an earlier run's name.")]
Weights = Annotated[str | None, typer.Option(help="imagenet (default, timm's hub), imagenet-packaged, random, or a file.")]
Size = Annotated[str | None, typer.Option(help="Input size in pixels, height x width, e.g. 256x128.")]
Device = Annotated[str | None, typer.Option(help="A torch device; default the first GPU if there is one.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default one a core.")]


def absolute(path: str | None) -> str | None:
    """Make a path mean the same from anywhere; what is no existing path (synthetic:0/target, a run's name, imagenet) stays as it is."""
    return str(Path(path).expanduser().resolve()) if path and Path(path).expanduser().exists() else path


def height_and_width(text: str) -> tuple[int, int]:
    """Read 256x128 as height and width in pixels."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise UserError(f"--size is height x width in pixels, e.g. 256x128, not {text!r}")
    return int(height), int(width)


def how_to_read(*, layout: str | None, pattern: str | None, backbone: str | None, size: str | None) -> dict[str, Any]:
    """Return what was said of how images lie and what a model file is, without what was not."""
    said: dict[str, Any] = {"layout": layout, "pattern": pattern, "backbone": backbone}
    said |= dict(zip(("height", "width"), height_and_width(size), strict=True)) if size else {}
    return {name: value for name, value in said.items() if value is not None}


def few_labels(text: str) -> dict[str, Any]:
    """Read 25 as a number of identities, 10% as a share of them, and anything else as a file."""
    if text.isdigit():
        return {"identities": int(text)}
    if text.endswith("%") and text[:-1].replace(".", "", 1).isdigit():
        return {"share": float(text[:-1]) / 100}
    return {"file": absolute(text)}


def read_config(path: Path) -> dict[str, Any]:
    """Read parameters from a JSON file."""
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no config of a run: {error}") from error
    return loaded


def assignment(text: str) -> tuple[str, Any]:
    """Read name=value; a value that is no JSON is text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set wants name=value, e.g. fine_tuning.epochs=4, not {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def put(parameters: dict[str, Any], key: str, value: Any) -> None:
    """Set ``section.name`` or a name without a section."""
    section, dot, name = key.partition(".")
    if dot:
        parameters.setdefault(section, {})[name] = value
    else:
        parameters[section] = value
