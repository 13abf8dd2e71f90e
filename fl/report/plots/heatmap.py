"""Accuracy matrices of task streams as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from fl.report.plots.style import figure_style, new_figure, save


def plot_accuracy_matrices(matrices: Sequence[tuple[str, np.ndarray]], file: Path) -> None:
    """Plot the matrices a[t, s] of one or more runs side by side, the first task on top; each is (title, (T, T))."""
    with figure_style(grid=False):
        width = 0.8 + 2.9 * len(matrices)
        figure, every = new_figure(width, 3.2, 1, len(matrices), squeeze=False)
        for axes, (name, values) in zip(every[0], matrices):
            image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
            if values.shape[1] <= 10:
                write_values(axes, values)
            rows, columns = values.shape
            axes.set(title=name, xlabel="accuracy on task", xticks=range(columns), yticks=range(rows))
        every[0][0].set_ylabel("after task")
        figure.colorbar(image, ax=every[0].tolist(), shrink=0.8)
        save(figure, file)


def write_values(axes: Axes, values: np.ndarray, low: float = 0.0, high: float = 1.0, digits: int = 2) -> None:
    """Write the values, (rows, columns), into the cells of a heat map whose colours reach from `low` to `high`."""
    size = 8 if values.shape[1] <= 6 else 6
    for (t, s), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < low + 0.6 * (high - low) else "black"
            text = f"{value:.{digits}f}".removeprefix("0")
            axes.text(s, t, text, ha="center", va="center", color=colour, fontsize=size)
