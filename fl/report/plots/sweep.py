"""The plot of a sweep: the metric that chooses against the values that were tried.

One key: a line for each variant. Two keys with lists of values: a heat map for each variant. Else a panel for each key.
The chosen setting is marked, and its seeds are points.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fl.config.space import Range, Values, listed
from fl.report.names import readable
from fl.report.plots.heatmap import write_values
from fl.report.plots.style import (
    Line,
    Look,
    add_legend,
    add_notes,
    figure_style,
    new_figure,
    save,
    set_log_scale,
    wrapped,
)
from fl.report.sweeps import Trial, TunedVariant, read_sweep

WIDE = 10.0  # largest value / smallest value; wider lists have a logarithmic axis
MOST_TICKS = 8  # values that are written below the axis
MARK = "#D55E00"  # frame of the chosen cell of a heat map


def plot_sweep(out: Path, file: Path, look: Look = Look(), metric: str | None = None, only: Sequence[str] = ()) -> None:
    """Plot the sweep in a folder into a file; the other arguments are those of `draw_sweep` and `read_sweep`."""
    variants = [each for each in read_sweep(out, metric) if not only or each.name in only]
    save(draw_sweep(variants, look), file)


def draw_sweep(variants: Sequence[TunedVariant], look: Look = Look()) -> Figure:
    """Draw the trials of tuned variants.

    Args:
        variants: the variants; they may search different keys.
        look: size, title and labels.

    Raises:
        ValueError: no trial has measured the metric yet.
    """
    if not any(trial.values for variant in variants for trial in variant.trials):
        raise ValueError(f"metric: {variants[0].by!r} is in no trial of the sweep")
    keys = list(dict.fromkeys(key for variant in variants for key in variant.space))
    ranges = any(isinstance(values, Range) for variant in variants for values in variant.space.values())
    if len(keys) == 2 and not ranges and all(len(variant.space) == 2 for variant in variants):
        return _draw_heatmaps(variants, keys, look)
    return _draw_panels(variants, keys, look)


def _draw_panels(variants: Sequence[TunedVariant], keys: Sequence[str], look: Look) -> Figure:
    with figure_style(small=look.narrow):
        width = look.width * (1 if len(keys) == 1 else 0.6 * len(keys))
        figure, panels = new_figure(width, look.height or 0.62 * look.width, 1, len(keys), squeeze=False, sharey=True)
        for axes, key in zip(panels[0], keys):
            places = _Places([variant.space[key] for variant in variants if key in variant.space])
            for i, variant in enumerate(variants):
                if key in variant.space:
                    _draw_variant(axes, variant, key, places, Line.number(i), look, joined=len(variant.space) == 1)
            places.prepare(axes)
            axes.set(xlabel=key)
        panels[0][0].set(ylabel=wrapped(readable(variants[0].by)))
        figure.suptitle(look.title)
        add_legend(figure, panels[0][0], look)
        add_notes(figure, _notes(variants))
    return figure


def _draw_variant(
    axes: Axes, variant: TunedVariant, key: str, places: _Places, line: Line, look: Look, joined: bool
) -> None:
    """Draw the trials of a variant against one key, in the order of its values."""
    complete = [trial for trial in variant.trials if trial.values and not trial.stopped]
    complete.sort(key=lambda trial: places.of(trial.setting[key]))
    x = [places.of(trial.setting[key]) for trial in complete]
    shown: dict[str, Any] = {"color": line.color, "marker": line.marker, "markersize": 4, "linewidth": 1.4}
    style = line.linestyle if joined else "none"
    axes.plot(x, [trial.values[0] for trial in complete], linestyle=style, label=look.name(variant.name), **shown)
    stopped = [trial for trial in variant.trials if trial.stopped and trial.values]
    hollow = {**shown, "markerfacecolor": "none", "linestyle": "none"}
    axes.plot([places.of(t.setting[key]) for t in stopped], [t.values[0] for t in stopped], **hollow)
    for trial in variant.trials:
        if trial.failed:
            axes.plot(places.of(trial.setting[key]), 0.02, "x", color=line.color, transform=axes.get_xaxis_transform())
    if variant.chosen is not None and variant.chosen.values:
        _mark(axes, places.of(variant.chosen.setting[key]), variant.chosen, line)


def _mark(axes: Axes, x: float, chosen: Trial, line: Line) -> None:
    """Mark the chosen setting with a star at the mean over seeds, and a small point for each seed."""
    if len(chosen.values) > 1:
        axes.plot([x] * len(chosen.values), chosen.values, ".", color=line.color, markersize=4, alpha=0.7, zorder=4)
    mean = float(np.mean(chosen.values))
    axes.plot(x, mean, "*", markersize=13, markerfacecolor=line.color, markeredgecolor="black", zorder=5)


def _notes(variants: Sequence[TunedVariant]) -> list[str]:
    """What the marks are."""
    trials = [trial for variant in variants for trial in variant.trials]
    seeds = max((len(trial.values) for trial in trials if trial.chosen), default=0)
    notes = [f"star: chosen setting{f', mean of {seeds} seeds (points)' if seeds > 1 else ''}"] if seeds else []
    notes += ["hollow: stopped early by the search"] if any(trial.stopped for trial in trials) else []
    return notes + (["x: training failed"] if any(trial.failed for trial in trials) else [])


class _Places:
    """Places of a key's values on an axis: numbers as they are, other values side by side."""

    def __init__(self, spaces: Sequence[Values]):
        tried = [value for values in spaces if not isinstance(values, Range) for value in values]
        ends = [end for values in spaces if isinstance(values, Range) for end in (values.low, values.high)]
        self._numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in tried)
        self._names: list[Any] = []
        for value in () if self._numeric else tried:
            if value not in self._names:
                self._names.append(value)
        ranged = [values for values in spaces if isinstance(values, Range)]
        numbers = [*ends, *tried] if self._numeric else []
        wide = bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) >= WIDE
        self._whole = bool(ranged) and all(each.kind == "int" for each in ranged)
        self._ticks = [] if ranged or not self._numeric or len(set(tried)) > MOST_TICKS else sorted(set(tried))
        self._log = all(each.kind == "log" for each in ranged) if ranged and numbers and min(numbers) > 0 else wide

    def of(self, value: Any) -> float:
        """The place of a value."""
        return float(value) if self._numeric else float(self._names.index(value))

    def prepare(self, axes: Axes) -> None:
        """Set the scale or the names of the x axis."""
        if self._log:
            set_log_scale(axes)
        if self._whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if self._ticks:
            axes.set_xticks(self._ticks, [f"{value:g}" for value in self._ticks])
            axes.minorticks_off()
        elif not self._numeric:
            axes.set_xticks(range(len(self._names)), [str(value) for value in self._names])


def _draw_heatmaps(variants: Sequence[TunedVariant], keys: Sequence[str], look: Look) -> Figure:
    """A heat map for each variant: the first key from left to right, the second from bottom to top."""
    with figure_style(grid=False, small=look.narrow):
        width = max(look.width, 0.8 + 2.6 * len(variants))
        figure, every = new_figure(width, look.height or 3.4, 1, len(variants), squeeze=False)
        means = [_matrix(variant, keys) for variant in variants]
        low, high = (pick([pick(matrix) for matrix in means]) for pick in (np.nanmin, np.nanmax))
        for axes, variant, matrix in zip(every[0], variants, means):
            image = axes.imshow(matrix, vmin=low, vmax=high, cmap="viridis", origin="lower", aspect="auto")
            write_values(axes, matrix, low, high, digits=3)
            if variant.chosen is not None:
                row, column = (listed(variant.space[key]).index(variant.chosen.setting[key]) for key in keys[::-1])
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=MARK, linewidth=3))
            names = [[str(value) for value in listed(variant.space[key])] for key in keys]
            axes.set(title=look.name(variant.name), xlabel=keys[0], ylabel=keys[1])
            axes.set_xticks(range(len(names[0])), names[0])
            axes.set_yticks(range(len(names[1])), names[1])
        figure.colorbar(image, ax=every[0].tolist(), shrink=0.9, label=readable(variants[0].by))
        figure.suptitle(look.title)
        add_notes(
            figure, ["frame: chosen setting", *(n for n in _notes(variants) if not n.startswith(("star", "hol")))]
        )
    return figure


def _matrix(variant: TunedVariant, keys: Sequence[str]) -> np.ndarray:
    """Mean over seeds of each combination, (values of the second key, of the first); NaN where nothing was measured."""
    first, second = (listed(variant.space[key]) for key in keys)
    matrix = np.full((len(second), len(first)), np.nan)
    for trial in variant.trials:
        if trial.values:
            matrix[second.index(trial.setting[keys[1]]), first.index(trial.setting[keys[0]])] = np.mean(trial.values)
    return matrix
