"""Renders runs as one self-contained HTML page: the charts' library, data, styles and pictures are inside the file."""

import re
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pul_core.errors import UserError
from pul_core.reporting.verdict import Verdict
from tasks.report.views import ChartView, SectionView
from tasks.store.runs import format_time

TEMPLATES = Path(__file__).parent
MARKER = "pul-reid report"  # `generator` of the page, by which pul purge recognises its files
PACKAGES = {"altair": "altair", "vl_convert": "vl-convert-python"}  # name of each package on PyPI by its module


class Chapter(NamedTuple):
    """A run on the page."""

    run: str
    subtitle: str
    figures: list[tuple[str, str, str]]  # the most important numbers: title, value, remark
    verdict: Verdict
    sections: list[SectionView]


def require_packages() -> None:
    """Check that the optional packages of the report are installed.

    Raises:
        UserError: they are not.
    """
    if missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
        raise UserError(f"the report requires the package {missing[0]}: install the extra with pip install 'pul-reid[report]'")


def render(title: str, overview: SectionView | None, chapters: list[Chapter]) -> str:
    """Return the page.

    Args:
        title: of the page.
        overview: the runs side by side; None for a single run.
        chapters: the runs.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = _with_code
    sections = [
        *([("", overview)] if overview else []),
        *((f"run{n}-", each) for n, chapter in enumerate(chapters) for each in chapter.sections),
    ]
    charts = [_chart(prefix, chart) for prefix, section in sections for chart in section.charts]
    return environment.get_template("report.html").render(
        title=title,
        marker=MARKER,
        made=format_time(datetime.now()),
        overview=overview,
        chapters=chapters,
        charts=charts,
        library=_library(),
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
    )


def _with_code(text: str) -> str:
    """Return a sentence as HTML, with what is in backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _chart(prefix: str, chart: ChartView) -> dict[str, Any]:
    return {"id": f"chart-{prefix}{chart.name}", "spec": chart.spec, "points": chart.points}


def _library() -> str:
    """Return the charts' library, vega-embed with Vega-Lite, as a script that can stand in a page."""
    import altair
    import vl_convert

    version = altair.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
    bundle = vl_convert.javascript_bundle(None, vl_version=version)  # type: ignore[arg-type] # None is the default
    return bundle.replace("</script", "<\\/script")
