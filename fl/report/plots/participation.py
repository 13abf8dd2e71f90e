"""Histograms of participations and staleness, and bars of outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fl.report.participation import ALL_OUTCOMES, ByVariant, mean_histogram
from fl.report.plots.bars import draw_stacked_bars
from fl.report.plots.style import colours, figure_style, new_figure, save

OUTCOME_COLOURS = ("tab:blue", "tab:purple", "tab:orange", "tab:red", "0.6", "0.85")  # of ALL_OUTCOMES
MAX_BINS = 30  # of a histogram; beyond, a bin holds several numbers

Histograms = Sequence[tuple[str, Sequence[np.ndarray]]]  # (variant, values in each of its runs)


def plot_participation(found: ByVariant, file: Path, title: str = "") -> None:
    """Plot how often clients took part and, if the runs know them, staleness of updates and outcomes of clients."""
    times = [(name, [run.times for run in runs]) for name, runs in found]
    stale = [(name, [run.staleness for run in runs if run.staleness is not None]) for name, runs in found]
    stale = [(name, runs) for name, runs in stale if runs]
    outcomes = [
        {name: float(np.mean([run.outcomes.get(name, 0) for run in runs])) for name in ALL_OUTCOMES}
        for _, runs in found
    ]
    has_outcomes = any(sum(each.values()) for each in outcomes)
    panels = 1 + bool(stale) + has_outcomes
    with figure_style():
        figure, every = new_figure(0.6 + 4.2 * panels, 3.4, 1, panels, squeeze=False)
        panel = iter(every[0])
        colour = {name: colours(len(found))(i) for i, (name, _) in enumerate(found)}
        axes = next(panel)
        _draw_histograms(axes, times, colour)
        axes.set(xlabel="participations of a client", ylabel="clients", title=title)
        if stale:
            axes = next(panel)
            _draw_histograms(axes, stale, colour)
            axes.set(xlabel="staleness in server steps", ylabel="updates")
        if has_outcomes:
            axes = next(panel)
            parts = [(outcome, colour, "") for outcome, colour in zip(ALL_OUTCOMES, OUTCOME_COLOURS)]
            draw_stacked_bars(axes, [name for name, _ in found], outcomes, parts, {"in": "in the sum"})
            axes.set(xlabel="clients of all rounds")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
        if len(found) > 1:
            handles = every[0][0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside lower center", ncols=min(4, len(found)), frameon=False)
        save(figure, file)


def _draw_histograms(axes: Axes, found: Histograms, colour: Mapping[str, tuple[float, ...]]) -> None:
    """Draw histograms as outlines, so that one shows through another."""
    each = [(name, mean_histogram(runs)) for name, runs in found]
    longest = max(len(counts) for _, counts in each)
    width = -(-longest // MAX_BINS)
    bins = -(-longest // width)
    edges = np.arange(bins + 1) * width - 0.5
    for name, counts in each:
        steps = np.pad(counts, (0, bins * width - len(counts))).reshape(bins, width).sum(1)
        axes.stairs(steps, edges, color=colour[name], label=name, linewidth=1.6)
        axes.stairs(steps, edges, color=colour[name], fill=True, alpha=0.12)
    if width > 1:
        axes.annotate(f"bins of {width} numbers", (0.98, 0.95), xycoords="axes fraction", ha="right", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
