"""Plots as files: curves of a metric against its cost, and the accuracy matrix of a task stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no window is ever opened

import matplotlib.pyplot as plt
import numpy as np

from fl.report.compare import Variant

LABELS = {"round": "rounds", "up": "MB up, all clients", "down": "MB down, all clients"}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "svg.hashsalt": "fl",
}


def curves(chosen: Sequence[Variant], metric: str, cost: str, file: Path, title: str = "") -> None:
    """The mean over runs as a line and their range as a band, against round, MB up or MB down."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        colours = plt.get_cmap("tab10" if len(chosen) <= 10 else "tab20")
        for i, variant in enumerate(chosen):
            xs, ys = zip(*variant.curves(metric, cost))
            shortest = min(map(len, xs))
            x = np.mean([x[:shortest] for x in xs], 0)
            y = np.stack([y[:shortest] for y in ys])
            marker = "o" if shortest == 1 else None
            axes.plot(x, y.mean(0), color=colours(i), label=variant.name, linewidth=1.6, marker=marker, markersize=4)
            if len(y) > 1:
                axes.fill_between(x, y.min(0), y.max(0), color=colours(i), alpha=0.12, linewidth=0)
        axes.set(xlabel=LABELS[cost], ylabel=metric, title=title)
        if cost != "round" and _spread([variant.curves(metric, cost) for variant in chosen]) > 20:
            axes.set_xscale("log")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
        _save(figure, file)


def _spread(every: list) -> float:
    """How many times the dearest variant costs the cheapest."""
    ends = [x[-1] for runs in every for x, _ in runs if len(x) and x[-1] > 0]
    return max(ends) / min(ends) if ends else 1.0


def heatmap(matrices: Sequence[tuple[str, np.ndarray]], file: Path) -> None:
    """a[t, s] of one or more runs side by side, rows from the first task down."""
    with plt.rc_context({**STYLE, "axes.grid": False}):
        width = 0.8 + 2.9 * len(matrices)
        figure, every = plt.subplots(1, len(matrices), figsize=(width, 3.2), layout="constrained", squeeze=False)
        for axes, (name, values) in zip(every[0], matrices):
            image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
            if values.shape[1] <= 10:
                size = 8 if values.shape[1] <= 6 else 6
                for (t, s), value in np.ndenumerate(values):
                    if np.isfinite(value):
                        colour = "white" if value < 0.6 else "black"
                        axes.text(s, t, f"{value:.2f}".lstrip("0"), ha="center", va="center", color=colour, fontsize=size)
            axes.set(title=name, xlabel="accuracy on task", xticks=range(values.shape[1]), yticks=range(values.shape[0]))
        every[0][0].set_ylabel("after task")
        figure.colorbar(image, ax=every[0].tolist(), shrink=0.8)
        _save(figure, file)


def _save(figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Software": None} if file.suffix == ".png" else None)
    plt.close(figure)
