"""Charts for plotly: traces and a layout as plain data. Text is escaped, because plotly reads markup in it.

Colours of text and lines of the grid depend on light or dark, so page.js sets them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np

from fl.report.charts import Bars, Chart, Heatmap, Line, Lines, Points, Spans, X

PALETTE = ("#3b7dd8", "#e8871e", "#2a9d5c", "#d1495b", "#8c6bb1", "#a0724a", "#d45fa8", "#6b7a8f", "#b0a11f", "#22a5b8")
RED_BLUE = [[0, "#2166ac"], [0.5, "#f7f7f7"], [1, "#b2182b"]]  # negative, 0, positive
DASHES = ("solid", "dash", "dot", "dashdot")
DIGITS = 6  # significant digits of numbers in the page
MOST_WRITTEN = 100  # cells of a matrix whose values are written into it

Trace = dict[str, Any]


def figure(chart: Chart, names: Sequence[str], pool: Pool) -> dict[str, Any]:
    """Return a chart as {"data": traces, "layout": layout, "x": x of each trace by cost, "show": ...}.

    `x` holds places in the pool, and is empty unless the chart has x by cost. `show` says for each trace whether it
    belongs to the view "mean", to the view "runs", or to both ("").

    Args:
        chart: the chart, other than `Pictures`.
        names: names of the page's variants; each has the same style in all charts.
        pool: x of all charts.
    """
    made = _figure(chart, names)
    made["x"] = [{cost: pool.add(values) for cost, values in x.items()} for x in made["x"]]
    return made


def text(value: object) -> str:
    """A name as text that plotly does not read as markup.

    >>> text("<b>a</b> & b")
    '&lt;b&gt;a&lt;/b&gt; &amp; b'
    """
    return html.escape(str(value), quote=False)


def numbers(values: np.ndarray) -> list[Any]:
    """Numbers for JSON, with six significant digits; None for NaN and infinity.

    >>> numbers(np.array([[1 / 3, np.nan]])), numbers(np.array([3])), numbers(np.array([0.0, 1234567.8, -2e-9]))
    ([[0.333333, None]], [3], [0.0, 1234570.0, -2e-09])
    """
    if values.dtype.kind in "iub":
        return values.tolist()
    if values.ndim > 1:
        return [numbers(row) for row in values]
    known = np.isfinite(values)
    sizes = np.abs(np.where(known & (values != 0), values, 1.0))
    places = (DIGITS - 1 - np.floor(np.log10(sizes))).astype(int).clip(-300, 300)
    up, down = 10.0 ** places.clip(0), 10.0 ** (-places).clip(0)  # one of both is 1; a division rounds as repr does
    rounded = np.round(np.where(known, values, 0.0) * up / down) * down / up
    return rounded.tolist() if known.all() else [v if k else None for v, k in zip(rounded.tolist(), known.tolist())]


class Pool:
    """Arrays of numbers that many traces share, such as the costs of rounds; each is in the page once."""

    def __init__(self) -> None:
        self.arrays: list[list[Any]] = []
        self._places: dict[bytes, int] = {}

    def add(self, values: np.ndarray) -> int:
        """The place of an array in the pool."""
        key = values.tobytes() + values.dtype.str.encode()
        if key not in self._places:
            self._places[key] = len(self.arrays)
            self.arrays.append(numbers(values))
        return self._places[key]


def _style(name: str, i: int, names: Sequence[str]) -> tuple[str, str]:
    """Colour and dash of a name: the same in all charts if it is a variant's, else by its place i."""
    at = names.index(name) if name in names else i
    return PALETTE[at % len(PALETTE)], DASHES[at // len(PALETTE) % len(DASHES)]


def _axis(label: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": text(label)}, "automargin": True, "zeroline": False, **more}


@singledispatch
def _figure(chart: Chart, names: Sequence[str]) -> dict[str, Any]:
    raise TypeError(f"{type(chart).__name__} is not one of the charts of fl.report.charts")


@_figure.register
def _(chart: Lines, names: Sequence[str]) -> dict[str, Any]:
    made = [each for i, line in enumerate(chart.lines) for each in _line(line, _style(line.name, i, names))]
    y_label = "" if chart.y_label == chart.title else chart.y_label
    layout = {"xaxis": _axis(chart.x_label), "yaxis": _axis(y_label), "hovermode": "closest"}
    by_cost = any(isinstance(line.x, Mapping) for line in chart.lines)
    return {
        "data": [trace for trace, _, _ in made],
        "layout": layout,
        "x": [x if isinstance(x, Mapping) else {} for _, x, _ in made] if by_cost else [],
        "show": [show for _, _, show in made],
    }


def _line(line: Line, style: tuple[str, str]) -> list[tuple[Trace, X, str]]:
    """The traces of a line: the band, the mean, and each run; with their x and `show`."""
    colour, dash = style
    common: Trace = {"type": "scatter", "name": text(line.name), "legendgroup": text(line.name)}
    shown = {"width": 2, "color": colour, "dash": dash}
    found: list[tuple[Trace, X, str]] = []
    if line.low is not None and line.high is not None:
        edge = common | {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        fill = {
            "fill": "tonexty",
            "fillcolor": f"rgba({','.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))},.18)",
        }
        found += [
            (edge | {"y": numbers(line.low)}, line.x, "mean"),
            (edge | fill | {"y": numbers(line.high)}, line.x, "mean"),
        ]
    mode = "lines+markers" if len(line.y) <= 30 else "lines"
    found.append((common | {"mode": mode, "line": shown, "y": numbers(line.y)}, line.x, "mean" if line.runs else ""))
    for i, (x, y) in enumerate(line.runs):
        each = common | {"mode": mode, "line": {**shown, "width": 1.2}, "y": numbers(y), "visible": False}
        found.append((each | {"showlegend": i == 0, "hovertext": f"run {i}"}, x, "runs"))
    for trace, x, _ in found:
        if not isinstance(x, Mapping):
            trace["x"] = numbers(x)
    return found


@_figure.register
def _(chart: Bars, names: Sequence[str]) -> dict[str, Any]:
    of, lengths = ("x", "y") if chart.upright else ("y", "x")
    bars = [text(name) for name in chart.names]
    data = []
    for i, (part, values) in enumerate(chart.parts.items()):
        trace: Trace = {"type": "bar", "name": text(part), of: bars, lengths: numbers(values)}
        trace |= {"orientation": "v" if chart.upright else "h", "marker": {"color": _style(part, i, names)[0]}}
        data.append(trace)
    along = _axis("", type="category") if chart.upright else _axis("", type="category", autorange="reversed")
    layout: dict[str, Any] = {
        "barmode": "group" if chart.beside else "stack",
        f"{of}axis": along,
        f"{lengths}axis": _axis(chart.x_label),
    }
    layout |= {"bargap": 0.25 if len(bars) < 40 else 0}
    if not chart.upright:
        layout["height"] = 170 + 26 * len(bars)
    return {"data": data, "layout": layout, "x": [], "show": []}


@_figure.register
def _(chart: Heatmap, names: Sequence[str]) -> dict[str, Any]:
    x_names, y_names = ([text(name) for name in each] for each in chart.names)
    trace: Trace = {"type": "heatmap", "z": numbers(chart.values), "x": x_names, "y": y_names, "hoverongaps": False}
    trace |= {"colorscale": RED_BLUE if chart.signed else "Viridis", "colorbar": {"thickness": 12, "outlinewidth": 0}}
    if chart.signed:
        bound = float(np.nanmax(np.abs(chart.values), initial=0.0)) or 1.0
        low, high = (-bound if chart.low is None else chart.low), (bound if chart.high is None else chart.high)
        trace |= {"zmin": low, "zmax": high}
    elif chart.low is not None and chart.high is not None:
        trace |= {"zmin": chart.low, "zmax": chart.high}
    if chart.values.size <= MOST_WRITTEN:
        whole = bool((chart.values == np.round(chart.values)).all())
        trace |= {"texttemplate": "%{z}" if whole else "%{z:.2f}", "textfont": {"size": 11}}
    layout = {
        "xaxis": _axis(chart.x_label, type="category", showgrid=False, constrain="domain"),
        "yaxis": _axis(chart.y_label, type="category", showgrid=False, autorange="reversed"),
    }
    return {"data": [trace], "layout": layout, "x": [], "show": []}


@_figure.register
def _(chart: Points, names: Sequence[str]) -> dict[str, Any]:
    data, of = [], np.array(chart.groups)
    for i, group in enumerate(dict.fromkeys(chart.groups)):
        own = np.flatnonzero(of == group).tolist()
        trace: Trace = {
            "type": "scatter",
            "mode": "markers+text",
            "name": text(group),
            "textposition": "top center",
            "cliponaxis": False,
        }
        trace |= {"x": numbers(chart.places[own, 0]), "y": numbers(chart.places[own, 1])}
        trace |= {"text": [text(chart.labels[k]) for k in own], "hoverinfo": "text+name"}
        trace |= {"marker": {"size": 9, "color": _style(group, i, names)[0]}}
        data.append(trace)
    layout: dict[str, Any] = {"xaxis": _axis(chart.x_label), "yaxis": _axis(chart.y_label), "hovermode": "closest"}
    layout["showlegend"] = 1 < len(data) < len(chart.labels)  # else the labels say it
    return {"data": data, "layout": layout, "x": [], "show": []}


@_figure.register
def _(chart: Spans, names: Sequence[str]) -> dict[str, Any]:
    tracks = list(dict.fromkeys(chart.track))
    data, of = [], np.array(chart.category)
    for i, category in enumerate(chart.categories or dict.fromkeys(chart.category)):
        own = np.flatnonzero(of == category).tolist()
        if not own:
            continue
        trace: Trace = {"type": "bar", "orientation": "h", "name": text(category), "width": 0.8}
        trace |= {"base": numbers(chart.start[own]), "x": numbers(chart.length[own])}
        trace |= {"y": [text(chart.track[k]) for k in own], "marker": {"color": PALETTE[i % len(PALETTE)]}}
        trace |= {"text": [text(chart.name[k]) for k in own], "textposition": "none"}
        trace["hovertemplate"] = "%{text}<br>from %{base:.4f} s, %{x:.4f} s<extra>%{fullData.name}</extra>"
        data.append(trace)
    order = [text(track) for track in tracks]
    rows = _axis("", type="category", categoryorder="array", categoryarray=order, autorange="reversed")
    layout = {"barmode": "overlay", "xaxis": _axis("seconds since the start of the run"), "yaxis": rows}
    return {"data": data, "layout": layout | {"height": 180 + 42 * len(tracks)}, "x": [], "show": []}
