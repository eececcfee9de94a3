"""Console tables: titles and rows of text rendered with rich, as plain text that is the same on a terminal and in a pipe."""

import io
from collections.abc import Collection, Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

# The columns of a table of iterations: the key of each metric, and its title.
ITERATION_COLUMNS = {
    "iteration": "iteration",
    "reliable_set_size": "reliable",
    "num_clusters": "clusters",
    "rank_1": "rank-1",
    "mAP": "mAP",
    "seconds": "seconds",
}
SHARES = ("rank_1", "rank_5", "rank_10", "mAP", "mAP_trapezoidal", "mINP", "reliable_fraction", "reliable_overlap", "clustered")


def iteration_cells(metrics: Mapping[str, float | None]) -> list[str]:
    """Return the cells of an iteration, one for each of `ITERATION_COLUMNS`; a metric that it does not have is "-".

    Example:
        >>> iteration_cells({"iteration": 0, "rank_1": 0.4561, "mAP": 0.3, "seconds": 71.8})
        ['0', '-', '-', '45.6 %', '30.0 %', '72']
    """
    return [format_metric(metric, metrics.get(metric)) for metric in ITERATION_COLUMNS]


def format_metric(name: str, value: float | None) -> str:
    """Return the value of a metric as the text of a cell: a share in percent, a number without decimals, or "-" if it is unknown.

    Example:
        >>> format_metric("mINP", 0.0421), format_metric("num_clusters", 1561.0), format_metric("mAP", None)
        ('4.2 %', '1,561', '-')
    """
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if name in SHARES else f"{value:,.0f}"


def render_table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[str] = ()) -> str:
    """Render a table without colours; columns are as wide as their widest cell, whatever the width of the terminal.

    Args:
        titles: the title of each column.
        rows: the cells of each row, one per column.
        left: the titles of columns that are aligned to the left; the others hold numbers and are aligned to the right.

    Example:
        >>> print(render_table(["metric", "plain"], [["rank-1", "51.2 %"], ["mAP", "9.8 %"]], left=["metric"]))
        metric |  plain
        -------+-------
        rank-1 | 51.2 %
        mAP    |  9.8 %
    """
    columns = [Column(Text(title), justify="left" if title in left else "right", no_wrap=True) for title in titles]
    table = Table(*columns, box=box.ASCII, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))  # not str: rich parses [...] in a str as markup
    text = io.StringIO()
    Console(file=text, width=100_000, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
