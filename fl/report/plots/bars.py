"""Stacked horizontal bars, and the figure of where simulated time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from fl.report.costs import ACTIVITIES
from fl.report.plots.style import Look, figure_style, new_figure, save, time_unit
from fl.report.render import format_number
from fl.report.variants import OVERLAPPING, Variant

COLOURS = ("tab:blue", "tab:orange", "tab:green", "0.8")  # of ACTIVITIES


def plot_simulated_time(variants: Sequence[Variant], file: Path, look: Look = Look()) -> None:
    """Plot simulated hours by variant: download, compute, upload of the last client in each round, and waiting."""
    hours = [variant.simulated_hours() for variant in variants]
    label, scale = time_unit(max(sum(each.values()) for each in hours))
    scaled = [{name: scale * value for name, value in each.items()} for each in hours]
    parts = [*((name, colour, "") for name, colour in zip(ACTIVITIES, COLOURS)), (OVERLAPPING, "white", "////")]
    with figure_style(small=look.narrow):
        figure, axes = new_figure(look.width, look.height or 1.2 + 0.42 * len(variants))
        draw_stacked_bars(axes, [look.name(variant.name) for variant in variants], scaled, parts, {})
        axes.set(xlabel=label, title=look.title)
        columns = 2 if look.narrow else 5
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
        save(figure, file)


def draw_stacked_bars(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[Mapping[str, float]],
    parts: Sequence[tuple[str, str, str]],
    labels: Mapping[str, str],
) -> None:
    """Draw a horizontal bar for each name, the first on top, with the total at its end.

    Args:
        axes: where to draw.
        names: labels of the bars.
        values: for each bar, the length of each part.
        parts: (key in `values`, colour, hatch) in order; parts without visible length are left out.
        labels: legend labels that differ from the key.
    """
    left = np.zeros(len(names))
    longest = max(sum(each.values()) for each in values)
    for key, colour, hatch in parts:
        width = np.array([each.get(key, 0.0) for each in values])
        if width.max() < 1e-6 * longest:
            continue
        bars = axes.barh(np.arange(len(names)), width, 0.65, left, color=colour, label=labels.get(key, key))
        for bar in bars:
            if hatch:
                bar.set(edgecolor="0.5", hatch=hatch)
            else:
                bar.set(linewidth=0)
        left += width
    for place, total in enumerate(left):
        text = format_number(total)
        axes.annotate(text, (total, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axes.set_xlim(0, 1.13 * longest or 1)
    axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)
