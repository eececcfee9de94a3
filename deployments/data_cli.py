"""The `pul data ...` commands: check a data set, or convert one before a run."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.arguments import check_output
from pul_core.errors import UserError

if TYPE_CHECKING:
    from tasks.data.check import Report

data_app = typer.Typer(help="Check a data set, or prepare one for a run.", rich_markup_mode=None)
EXIT_CODES = {"sound": 0, "usable": 1, "unusable": 2}


@data_app.callback(invoke_without_command=True)
def print_help(context: typer.Context) -> None:
    """Print the help where there is no command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@data_app.command("check")
def check_command(
    path: Annotated[str, typer.Argument(help="A data set: a folder, or anything that `pul run` accepts as source or target.")],
    layout: Annotated[str | None, typer.Option(help="The layout of the data set; detected by default.")] = None,
    pattern: Annotated[str | None, typer.Option(help="A regular expression with named groups for the file names.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; docs/data-check.md lists its keys.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet with crops of each camera to this .png or .jpg file.")] = None,
) -> None:
    """Report what a data set contains, its problems and how to fix them; exit code 0 sound, 1 usable with warnings, 2 unusable."""
    from tasks.data.contact_sheet import SHEET_SUFFIXES, write_sheet
    from tasks.preflight import check_path

    if sheet and sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise typer.BadParameter(f"--sheet must be a file that ends in {' or '.join(SHEET_SUFFIXES)}, got {sheet}")
    if sheet:
        check_output(sheet, "--sheet")
    _log_progress()
    report, images = check_path(path, layout, pattern)
    typer.echo(json.dumps(report.model_dump(), indent=2) if as_json else _report_text(report))
    if sheet and images:
        write_sheet(images, sheet)
    raise typer.Exit(EXIT_CODES[report.verdict])


@data_app.command("crop")
def crop_command(
    sequences: Annotated[list[Path], typer.Argument(help="MOT Challenge folders: img1/, det/det.txt or gt/gt.txt, seqinfo.ini.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")],
    boxes: Annotated[str | None, typer.Option(help="det or gt; default det if det/det.txt exists. Only gt has identities.")] = None,
    min_height: Annotated[int, typer.Option(min=1, help="Minimum height of a crop in pixels.")] = 64,
    min_confidence: Annotated[float, typer.Option(help="Minimum confidence of a detected box.")] = 0.5,
    every: Annotated[int, typer.Option(min=1, help="Use every N-th frame, starting with the first.")] = 1,
) -> None:
    """Crop people from video frames by detector boxes, with camera and time: OUT/manifest.parquet is a target."""
    from tasks.data.crops import crop_sequences

    if boxes not in (None, "det", "gt"):
        raise UserError(f"--boxes must be det or gt, got {boxes!r}")
    check_output(out, "--out")
    counts = crop_sequences(sequences, out, boxes=boxes, min_height=min_height, min_confidence=min_confidence, every=every)
    note = f" ({counts['too_small']:,} boxes were too small)" if counts["too_small"] else ""
    typer.echo(f"{counts['crops']:,} crops from {counts['frames']:,} frames{note}\nthe target of a run: pul run --target {out}")


@data_app.command("extract")
def extract_command(
    mat: Annotated[Path, typer.Argument(help="cuhk-03.mat of CUHK03.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")],
) -> None:
    """Extract the images of cuhk-03.mat, with a manifest for every protocol and kind of boxes."""
    from tasks.data.cuhk03 import extract_cuhk03

    check_output(out, "--out")
    names = extract_cuhk03(mat, out)
    typer.echo(f"{len(names)} manifests in {out}, from {names[0]} to {names[-1]}")
    if not any(name.endswith("-new.parquet") for name in names):
        typer.echo("without the new protocol: cuhk03_new_protocol_config_*.mat are not beside cuhk-03.mat", err=True)


def _log_progress() -> None:
    """Print the progress of the scan to stderr."""
    logger = logging.getLogger("pul")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)


def _report_text(report: "Report") -> str:
    from deployments.errors import escape_unprintable

    identities, cameras = ("unknown" if count is None else f"{count:,}" for count in (report.identities, report.cameras))
    lines = [
        escape_unprintable(report.path),
        f"layout      {report.layout or 'none'}",
        f"images      {report.images:,} ({', '.join(f'{count:,} {split}' for split, count in report.splits.items())})",
        f"identities  {identities}",
        f"cameras     {cameras}",
    ]
    lines += [f"{name:<11} {spread.min:,} / {spread.median:,.0f} / {spread.max:,}" for name, spread in report.sizes.items()]
    if report.sizes:
        lines[-len(report.sizes)] += "  (smallest / median / largest)"
    for finding in report.findings:
        lines += ["", f"{finding.severity}: {finding.code}, {finding.count:,}: {escape_unprintable(finding.advice)}"]
        lines += [f"    {escape_unprintable(example)}" for example in finding.examples]
        lines += ["    ..."] if 0 < len(finding.examples) < finding.count else []
    return "\n".join([*lines, "", f"verdict: {report.verdict}"])
