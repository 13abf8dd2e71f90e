"""Charts as data: numbers, names and labels, without a word about how they are drawn.

A chart is drawn twice: by plotly in the page of `fl report` (page/traces.py), and by matplotlib into a file
(plots/charts.py).

Lines      a metric against a cost, or against numbers of its own        Points     positions in two dimensions
Bars       stacked bars, one for each name                               Spans      what processes did, over time
Heatmap    a matrix                                                      Pictures   small images
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

X: TypeAlias = "np.ndarray | Mapping[str, np.ndarray]"  # numbers, or numbers by cost (a key of fl.report.costs.COSTS)
Draw: TypeAlias = Callable[[Path, str], None]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart.

    Args:
        title: heading.
        note: a sentence below it, such as what a band means.
        draw: draws the chart into a file, given the file and the cost on the x axis; None: plots/charts.py does.
    """

    title: str
    note: str = ""
    draw: Draw | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of `Lines`.

    Args:
        name: variant, group or metric.
        x: (n,), or by cost: the page can then switch the x axis.
        y: (n,), or the mean over runs.
        low: lower end of the band, (n,); None for no band.
        high: upper end of the band, (n,).
        runs: x and y of each run.
    """

    name: str
    x: X
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    runs: Sequence[tuple[X, np.ndarray]] = ()


@dataclass(frozen=True, kw_only=True)
class Lines(Chart):
    """Lines, some with a band.

    Args:
        lines: the lines; one colour for each, in the order of the page's variants.
        y_label: label of the y axis.
        x_label: label of the x axis; "" if the lines have x by cost.
    """

    lines: Sequence[Line]
    y_label: str
    x_label: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars(Chart):
    """Stacked horizontal bars, the first name on top.

    Args:
        names: one bar each.
        parts: part -> length in each bar, (names,).
        x_label: what the length is, with its unit.
        upright: vertical bars, for many names.
        beside: parts beside each other, not stacked.
    """

    names: Sequence[str]
    parts: Mapping[str, np.ndarray]
    x_label: str
    upright: bool = False
    beside: bool = False


@dataclass(frozen=True, kw_only=True)
class Heatmap(Chart):
    """A matrix, the first row on top.

    Args:
        values: (rows, columns); NaN is left empty.
        x_label: what columns are.
        y_label: what rows are.
        x_names: names of columns; empty: numbers from 0.
        y_names: names of rows; empty: numbers from 0.
        low: value at the lower end of the colours; None: the smallest one.
        high: value at the upper end.
        signed: colours with white in the middle, for values around 0.
    """

    values: np.ndarray
    x_label: str
    y_label: str
    x_names: Sequence[str] = ()
    y_names: Sequence[str] = ()
    low: float | None = None
    high: float | None = None
    signed: bool = False

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names of columns and of rows."""
        rows, columns = self.values.shape
        return list(self.x_names) or [str(i) for i in range(columns)], list(self.y_names) or [
            str(i) for i in range(rows)
        ]


@dataclass(frozen=True, kw_only=True)
class Points(Chart):
    """Points in two dimensions.

    Args:
        places: (n, 2).
        groups: what decides a point's colour, (n,).
        labels: text beside each point, (n,).
        x_label: label of the x axis.
        y_label: label of the y axis.
    """

    places: np.ndarray
    groups: Sequence[str]
    labels: Sequence[str]
    x_label: str = ""
    y_label: str = ""


@dataclass(frozen=True, kw_only=True)
class Spans(Chart):
    """What processes did when.

    Args:
        track: name of the process of each span, (n,).
        start: in seconds, (n,).
        length: in seconds, (n,).
        category: what decides a span's colour, (n,).
        name: text of each span, (n,).
        categories: all categories in order, so that several charts have the same colours; empty: those of the spans.
    """

    track: Sequence[str]
    start: np.ndarray
    length: np.ndarray
    category: Sequence[str]
    name: Sequence[str]
    categories: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Pictures(Chart):
    """Small images.

    Args:
        images: uint8, (n, height, width) or (n, height, width, 3).
        names: text below each image, (n,).
    """

    images: np.ndarray
    names: Sequence[str]


def mean_line(name: str, runs: Sequence[tuple[X, np.ndarray]]) -> Line | None:
    """The mean over runs as a line, their range as a band; None if no run has a point.

    The line ends with the shortest run. Its x is the mean over runs too, by cost; a cost that a run lacks is left out.

    >>> short, long = (np.array([1, 2]), np.array([0.2, 0.4])), (np.array([1, 2, 3]), np.array([0.4, 0.8, 1]))
    >>> line = mean_line("a", [short, long])
    >>> line.x.tolist(), line.y.round(2).tolist(), line.low.tolist(), line.high.tolist()
    ([1.0, 2.0], [0.3, 0.6], [0.2, 0.4], [0.4, 0.8])
    """
    runs = [(x, y) for x, y in runs if len(y)]
    if not runs:
        return None
    n = min(len(y) for _, y in runs)
    ys = np.stack([y[:n] for _, y in runs])
    low, high = (ys.min(0), ys.max(0)) if len(ys) > 1 else (None, None)
    return Line(name=name, x=_mean_x([x for x, _ in runs], n), y=ys.mean(0), low=low, high=high, runs=runs)


def _mean_x(xs: Sequence[X], n: int) -> X:
    by_cost = [x for x in xs if isinstance(x, Mapping)]
    if not by_cost:
        return np.mean([x[:n] for x in xs if isinstance(x, np.ndarray)], 0)
    costs = [cost for cost in by_cost[0] if all(cost in x for x in by_cost)]
    return {cost: np.mean([x[cost][:n] for x in by_cost], 0) for cost in costs}
