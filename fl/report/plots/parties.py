"""Parties of a vertical partition: their importance, and the correlations of their columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fl.data.party_stats import PartyStats
from fl.report.plots.style import colours, figure_style, new_figure, save

MAX_NUMBERED = 32  # columns whose numbers are written at the axes


def plot_parties(stats: PartyStats, file: Path) -> None:
    """Plot the importance of each party, and beside it the correlations of all columns, ordered by party.

    Args:
        stats: statistics of the parties; the active party is the first.
        file: the figure; its suffix chooses the format.
    """
    count, sizes = len(stats.columns), [len(own) for own in stats.columns]
    names = ["active", *(f"client {client}" for client in range(count - 1))]
    paint = colours(count)
    with figure_style(grid=False):
        figure, (bars, matrix) = new_figure(8.6, 4.0, 1, 2, width_ratios=(1, 1.35))
        places = np.arange(count)
        bars.barh(places, stats.importance, color=[paint(p) for p in places], height=0.7)
        for place, (share, size) in enumerate(zip(stats.importance, sizes)):
            bars.text(share + 0.01, place, f"{size} column{'s' * (size != 1)}", va="center", fontsize=8)
        bars.set(yticks=places, yticklabels=names, xlim=(0, 1.3 * stats.importance.max()))
        bars.set(xlabel="share of importance, linear model", title=f"alpha = {stats.alpha:.2g}")
        bars.invert_yaxis()
        blocks = [values.shape[0] for values in np.split(stats.correlation, _ends(stats)[:-1])]
        image = matrix.imshow(stats.correlation, vmin=-1, vmax=1, cmap="RdBu_r")
        for end in np.cumsum(blocks)[:-1]:
            matrix.axhline(end - 0.5, color="black", linewidth=1)
            matrix.axvline(end - 0.5, color="black", linewidth=1)
        width = len(stats.correlation)
        if width <= MAX_NUMBERED and width == sum(sizes):
            labels = np.concatenate(stats.columns)
            matrix.set_xticks(range(width), labels, fontsize=6, rotation=90)
            matrix.set_yticks(range(width), labels, fontsize=6)
        else:
            matrix.set(xticks=[], yticks=[])
        matrix.spines[["top", "right"]].set_visible(True)
        matrix.set(xlabel="column, ordered by party", title=f"rank correlations, Icor = {stats.icor:.2g}")
        figure.colorbar(image, ax=matrix, shrink=0.8)
        save(figure, file)


def _ends(stats: PartyStats) -> np.ndarray:
    """Return where each party's numbers end in the matrix; parties of images have several numbers per column."""
    sizes = np.array([len(own) for own in stats.columns])
    return np.cumsum(sizes * (len(stats.correlation) // sizes.sum()))
