"""The `pul data` commands: check a data set, crop people from video, extract CUHK03."""

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.arguments import Layout, Pattern, check_output
from deployments.errors import escape_unprintable
from pul_core.errors import UserError

if TYPE_CHECKING:
    from tasks.data.check import Report

data_app = typer.Typer(help="Check a data set, or prepare one for a run.", rich_markup_mode=None)
EXIT_CODES = {"sound": 0, "usable": 1, "unusable": 2}


@data_app.callback(invoke_without_command=True)
def print_help(context: typer.Context) -> None:
    """Print the help and exit with code 2 if no command is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@data_app.command("check")
def check_command(
    path: Annotated[str, typer.Argument(help="Anything that `pul run` accepts as a source or target, e.g. a folder.")],
    layout: Layout = None,
    pattern: Pattern = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; docs/data-check.md lists its keys.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet with crops of each camera to this .png or .jpg file.")] = None,
) -> None:
    """Report the contents of a data set and its problems.

    The exit code is 0 for a sound data set, 1 for a usable one with warnings, and 2 for an unusable one.
    """
    from tasks.data.contact_sheet import SHEET_SUFFIXES, write_sheet
    from tasks.preflight import check_path

    if sheet and sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise typer.BadParameter(f"--sheet must be a file that ends in {' or '.join(SHEET_SUFFIXES)}, got {sheet}")
    if sheet:
        check_output(sheet, "--sheet")
    logger = logging.getLogger("pul")  # reports the progress of the scan
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Prefect's handler of the root logger would print each line again
    report, images = check_path(path, layout, pattern)
    typer.echo(json.dumps(report.model_dump(), indent=2) if as_json else _report_text(report))
    if sheet and images:
        write_sheet(images, sheet)
        typer.echo(f"contact sheet  {sheet}", err=as_json)
    raise typer.Exit(EXIT_CODES[report.verdict])


@data_app.command("crop")
def crop_command(
    sequences: Annotated[
        list[Path], typer.Argument(help="Folders in MOT Challenge format: img1/, seqinfo.ini, and det/det.txt or gt/gt.txt.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")],
    boxes: Annotated[
        str | None, typer.Option(help="Detections (det) or ground truth (gt, with identities); default det if det/det.txt exists.")
    ] = None,
    min_height: Annotated[int, typer.Option(min=1, help="The minimum height of a crop in pixels.")] = 64,
    min_confidence: Annotated[float, typer.Option(help="The minimum confidence of a detected box.")] = 0.5,
    every: Annotated[int, typer.Option(min=1, help="Use every N-th frame, starting with the first.")] = 1,
) -> None:
    """Crop people from video frames by their bounding boxes.

    OUT/manifest.parquet lists the crops with camera and time; OUT can be the target of a run.
    """
    from tasks.data.crops import crop_sequences, describe_removed

    if boxes not in (None, "det", "gt"):
        raise UserError(f"--boxes must be det or gt, got {boxes!r}")
    if not math.isfinite(min_confidence):
        raise UserError(f"--min-confidence must be a number such as 0.5, got {min_confidence}")
    check_output(out, "--out")
    done = crop_sequences(sequences, out, boxes=boxes, min_height=min_height, min_confidence=min_confidence, every=every)
    for note in done.notes:
        typer.echo(escape_unprintable(note), err=True)
    left_out = f"; of {done.boxes:,} boxes {describe_removed(done.removed)}" if done.removed.total() else ""
    typer.echo(f"{done.crops:,} crops from {done.frames:,} frames{left_out}\nthe target of a run: pul run --target {out}")


@data_app.command("extract")
def extract_command(
    mat: Annotated[Path, typer.Argument(help="The file cuhk-03.mat.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")],
) -> None:
    """Extract the images of CUHK03 from cuhk-03.mat.

    Writes a manifest for each protocol and each kind of bounding boxes.
    """
    from tasks.data.cuhk03 import extract_cuhk03

    check_output(out, "--out")
    names = extract_cuhk03(mat, out)
    typer.echo(f"{len(names)} manifests in {out}, from {names[0]} to {names[-1]}")
    if not any(name.endswith("-new.parquet") for name in names):
        typer.echo("no manifests of the new protocol: copy cuhk03_new_protocol_config_*.mat to the folder of cuhk-03.mat", err=True)


def _report_text(report: "Report") -> str:
    if not report.images:  # it could not be indexed, and the only finding says why
        return f"error: {escape_unprintable(report.findings[0].advice)}\n\nverdict: {report.verdict}"
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
