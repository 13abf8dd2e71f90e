"""What all figures share: size, style, colours, lines that differ without colour, saving.

Figures are made without pyplot: no window opens, and the user's matplotlib backend is not changed.
"""

from __future__ import annotations

import contextlib
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from fl.checks import positive
from fl.errors import ConfigError
from fl.storage.place import check_file

WIDTHS = {"column": 3.4, "text": 6.9}  # inches: a column of a page with two, and the whole width of a page
DEFAULT_WIDTH = 6.4  # inches
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A6FB0", "#7A5230")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 3)))


@dataclass(frozen=True)
class Look:
    """How a figure looks.

    Args:
        width: width in inches, positive.
        height: height in inches, positive; None follows from the width.
        title: title above the figure.
        labels: names in the legend that differ from those of the variants.
    """

    width: float = DEFAULT_WIDTH
    height: float | None = None
    title: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive(width=self.width, height=self.height)

    def name(self, variant: str) -> str:
        """Return the name of a variant in the legend."""
        return self.labels.get(variant, variant)

    @property
    def narrow(self) -> bool:
        """Whether a legend beside the axes would leave them no room."""
        return self.width < 5.0


def wrapped(label: str) -> str:
    """Break the label of a vertical axis into lines that fit beside it.

    >>> wrapped("accuracy (mean weighted by samples) of clients on own test rows")
    'accuracy (mean weighted by samples) of\\nclients on own test rows'
    """
    return textwrap.fill(label, 40)


def width_of(text: str) -> float:
    """Return a width in inches, from "column", "text" or a number.

    >>> width_of("column"), width_of("5.5")
    (3.4, 5.5)

    Raises:
        ValueError: it is neither.
    """
    try:
        return WIDTHS.get(text) or float(text)
    except ValueError:
        raise ValueError(f"width: {text!r} is neither a number of inches nor one of {list(WIDTHS)}") from None


@dataclass(frozen=True)
class Line:
    """Colour, dashes and marker of a curve. The first twelve also differ in black and white."""

    color: str
    linestyle: Any
    marker: str

    @classmethod
    def number(cls, i: int) -> Line:
        """Return the look of curve number i."""
        return cls(_COLOURS[i % len(_COLOURS)], _DASHES[i % len(_DASHES)], _MARKERS[i % len(_MARKERS)])


@contextlib.contextmanager
def figure_style(grid: bool = True, small: bool = False) -> Iterator[None]:
    """Style of the figures that are made in this context; `small`: for the column of a paper."""
    with matplotlib.rc_context(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": grid,
            "grid.alpha": 0.25,
            "font.size": 8 if small else 9,
            "pdf.fonttype": 42,  # text stays text, as publishers ask for
            "svg.hashsalt": "fl",
        }
    ):
        yield


class Drawing(Figure):
    """A figure that shows itself in a notebook, whatever matplotlib's backend is."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return a figure in inches and its axes: one, or an array if there are several or `squeeze` is False."""
    figure = Drawing(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def colours(number: int) -> Colormap:
    """Colour map with a distinct colour for each of `number` parts (up to 20)."""
    return matplotlib.colormaps["tab10" if number <= 10 else "tab20"]


def add_legend(figure: Figure, axes: Axes, look: Look) -> None:
    """Add the legend beside the axes, or above them in a narrow figure."""
    handles, labels = axes.get_legend_handles_labels()
    if look.narrow:
        columns = 2 if max(map(len, labels), default=0) < 22 else 1
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    else:
        figure.legend(handles, labels, loc="outside right upper", frameon=False)


def add_notes(figure: Figure, notes: Sequence[str]) -> None:
    """Write notes below the axes."""
    if notes:
        figure.supxlabel("; ".join(notes), fontsize="x-small", color="0.35", wrap=True)


def set_log_scale(axes: Axes) -> None:
    """Make the x axis logarithmic; write its numbers in full where they are neither tiny nor huge."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if 1e-3 <= low and high <= 1e5:
        axes.xaxis.set_major_formatter("{x:g}")
    if high / low < 30:  # hardly a power of ten in this range
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")


def check_figure(key: str, file: Path) -> None:
    """Raise a `ConfigError` at `key` if the suffix is not that of a format, or the file cannot be written."""
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix.removeprefix(".").lower() not in formats:
        raise ConfigError(key, f"{file} has no suffix of a format, such as .pdf, .svg or .png; one of {formats}")
    check_file(key, file)


def save(figure: Figure, file: Path) -> None:
    """Write a figure; folders are made as needed. A PNG file does not name matplotlib's version.

    Raises:
        ConfigError: the suffix is not that of a format, or the file cannot be written.
    """
    check_figure("figure", file)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Software": None} if file.suffix == ".png" else None)


def time_unit(hours: float) -> tuple[str, int]:
    """(axis label, units per hour) for times up to `hours`.

    >>> time_unit(0.01), time_unit(20.0)
    (('simulated seconds', 3600), ('simulated hours', 1))
    """
    units = (("simulated seconds", 3600), ("simulated minutes", 60), ("simulated hours", 1))
    return next(((name, number) for name, number in units if hours * number < 300), units[-1])
