"""Charts as Vega-Lite specifications, made with Altair. Colours are CSS variables, so that a page has a light and a dark form.

Altair is an optional package, so it is imported only when a chart is drawn.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

HEIGHT = 260  # pixels; the width is that of the page
AXIS = 75  # pixels, at most, that the vertical axis with its title requires
COLOURS = [f"var(--c{number})" for number in range(10)]
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif'  # that of the page: Vega measures texts with it
CONFIG: dict[str, Any] = {
    "background": None,
    "font": FONT,
    "view": {"stroke": None},
    "range": {"category": COLOURS, "ordinal": COLOURS},
    "axis": {
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "gridColor": "var(--grid)",
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "legend": {
        "orient": "bottom",
        "title": None,
        "labelColor": "var(--ink)",
        "titleColor": "var(--muted)",
        "labelFontSize": 12,
        "labelLimit": 260,
        "symbolStrokeWidth": 2,
    },
}


def line_chart(
    frame: pd.DataFrame, *, y_title: str, percent: bool = False, zero: bool = True, x_title: str = "iteration"
) -> dict[str, Any]:
    """Return a line for each series over iterations.

    Args:
        frame: columns ``iteration``, ``series`` and ``value``.
        y_title: title of the vertical axis.
        percent: whether the values are fractions that are shown in percent.
        zero: whether the vertical axis begins at 0.
        x_title: title of the horizontal axis.
    """
    import altair as alt

    value_format = ".1%" if percent else ",.0f"
    series = list(dict.fromkeys(frame["series"]))
    chart = (
        alt.Chart(frame)
        .mark_line(point={"size": 45, "filled": True}, strokeWidth=2)
        .encode(
            x=alt.X("iteration:O", title=x_title, axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title=y_title, scale=alt.Scale(zero=zero), axis=alt.Axis(format=".0%" if percent else ",.0f", tickCount=5)),
            color=alt.Color("series:N", sort=series, legend=_legend(series)),
            tooltip=[alt.Tooltip("series:N"), alt.Tooltip("iteration:O", title=x_title), alt.Tooltip("value:Q", format=value_format)],
        )
    )
    return _spec(chart)


def bar_chart(
    frame: pd.DataFrame, *, x: str, y_title: str, series: Sequence[str], colours: Sequence[int] = (), value_format: str = ",.0f"
) -> dict[str, Any]:
    """Return stacked bars.

    Args:
        frame: columns ``x`` (text, in the order of the bars), ``series`` and ``value``.
        x: title of the horizontal axis.
        y_title: title of the vertical axis.
        series: the series from the bottom to the top.
        colours: number of the colour of each series; empty: 0, 1, 2, ...
        value_format: of the tooltip.
    """
    import altair as alt

    order = list(dict.fromkeys(frame["x"]))
    scale = alt.Scale(domain=list(series), range=[COLOURS[number] for number in colours or range(len(series))])
    frame = frame.assign(rank=frame["series"].map({name: number for number, name in enumerate(series)}))
    chart = (
        alt.Chart(frame)
        .mark_bar()
        .encode(
            x=alt.X("x:N", title=x, sort=order, axis=alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=6)),
            y=alt.Y("value:Q", title=y_title, axis=alt.Axis(tickCount=5, format=",~f")),
            color=alt.Color("series:N", scale=scale, sort=list(series), legend=_legend(series)),
            order=alt.Order("rank:Q"),
            tooltip=[alt.Tooltip("x:N", title=x), alt.Tooltip("series:N"), alt.Tooltip("value:Q", format=value_format)],
        )
    )
    return _spec(chart)


def map_chart(points: Mapping[str, Any], iterations: Sequence[int], colours: Mapping[str, str]) -> dict[str, Any]:
    """Return the map of features, with a slider for the iteration and a menu for the colour.

    Args:
        points: columns ``x0, y0, x1, ...`` for the iterations, and ``KEY0, KEY1, ...`` or ``KEY`` for the colours; an empty text is grey.
        iterations: the numbers of the iterations.
        colours: title of each colour by its key.
    """
    import altair as alt

    groups = {
        group for key in colours for name in (key, *(f"{key}{at}" for at in range(len(iterations)))) for group in points.get(name, ())
    }
    slider = alt.param("at", value=len(iterations) - 1, bind=alt.binding_range(min=0, max=len(iterations) - 1, step=1, name="iteration "))
    menu = alt.param(
        "colour", value=next(iter(colours)), bind=alt.binding_select(options=list(colours), labels=list(colours.values()), name="colour ")
    )
    frame = pd.DataFrame(dict(points))
    low, high = (
        [float(getattr(frame[[f"{axis}{at}" for at in range(len(iterations))]].to_numpy(), side)()) for axis in "xy"]
        for side in ("min", "max")
    )
    base = alt.Chart(frame).transform_calculate(
        px="datum['x' + at]",
        py="datum['y' + at]",
        group="isValid(datum[colour]) ? datum[colour] : datum[colour + at]",
    )
    axes = {
        axis: alt.Axis(labels=False, ticks=False, title=title, grid=False)
        for axis, title in (("x", "first principal axis"), ("y", "second principal axis"))
    }
    position = {
        "x": alt.X("px:Q", axis=axes["x"], scale=alt.Scale(domain=[low[0], high[0]])),
        "y": alt.Y("py:Q", axis=axes["y"], scale=alt.Scale(domain=[low[1], high[1]])),
    }
    tooltip = [alt.Tooltip("image:N"), alt.Tooltip("camera:N", title=colours.get("camera", "camera")), alt.Tooltip("group:N")]
    grey = base.transform_filter("datum.group == ''").mark_circle(size=14, color="var(--faint)", opacity=0.7).encode(**position)
    coloured = (
        base.transform_filter("datum.group != ''")
        .mark_circle(size=26, opacity=0.85)
        .encode(**position, color=alt.Color("group:N", legend=_legend(groups)), tooltip=tooltip)
    )
    chart = alt.layer(grey, coloured).add_params(slider, menu)
    return _spec(chart, height=420)


def _legend(labels: Collection[str]) -> Any:
    """Return a legend with as many columns as fit the chart, also on a phone; None for a single label."""
    import altair as alt

    column = 34 + 7 * max(map(len, labels), default=0)  # pixels: a symbol, the longest label and a gap
    # From the width of the page: that of the plot changes while the chart is laid out. It is named because its changes cause an update.
    columns = alt.ExprRef(f"max(1, floor((containerSize()[0] - {AXIS} + 0 * width) / {column}))")
    return alt.Legend(columns=columns, symbolOpacity=1) if len(labels) > 1 else None


def _spec(chart: Any, height: int = HEIGHT) -> dict[str, Any]:
    """Return the specification of a chart that is as wide as the page; its data are part of it."""
    import altair as alt

    with alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=False):
        spec: dict[str, Any] = chart.properties(
            width="container", height=height, autosize={"type": "fit-x", "contains": "padding", "resize": True}
        ).to_dict()
    spec["config"] = CONFIG
    spec.pop("usermeta", None)
    return spec
