"""`pul data`: look at data sets. Arguments in, findings out."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tasks.data_check import Report

data = typer.Typer(help="Look at data sets before anything is run on them.", no_args_is_help=True)
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
    from tasks.contact_sheet import SHEET_SUFFIXES, write_sheet
    from tasks.data_check import check_path

    if sheet and sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise typer.BadParameter(f"--sheet wants a file that ends in {' or '.join(SHEET_SUFFIXES)}, not {sheet}")
    _show_progress()
    report, images = check_path(path, layout, pattern)
    typer.echo(json.dumps(report.model_dump(), indent=2) if as_json else _text(report))
    if sheet and images:
        write_sheet(images, sheet)
    raise typer.Exit(EXIT_CODES[report.verdict])


def _show_progress() -> None:
    """Let the scan's progress be seen, on stderr."""
    logger = logging.getLogger("pul")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)


def _text(report: "Report") -> str:
    told = {name: "not told" if count is None else f"{count:,}" for name, count in (("i", report.identities), ("c", report.cameras))}
    lines = [
        _printable(report.path),
        f"layout      {report.layout or 'none'}",
        f"images      {report.images:,} ({', '.join(f'{count:,} {split}' for split, count in report.splits.items())})",
        f"identities  {told['i']}",
        f"cameras     {told['c']}",
    ]
    lines += [f"{name:<11} {spread.min:,} / {spread.median:,.0f} / {spread.max:,}" for name, spread in report.sizes.items()]
    if report.sizes:
        lines[-len(report.sizes)] += "  (smallest / median / largest)"
    for finding in report.findings:
        lines += ["", f"{finding.severity}: {finding.code}, {finding.count:,}: {_printable(finding.advice)}"]
        lines += [f"    {_printable(example)}" for example in finding.examples]
        lines += ["    ..."] if 0 < len(finding.examples) < finding.count else []
    return "\n".join([*lines, "", f"verdict: {report.verdict}"])


def _printable(text: str) -> str:
    """Keep a name with a line feed in it on one line."""
    return text if text.isprintable() else ascii(text)
