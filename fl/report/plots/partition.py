"""Rows of each client by label: bubbles for few clients, stacked bars for many."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fl.data.partition import Partition
from fl.data.partition_stats import held
from fl.report.plots.style import figure_style, new_figure, save

MAX_BUBBLE_CLIENTS, MAX_BUBBLE_CLASSES = 40, 30
MAX_BARS = 200


def plot_partition(partition: Partition, labels: np.ndarray | None, file: Path) -> None:
    """Plot how many rows of each class each client has.

    Few clients: a bubble for each client and class, its area the number of rows. Many: a stacked bar for each client,
    the largest first; of more than 200 clients, 200 evenly spaced in this order are shown. Without class labels, bars
    show rows only.

    Args:
        partition: rows of each client.
        labels: class of each row, (rows,) integers; None or other labels show sizes only.
        file: the figure; its suffix chooses the format.
    """
    sizes = np.diff(partition.offsets)
    has_classes = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    found = held(labels, partition) if has_classes and labels is not None else None
    few = found is not None and len(sizes) <= MAX_BUBBLE_CLIENTS and len(found[0]) <= MAX_BUBBLE_CLASSES
    shown = np.arange(len(sizes)) if few else _largest_first(sizes)
    classes, counts = None, sizes[shown][:, None]
    if found is not None:
        classes, client, which, rows = found
        counts = np.zeros((len(shown), len(classes)), np.int64)
        place = np.full(len(sizes), -1)
        place[shown] = np.arange(len(shown))
        seen = place[client] >= 0
        counts[place[client[seen]], which[seen]] = rows[seen]
    with figure_style():
        if few and classes is not None:
            figure = _bubbles(counts, classes)
        else:  # clients of equal size are ordered by their main class
            figure = _bars(counts[np.lexsort((counts.argmax(1), -sizes[shown]))], classes)
            note = "" if len(shown) == len(sizes) else f", {len(shown)} of {len(sizes)} shown"
            figure.axes[0].set_xlabel(f"clients, largest first{note}")
        save(figure, file)


def _largest_first(sizes: np.ndarray) -> np.ndarray:
    """Clients by size, at most `MAX_BARS` of them, evenly spaced."""
    order = np.argsort(-sizes, kind="stable")
    return order[np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), MAX_BARS)).astype(np.int64))]


def _bubbles(counts: np.ndarray, classes: np.ndarray) -> Figure:
    clients, labels = counts.shape
    width, height = max(4.0, 1.2 + 0.24 * clients), 1.6 + 0.24 * labels
    figure, (above, axes) = new_figure(width, height, 2, 1, sharex=True, height_ratios=(1, 0.35 * labels))
    above.bar(np.arange(clients), counts.sum(1), color="0.6", width=0.7)
    above.set_ylabel("rows")
    c, k = np.nonzero(counts)
    areas = 150 * counts[c, k] / counts.max()  # the largest fills its cell
    axes.scatter(c, k, s=areas, c=k, cmap="tab10" if labels <= 10 else "viridis", vmin=0, vmax=max(labels - 1, 9))
    step = max(1, clients // 20)
    axes.set(xlabel="client", ylabel="label", xlim=(-0.7, clients - 0.3), ylim=(-0.7, labels - 0.3))
    axes.set(xticks=range(0, clients, step), yticks=range(labels), yticklabels=[str(name) for name in classes])
    axes.set_axisbelow(True)
    return figure


def _bars(counts: np.ndarray, classes: np.ndarray | None) -> Figure:
    figure, axes = new_figure(7.2, 3.4)
    labels, bottom = counts.shape[1], np.zeros(len(counts))
    colours = matplotlib.colormaps["tab10" if labels <= 10 else "viridis"].resampled(max(labels, 10))
    for k in range(labels):
        name = None if classes is None else str(classes[k])
        axes.bar(np.arange(len(counts)), counts[:, k], 1.0, bottom, color=colours(k), linewidth=0, label=name)
        bottom += counts[:, k]
    axes.set(ylabel="rows", xlim=(-0.5, len(counts) - 0.5), xticks=[])
    axes.grid(axis="x", visible=False)
    axes.set_axisbelow(True)
    if classes is not None and labels <= 20:
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], names[::-1], loc="outside right upper", frameon=False)
    elif classes is not None:
        scale = ScalarMappable(Normalize(0, labels - 1), colours)
        figure.colorbar(scale, ax=axes, label="label, in ascending order")
    return figure
