"""`pul embed`: writes the features of a folder of crops to a Parquet file."""

from pathlib import Path
from typing import Annotated

import typer

from deployments.arguments import Device, Layout, Pattern, Threads, Verbose, absolute_path, check_output
from deployments.display import display
from deployments.errors import escape_unprintable, quieten
from tasks.engine.status import activity


def embed_command(
    model: Annotated[
        str,
        typer.Argument(
            parser=absolute_path, help="A folder or file of pul export, the name of a run, RUN/iteration=N, a model file, or an MLflow URI."
        ),
    ],
    folder: Annotated[str, typer.Argument(parser=absolute_path, help="A folder of crops, or any data set that pul run accepts.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write: path, camera, feature.")] = Path("features.parquet"),
    layout: Layout = None,
    pattern: Pattern = None,
    device: Device = None,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Compute the features of any folder with any model.

    \b
    pul embed amber-fox crops/ --out features.parquet
    pul embed model/model.onnx crops/ --pattern '(?P<camera>[^/]+)/'
    """  # noqa: D301 \b keeps the lines of the examples
    check_output(out, "--out")
    quieten()
    with display("embed", verbose=verbose):
        with activity("load the libraries"):
            from tasks.export.embed import embed_folder
        embedded = embed_folder(model, folder, str(out), layout=layout, pattern=pattern, device=device, threads=threads)
    typer.echo(f"{embedded.rows:,} images in {out}")
    for path, reason in list(embedded.skipped.items())[:10]:
        typer.echo(f"skipped {escape_unprintable(path)}: {reason}", err=True)
    if len(embedded.skipped) > 10:
        typer.echo(f"skipped {len(embedded.skipped) - 10:,} more", err=True)
