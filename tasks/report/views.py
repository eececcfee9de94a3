"""What a page consists of: sections of charts, tables and pictures, as plain values that the template renders."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Mark = Literal["right", "wrong", "ignored", "query", ""]


class TableView(NamedTuple):
    """A table. Columns are aligned to the right unless they are listed in ``left``."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = ()
    note: str = ""
    marks: Sequence[Mark] = ()  # of each row, for its colour
    title: str = ""


class HeatView(NamedTuple):
    """A table whose cells are shaded by a share from 0 to 1; None: not shaded."""

    title: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, float | None]]]]  # name of the row, and the text and share of each cell
    note: str = ""


class ChartView(NamedTuple):
    """A chart, a sentence that describes it, and the same data as a table."""

    name: str  # unique on the page
    title: str
    spec: dict[str, Any]  # Vega-Lite
    description: str
    table: TableView | None
    points: dict[str, Any] | None = None  # of the map, whose table is built when it is opened


class PictureView(NamedTuple):
    """A picture as a data URI; empty if it cannot be shown."""

    uri: str
    caption: str
    mark: Mark = ""


class StripView(NamedTuple):
    """A row of pictures with a title."""

    title: str
    pictures: Sequence[PictureView]


class GroupView(NamedTuple):
    """A cluster, or a query with its ranked lists: rows of pictures, or a table instead of them."""

    title: str
    strips: Sequence[StripView] = ()
    table: TableView | None = None


@dataclass(kw_only=True)
class SectionView:
    """A section of the page."""

    name: str
    title: str
    lead: str = ""
    charts: Sequence[ChartView] = ()
    heats: Sequence[HeatView] = ()
    tables: Sequence[TableView] = ()
    tables_first: bool = False  # before the charts
    groups: Sequence[tuple[str, Sequence[GroupView]]] = ()  # heading and groups
    notes: Sequence[str] = field(default_factory=list)
