"""Curves: a metric against its cost, and a metric of clients from worst to best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fl.checks import one_of
from fl.errors import did_you_mean
from fl.report.charts import mean_line
from fl.report.costs import COSTS
from fl.report.names import readable
from fl.report.plots.style import (
    Line,
    Look,
    add_legend,
    add_notes,
    figure_style,
    new_figure,
    save,
    set_log_scale,
    time_unit,
    wrapped,
)
from fl.report.variants import Variant
from fl.tasks.task import minimised

WIDE_RANGE = 20  # the most expensive variant costs this many times the cheapest: the x axis is logarithmic
MARKERS = 6  # markers on a curve
SAME = 0.004  # two curves closer than this share of the y axis hide each other
Band = Literal["range", "sd", "none"]
BANDS: dict[str, str] = {"range": "smallest to largest", "sd": "± standard deviation", "none": ""}
Curves = list[tuple[np.ndarray, np.ndarray]]  # (x, y) of each run


def plot_curves(
    variants: Sequence[Variant],
    metric: str,
    cost: str,
    file: Path,
    look: Look = Look(),
    log: bool | None = None,
    band: Band = "range",
) -> None:
    """Draw curves into a file, whose suffix chooses the format. The other arguments are those of `draw_curves`."""
    save(draw_curves(variants, metric, cost, look, log, band), file)


def draw_curves(
    variants: Sequence[Variant],
    metric: str,
    cost: str,
    look: Look = Look(),
    log: bool | None = None,
    band: Band = "range",
) -> Figure:
    """Draw a metric against a cost: the mean over runs as a line, and a band around it.

    Curves differ in colour, dashes and markers. A note tells which curves lie on each other. Baselines are horizontal
    lines at their last value, because their rounds are not those of the methods.

    Args:
        variants: one line each; those without the metric are left out.
        metric: metric on the y axis.
        cost: a key of `COSTS`, on the x axis.
        look: size, title and labels.
        log: logarithmic x axis; None chooses it for a wide range of costs.
        band: "range" from the smallest to the largest run, "sd" for one standard deviation (ddof 1), or "none".

    Raises:
        ValueError: no run has the metric, or a run did not count the cost.
    """
    one_of(tuple(COSTS), cost=cost)
    one_of(tuple(BANDS), band=band)
    with_metric = [variant for variant in variants if variant.has(metric)]
    if not with_metric:
        known = sorted({name for variant in variants for name in variant.known_metrics})
        raise ValueError(f"metric: {metric!r} is in no run; the runs have {known}.{did_you_mean(metric, known)}")
    variants = with_metric
    only_baselines = all(variant.baseline for variant in variants)
    baselines = [variant for variant in variants if variant.baseline and not only_baselines]
    methods = [variant for variant in variants if variant not in baselines]
    every = [variant.curves(metric, cost) for variant in methods]
    label, scale = COSTS[cost].label, 1
    if cost == "hours":
        label, scale = time_unit(max(x[-1] for runs in every for x, _ in runs))
    elif "MB" in label:
        label = f"{label}, all clients"
    with figure_style(small=look.narrow):
        figure, axes = new_figure(look.width, look.height or _height(look, len(variants)))
        means: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for i, (variant, runs) in enumerate(zip(methods, every)):
            mean = mean_line(variant.name, runs)
            assert mean is not None and isinstance(mean.x, np.ndarray), "the variant has the metric"
            x, y = scale * mean.x, np.stack([y[: len(mean.y)] for _, y in mean.runs])
            means[look.name(variant.name)] = x, mean.y
            if len(x) == 1:  # measured once, at the end
                _draw_point(axes, x, y, Line.number(i), look.name(variant.name), band)
            else:
                _draw_band(axes, x, y, i, look.name(variant.name), band)
        for i, variant in enumerate(baselines, len(methods)):
            value, line = float(variant.values(metric).mean()), Line.number(i)
            name = f"{look.name(variant.name)} (baseline)"
            axes.axhline(value, color=line.color, linestyle=":", linewidth=1.4, label=name)
        axes.set(xlabel=label, ylabel=wrapped(readable(metric)), title=look.title)
        if log is None:
            log = cost != "round" and _cost_range(every) > WIDE_RANGE
        if log:
            set_log_scale(axes)
        add_legend(figure, axes, look)
        lengths = [len(x) for x, _ in means.values()]
        add_notes(figure, [*_about_bands(methods, band, lengths), *_hidden(axes, means)])
    return figure


def plot_client_metric(variants: Sequence[Variant], metric: str, file: Path, look: Look = Look()) -> None:
    """Draw the metric of each client into a file; the other arguments are those of `draw_client_metric`."""
    save(draw_client_metric(variants, metric, look), file)


def draw_client_metric(variants: Sequence[Variant], metric: str, look: Look = Look()) -> Figure:
    """Draw a metric of each client, worst first, over the share of clients in %.

    The values are those of the last evaluation; the line is the mean over runs, the band their range.
    """
    grid = np.linspace(0, 1, 201)
    with figure_style(small=look.narrow):
        figure, axes = new_figure(look.width, look.height or _height(look, len(variants)))
        means = {}
        for i, variant in enumerate(variants):
            ys = np.stack([_quantiles(np.sort(values), grid) for values in variant.client_values(metric)])
            if minimised(metric):
                ys = ys[:, ::-1]
            means[look.name(variant.name)] = 100 * grid, ys.mean(0)
            _draw_band(axes, 100 * grid, ys, i, look.name(variant.name), "range")
        label = f"{readable(metric)} on own test rows"
        axes.set(xlabel="% of clients, worst first", ylabel=wrapped(label), title=look.title, xlim=(0, 100))
        add_legend(figure, axes, look)
        add_notes(figure, [*_about_bands(variants, "range"), *_hidden(axes, means)])
    return figure


def _height(look: Look, lines: int) -> float:
    """Height in inches: golden ratio, with room for a legend above a narrow figure."""
    return 0.62 * look.width + (0.15 * (1 + lines // 2) + 0.2 if look.narrow else 0.0)


def _draw_point(axes: Axes, x: np.ndarray, y: np.ndarray, line: Line, name: str, band: Band) -> None:
    """Mean of the runs y, (runs, 1), as a point, and a bar in place of the band."""
    mean = y.mean().clip(y.min(), y.max())  # rounding may move the mean of equal numbers past them
    low, high = _band(y, np.atleast_1d(mean), band)
    ends = [mean - low, high - mean]
    axes.errorbar(x, [mean], ends, color=line.color, label=name, marker=line.marker, markersize=4, linestyle="none")


def _band(ys: np.ndarray, mean: np.ndarray, band: Band) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the band of the runs ys, (runs, n)."""
    if len(ys) == 1 or band == "none":
        return mean, mean
    deviation = ys.std(0, ddof=1)
    return (ys.min(0), ys.max(0)) if band == "range" else (mean - deviation, mean + deviation)


def _draw_band(axes: Axes, x: np.ndarray, ys: np.ndarray, i: int, name: str, band: Band) -> None:
    """Mean of the runs ys, (runs, n), as a line, and a band. Markers of curves that coincide lie beside each other."""
    line, mean = Line.number(i), ys.mean(0)
    step = max(1, min(2, len(x) // 2), len(x) // MARKERS)
    axes.plot(
        x,
        mean,
        color=line.color,
        linestyle=line.linestyle,
        marker=line.marker,
        markersize=4,
        markevery=(i * max(1, step // 5) % step, step),
        label=name,
        linewidth=1.5,
    )
    if len(ys) > 1 and band != "none":
        low, high = _band(ys, mean, band)
        axes.fill_between(x, low, high, color=line.color, alpha=0.12, linewidth=0)


def _about_bands(variants: Sequence[Variant], band: Band, measured: Iterable[int] = ()) -> list[str]:
    """What lines and bands are, or points and bars of variants that were measured once; nothing for single runs."""
    numbers = sorted({len(variant.runs) for variant in variants})
    if numbers[-1] == 1:
        return []
    once = {n == 1 for n in measured}
    middle, around = ("line or point", "band or bar") if len(once) == 2 else ("line", "band")
    if once == {True}:
        middle, around = "point", "bar"
    runs = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return [f"{middle}: mean of {runs} runs" + (f"; {around}: {BANDS[band]}" if band != "none" else "")]


def _hidden(axes: Axes, means: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Notes on curves that lie on an earlier one."""
    low, high = axes.get_ylim()
    notes, names = [], list(means)
    for later, name in enumerate(names):
        for earlier in names[:later]:
            if _coincide(means[name], means[earlier], SAME * (high - low)):
                notes.append(f"{name} lies on {earlier}")
                break
    return notes


def _coincide(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], tolerance: float) -> bool:
    """Whether two curves (x, y) differ by at most `tolerance` at 9 of 10 places where both are measured."""
    (ax, ay), (bx, by) = a, b
    places = ax[(ax >= bx[0]) & (ax <= bx[-1])]
    if len(places) < max(2, len(ax) // 2):
        return False
    difference = np.abs(np.interp(places, ax, ay) - np.interp(places, bx, by))
    return bool((difference <= tolerance).mean() >= 0.9)


def _quantiles(ordered: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Values of the sorted (clients,) at shares of the clients, as a step function."""
    return ordered[np.minimum((shares * len(ordered)).astype(int), len(ordered) - 1)]


def _cost_range(every: Sequence[Curves]) -> float:
    """Largest final cost / smallest final cost."""
    ends = [x[-1] for runs in every for x, _ in runs if len(x) and x[-1] > 0]
    return max(ends) / min(ends) if ends else 1.0
