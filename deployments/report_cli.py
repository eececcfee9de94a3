"""`pul report` writes a report of runs as an HTML file; `pul compare` puts runs side by side."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.arguments import check_output
from deployments.errors import quieten, user_message
from deployments.servers import prepare_flow_run
from deployments.tables import render_table
from pul_core.errors import UserError
from tasks.store.home import home, user_path

if TYPE_CHECKING:
    from tasks.report.run_data import RunData


def report_command(
    runs: Annotated[list[str] | None, typer.Argument(help="Ids or unique names of runs; default the newest one.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; default report.html in the folder of the run.")] = None,
    with_images: Annotated[
        bool, typer.Option("--with-images", help="Show pictures of the target: clusters as contact sheets, ranked lists.")
    ] = False,
) -> None:
    """Write a report of a run as one HTML file.

    The file loads nothing from elsewhere. It is also logged to MLflow, and linked from the run's page in Prefect. Several runs are shown
    side by side first. docs/report.md explains every part.

    \b
    pul report
    pul report amber-fox --with-images --out amber-fox.html
    pul report amber-fox calm-owl
    """  # noqa: D301 \b keeps the lines of the examples
    from tasks.report.build import report_page
    from tasks.report.page import require_packages
    from tasks.report.run_data import read_run

    quieten()
    require_packages()
    if out:
        check_output(out, "--out")
    read = [read_run(run) for run in runs] if runs else [read_run(None)]
    file = _output(out, [run.id for run in read])
    _publish(read, file, report_page(read, with_images=with_images))


def compare_command(
    runs: Annotated[list[str], typer.Argument(help="Ids or unique names of at least two runs.")],
    out: Annotated[Path | None, typer.Option(help="Also write the comparison as an HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the titles and rows of the tables.")] = False,
) -> None:
    """Compare runs: scores, gains over direct transfer, and the parameters that differ.

    \b
    pul compare amber-fox calm-owl
    pul compare amber-fox calm-owl --out comparison.html
    """  # noqa: D301 \b keeps the lines of the examples
    from tasks.report.build import comparison_page
    from tasks.report.compare import comparability, comparison_table, differences_table
    from tasks.report.page import require_packages
    from tasks.report.run_data import read_run

    quieten()
    if out:
        require_packages()
        check_output(out, "--out")
    read = [read_run(run) for run in runs]
    if len({run.id for run in read}) < 2:
        raise UserError("a comparison needs at least two different runs: pul compare RUN RUN")
    tables = comparison_table(read), differences_table(read)
    if as_json:
        typer.echo(json.dumps({name: table._asdict() for name, table in zip(("runs", "differences"), tables, strict=True)}, indent=2))
    else:
        plain = str.maketrans({"\N{NO-BREAK SPACE}": " ", "–": "-"})
        cells = [[[cell.translate(plain) for cell in row] for row in table.rows] for table in tables]
        texts = [render_table(table.titles, rows, left=table.left) for table, rows in zip(tables, cells, strict=True) if rows]
        typer.echo("\n\n".join(texts))
        typer.echo(comparability(read))
    if out:
        _publish(read, user_path(str(out)), comparison_page(read), to_stderr=as_json)


def _output(out: Path | None, run_ids: list[str]) -> Path:
    """Return the file of a report: the one that was asked for, or one in ``$PUL_HOME``."""
    if out:
        return user_path(str(out))
    if len(run_ids) == 1:
        return home() / "runs" / run_ids[0] / "report.html"
    return home() / "reports" / f"{hashlib.sha256(' '.join(run_ids).encode()).hexdigest()[:12]}.html"


def _publish(read: "list[RunData]", file: Path, page: str, *, to_stderr: bool = False) -> None:
    """Write, log and link a report, and print where it is; a report that cannot be linked is still there."""
    from tasks.report.publish import link_report, log_report, write_report

    write_report(file, page)
    log_report(read, file, page)
    try:
        prepare_flow_run(only_warnings=True)
        link_report(read, file)
    except Exception as error:
        typer.echo(f"the report is not linked from Prefect: {user_message(error) or type(error).__name__}", err=True)
    typer.echo(f"{file}  ({len(page) / 1e6:.1f} MB)", err=to_stderr)
