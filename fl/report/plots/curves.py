"""Curves: a metric against its cost, and a metric of clients from worst to best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from fl.report.costs import COSTS
from fl.report.plots.style import colours, figure_style, save, time_unit
from fl.report.variants import Variant
from fl.tasks.task import minimised

WIDE_RANGE = 20  # the most expensive variant costs this many times the cheapest: the x axis is logarithmic
Curves = list[tuple[np.ndarray, np.ndarray]]  # (x, y) of each run


def plot_curves(
    variants: Sequence[Variant], metric: str, cost: str, file: Path, title: str = "", log: bool | None = None
) -> None:
    """Plot a metric against a cost: the mean over runs as a line and their range as a band.

    Args:
        variants: one line each; those without the metric are left out.
        metric: metric on the y axis.
        cost: a key of `COSTS`, on the x axis.
        file: the figure; its suffix chooses the format.
        title: title of the figure.
        log: logarithmic x axis; None chooses it for a wide range of costs.
    """
    variants = [variant for variant in variants if variant.has(metric)] or variants
    every = [variant.curves(metric, cost) for variant in variants]
    label, scale = COSTS[cost].label, 1
    if cost == "hours":
        label, scale = time_unit(max(x[-1] for runs in every for x, _ in runs))
    elif "MB" in label:
        label = f"{label}, all clients"
    with figure_style():
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        colour = colours(len(variants))
        for i, (variant, runs) in enumerate(zip(variants, every)):
            xs, ys = zip(*runs)
            shortest = min(map(len, xs))
            x = scale * np.mean([x[:shortest] for x in xs], 0)
            y = np.stack([y[:shortest] for y in ys])
            if shortest == 1:  # measured once, at the end
                mean = y.mean().clip(y.min(), y.max())  # rounding may move the mean of equal numbers past them
                ends = [[mean - y.min()], [y.max() - mean]]
                axes.errorbar(x, [mean], ends, color=colour(i), label=variant.name, marker="o", markersize=4)
                continue
            _draw_band(axes, x, y, colour(i), variant.name)
        axes.set(xlabel=label, ylabel=metric, title=title)
        if log is None:
            log = cost != "round" and _cost_range(every) > WIDE_RANGE
        if log:
            _set_log_scale(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
        save(figure, file)


def plot_client_metric(variants: Sequence[Variant], metric: str, file: Path, title: str = "") -> None:
    """Plot a metric of each client, worst first, over the share of clients in %.

    The values are those of the last evaluation; the line is the mean over runs, the band their range.
    """
    grid = np.linspace(0, 1, 201)
    with figure_style():
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        colour = colours(len(variants))
        for i, variant in enumerate(variants):
            ys = np.stack([_quantiles(np.sort(values), grid) for values in variant.client_values(metric)])
            if minimised(metric):
                ys = ys[:, ::-1]
            _draw_band(axes, 100 * grid, ys, colour(i), variant.name)
        axes.set(xlabel="% of clients, worst first", ylabel=f"{metric} on own test rows", title=title, xlim=(0, 100))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
        save(figure, file)


def _draw_band(axes: Axes, x: np.ndarray, ys: np.ndarray, colour: tuple[float, ...], name: str) -> None:
    """Mean of the runs ys, (runs, n), as a line, and their range as a band."""
    axes.plot(x, ys.mean(0), color=colour, label=name, linewidth=1.6)
    if len(ys) > 1:
        axes.fill_between(x, ys.min(0), ys.max(0), color=colour, alpha=0.12, linewidth=0)


def _quantiles(ordered: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Values of the sorted (clients,) at shares of the clients, as a step function."""
    return ordered[np.minimum((shares * len(ordered)).astype(int), len(ordered) - 1)]


def _cost_range(every: Sequence[Curves]) -> float:
    """Largest final cost / smallest final cost."""
    ends = [x[-1] for runs in every for x, _ in runs if len(x) and x[-1] > 0]
    return max(ends) / min(ends) if ends else 1.0


def _set_log_scale(axes: Axes) -> None:
    """Make the x axis logarithmic; write its numbers in full where they are neither tiny nor huge."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if 1e-3 <= low and high <= 1e5:
        axes.xaxis.set_major_formatter("{x:g}")
    if high / low < 30:  # hardly a power of ten in this range
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
