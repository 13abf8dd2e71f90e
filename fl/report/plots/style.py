"""What all figures share: style, colours, saving. Figures are only written to files; no window opens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import Colormap
from matplotlib.figure import Figure


@contextlib.contextmanager
def figure_style(grid: bool = True) -> Iterator[None]:
    """Style of the figures that are made in this context."""
    with plt.rc_context(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": grid,
            "grid.alpha": 0.25,
            "font.size": 9,
            "svg.hashsalt": "fl",
        }
    ):
        yield


def colours(number: int) -> Colormap:
    """Colour map with a distinct colour for each of `number` variants (up to 20)."""
    return plt.get_cmap("tab10" if number <= 10 else "tab20")


def save(figure: Figure, file: Path) -> None:
    """Write a figure and close it; folders are made as needed. A PNG file does not name matplotlib's version."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Software": None} if file.suffix == ".png" else None)
    plt.close(figure)


def time_unit(hours: float) -> tuple[str, int]:
    """(axis label, units per hour) for times up to `hours`.

    >>> time_unit(0.01), time_unit(20.0)
    (('simulated seconds', 3600), ('simulated hours', 1))
    """
    units = (("simulated seconds", 3600), ("simulated minutes", 60), ("simulated hours", 1))
    return next(((name, number) for name, number in units if hours * number < 300), units[-1])
