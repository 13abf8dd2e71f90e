"""Charts of the page (fl/report/charts.py) as figures in files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from fl.report.charts import Bars, Chart, Heatmap, Lines, Pictures, Points, Spans
from fl.report.costs import COSTS
from fl.report.plots.style import DEFAULT_WIDTH, Line, colours, figure_style, new_figure, save

MAX_NAMES = 40  # of rows and columns of a matrix
MAX_PICTURES = 64


def plot_chart(chart: Chart, file: Path, cost: str = "round") -> None:
    """Draw a chart into a file.

    Args:
        chart: the chart.
        file: the figure; its suffix chooses the format.
        cost: x axis of lines that have x by cost; lines that did not count it are left out.
    """
    if chart.draw is not None:
        chart.draw(file, cost)
        return
    with figure_style(grid=isinstance(chart, (Lines, Bars, Points))):
        figure, axes = new_figure(DEFAULT_WIDTH, 4.0)
        _draw(chart, axes, cost)
        axes.set_title(chart.title)
        handles, names = axes.get_legend_handles_labels()
        if len(names) > 1:
            figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
        save(figure, file)


@singledispatch
def _draw(chart: Chart, axes: Axes, cost: str) -> None:
    raise TypeError(f"{type(chart).__name__} is not one of the charts of fl.report.charts")


@_draw.register
def _(chart: Lines, axes: Axes, cost: str) -> None:
    for i, line in enumerate(chart.lines):
        look = Line.number(i)
        x = line.x.get(cost) if isinstance(line.x, Mapping) else line.x
        if x is None:
            continue
        style = {"color": look.color, "linestyle": look.linestyle, "marker": look.marker if len(x) == 1 else ""}
        axes.plot(x, line.y, label=line.name, linewidth=1.6, **style)
        if line.low is not None and line.high is not None:
            axes.fill_between(x, line.low, line.high, color=look.color, alpha=0.12, linewidth=0)
    axes.set(xlabel=chart.x_label or COSTS[cost].label, ylabel=chart.y_label)


@_draw.register
def _(chart: Bars, axes: Axes, cost: str) -> None:
    at, ends, paint = np.arange(len(chart.names)), np.zeros(len(chart.names)), colours(len(chart.parts))
    width = (0.9 if chart.upright else 0.65) / (len(chart.parts) if chart.beside else 1)
    for i, (part, lengths) in enumerate(chart.parts.items()):
        draw, place = (axes.bar if chart.upright else axes.barh), at + (i * width if chart.beside else 0)
        draw(place, lengths, width, None if chart.beside else ends, color=paint(i), label=part, linewidth=0)
        ends = ends + lengths
    if chart.upright:
        axes.set(ylabel=chart.x_label)
        axes.grid(axis="x", visible=False)
        if len(at) <= MAX_NAMES:
            axes.set_xticks(at, chart.names, rotation=90 if len(at) > 10 else 0)
        else:
            axes.set_xticks([])
    else:
        axes.set(xlabel=chart.x_label, ylim=(len(at) - 0.5, -0.5))
        axes.set_yticks(at, chart.names)
        axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)


@_draw.register
def _(chart: Heatmap, axes: Axes, cost: str) -> None:
    low, high = chart.low, chart.high
    if chart.signed and low is None:
        high = float(np.nanmax(np.abs(chart.values), initial=0.0)) or 1.0
        low = -high
    image = axes.imshow(chart.values, vmin=low, vmax=high, cmap="RdBu_r" if chart.signed else "viridis")
    x_names, y_names = chart.names
    if len(x_names) <= MAX_NAMES:
        axes.set_xticks(range(len(x_names)), x_names, rotation=90 if max(map(len, x_names), default=0) > 3 else 0)
    if len(y_names) <= MAX_NAMES:
        axes.set_yticks(range(len(y_names)), y_names)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


@_draw.register
def _(chart: Points, axes: Axes, cost: str) -> None:
    groups = list(dict.fromkeys(chart.groups))
    paint, of = colours(len(groups)), np.array(chart.groups)
    for i, group in enumerate(groups):
        x, y = chart.places[of == group].T
        axes.scatter(x, y, color=paint(i), label=group, s=30)
    for (x, y), label in zip(chart.places, chart.labels):
        axes.annotate(label, (x, y), (4, 3), textcoords="offset points", fontsize=8)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)


@_draw.register
def _(chart: Spans, axes: Axes, cost: str) -> None:
    tracks, categories = list(dict.fromkeys(chart.track)), list(chart.categories or dict.fromkeys(chart.category))
    paint = colours(len(categories))
    for i, track in enumerate(tracks):
        own = [k for k, name in enumerate(chart.track) if name == track]
        bars = [(chart.start[k], chart.length[k]) for k in own]
        axes.broken_barh(bars, (i - 0.4, 0.8), facecolors=[paint(categories.index(chart.category[k])) for k in own])
    axes.set(xlabel="seconds", ylim=(len(tracks) - 0.5, -0.5))
    axes.set_yticks(range(len(tracks)), tracks)
    handles = [Patch(color=paint(i), label=name) for i, name in enumerate(categories)]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, frameon=False, fontsize=8)


@_draw.register
def _(chart: Pictures, axes: Axes, cost: str) -> None:
    images = chart.images[:MAX_PICTURES]
    columns = int(np.ceil(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    height, width, *depth = images.shape[1:]
    sheet = np.full((rows * (height + 1), columns * (width + 1), *depth), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255)
    axes.axis("off")
