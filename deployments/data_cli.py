"""The commands `pul data ...`: what can be done with a data set before a run."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pul_core.errors import UserError

if TYPE_CHECKING:
    from tasks.data.check import Report

data = typer.Typer(help="Look at a data set, or make one ready for a run.", no_args_is_help=True, rich_markup_mode=None)
EXIT_CODES = {"sound": 0, "usable": 1, "unusable": 2}


@data.callback()
def _data() -> None:
    pass


@data.command()
def check(
    path: Annotated[str, typer.Argument(help="A data set: a folder, or whatever `pul run` takes as source or target.")],
    layout: Annotated[str | None, typer.Option(help="How the set lies on disk; found out if left out.")] = None,
    pattern: Annotated[str | None, typer.Option(help="A regular expression with named groups, for other people's file names.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs; the keys stand in docs/data-check.md.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of some crops of each camera to this .png or .jpg.")] = None,
) -> None:
    """Say what a data set holds, what is wrong with it and what to do; exit code 0 sound, 1 usable with warnings, 2 unusable."""
    from tasks.data.contact_sheet import SHEET_SUFFIXES, write_sheet
    from tasks.preflight import check_path

    if sheet and sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise typer.BadParameter(f"--sheet wants a file that ends in {' or '.join(SHEET_SUFFIXES)}, not {sheet}")
    _show_progress()
    report, images = check_path(path, layout, pattern)
    typer.echo(json.dumps(report.model_dump(), indent=2) if as_json else _text(report))
    if sheet and images:
        write_sheet(images, sheet)
    raise typer.Exit(EXIT_CODES[report.verdict])


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
    from tasks.data.crops import crop_sequences

    if boxes not in (None, "det", "gt"):
        raise UserError(f"--boxes is det or gt, not {boxes!r}")
    counts = crop_sequences(sequences, out, boxes=boxes, min_height=min_height, min_confidence=min_confidence, every=every)
    note = f" ({counts['too_small']:,} boxes were too small)" if counts["too_small"] else ""
    typer.echo(f"{counts['crops']:,} crops from {counts['frames']:,} frames{note}\nthe target of a run: pul run --target {out}")


@data.command()
def extract(
    mat: Annotated[Path, typer.Argument(help="CUHK03's cuhk-03.mat.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")],
) -> None:
    """Take the images out of cuhk-03.mat, once, with a manifest for every protocol and kind of boxes."""
    from tasks.data.cuhk03 import extract_cuhk03

    names = extract_cuhk03(mat, out)
    typer.echo(f"{len(names)} manifests in {out}, from {names[0]} to {names[-1]}")
    if not any(name.endswith("-new.parquet") for name in names):
        typer.echo("without the new protocol: its files cuhk03_new_protocol_config_*.mat do not lie beside cuhk-03.mat", err=True)


def _show_progress() -> None:
    """Let the scan's progress be seen, on stderr."""
    logger = logging.getLogger("pul")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)


def _text(report: "Report") -> str:
    from deployments.complaints import printable

    told = {name: "not told" if count is None else f"{count:,}" for name, count in (("i", report.identities), ("c", report.cameras))}
    lines = [
        printable(report.path),
        f"layout      {report.layout or 'none'}",
        f"images      {report.images:,} ({', '.join(f'{count:,} {split}' for split, count in report.splits.items())})",
        f"identities  {told['i']}",
        f"cameras     {told['c']}",
    ]
    lines += [f"{name:<11} {spread.min:,} / {spread.median:,.0f} / {spread.max:,}" for name, spread in report.sizes.items()]
    if report.sizes:
        lines[-len(report.sizes)] += "  (smallest / median / largest)"
    for finding in report.findings:
        lines += ["", f"{finding.severity}: {finding.code}, {finding.count:,}: {printable(finding.advice)}"]
        lines += [f"    {printable(example)}" for example in finding.examples]
        lines += ["    ..."] if 0 < len(finding.examples) < finding.count else []
    return "\n".join([*lines, "", f"verdict: {report.verdict}"])
