"""Console tables: titles and rows of text rendered with rich, as plain text that is the same on a terminal and in a pipe."""

import io
from collections.abc import Collection, Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text


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
