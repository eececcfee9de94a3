"""The commands `pul data ...`: what can be done with a data set before a run."""

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(help="Make a data set ready for a run.", no_args_is_help=True, rich_markup_mode=None)


@data.callback()
def _data() -> None:
    pass


@data.command()
def crop(
    sequences: Annotated[list[Path], typer.Argument(help="Folders as in the MOT Challenge: img1/, det/det.txt or gt/gt.txt, seqinfo.ini.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")],
    boxes: Annotated[str | None, typer.Option(help="det or gt; default det where there is det/det.txt. Identities are only in gt.")] = None,
    min_height: Annotated[int, typer.Option(min=1, help="Least height of a crop in pixels.")] = 64,
    min_confidence: Annotated[float, typer.Option(help="Least confidence of a detector's box.")] = 0.5,
    every: Annotated[int, typer.Option(min=1, help="Take every so manieth frame, from the first.")] = 1,
) -> None:
    """Cut people out of video frames by a detector's boxes, with camera and time: OUT/manifest.parquet is a target."""
    from tasks.crops import crop_sequences

    if boxes not in (None, "det", "gt"):
        raise ValueError(f"--boxes is det or gt, not {boxes!r}")
    counts = crop_sequences(sequences, out, boxes=boxes, min_height=min_height, min_confidence=min_confidence, every=every)
    note = f" ({counts['too_small']:,} boxes were too small)" if counts["too_small"] else ""
    typer.echo(f"{counts['crops']:,} crops from {counts['frames']:,} frames{note}\nthe target of a run: pul run --target {out}")


@data.command()
def extract(
    mat: Annotated[Path, typer.Argument(help="CUHK03's cuhk-03.mat.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")],
) -> None:
    """Take the images out of cuhk-03.mat, once, with a manifest for every protocol and kind of boxes."""
    from tasks.cuhk03 import extract_cuhk03

    names = extract_cuhk03(mat, out)
    typer.echo(f"{len(names)} manifests in {out}, from {names[0]} to {names[-1]}")
    if not any(name.endswith("-new.parquet") for name in names):
        typer.echo("without the new protocol: its files cuhk03_new_protocol_config_*.mat do not lie beside cuhk-03.mat", err=True)
