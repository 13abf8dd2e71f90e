"""Plots as files: curves of a metric against its cost, where simulated time went, who took part, the accuracy matrix of a task
stream, and who holds what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no window is ever opened

import matplotlib.pyplot as plt
import numpy as np

from fl.data.partition import Partition
from fl.data.partition_stats import held
from fl.report.compare import COSTS, WENT, Variant
from fl.report.participation import Found, mean_histogram
from fl.report.render import number
from fl.system.synchronous import OUTCOMES
from fl.tasks.task import minimised

LABELS = {cost: f"{what}, all clients" if "MB" in what else what for cost, (what, *_) in COSTS.items()}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "svg.hashsalt": "fl",
}


def curves(
    chosen: Sequence[Variant], metric: str, cost: str, file: Path, title: str = "", log: bool | None = None
) -> None:
    """The mean over runs as a line and their range as a band, against one of `COSTS`; `log`: its axis [where costs lie far apart]."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        colours = plt.get_cmap("tab10" if len(chosen) <= 10 else "tab20")
        every = [variant.curves(metric, cost) for variant in chosen]
        label, times = _clock(max(x[-1] for runs in every for x, _ in runs)) if cost == "hours" else (LABELS[cost], 1)
        for i, (variant, runs) in enumerate(zip(chosen, every)):
            xs, ys = zip(*runs)
            shortest = min(map(len, xs))
            x = times * np.mean([x[:shortest] for x in xs], 0)
            y = np.stack([y[:shortest] for y in ys])
            if shortest == 1:  # measured once, at the end
                mean = y.mean().clip(y.min(), y.max())  # of equal numbers the mean may be rounded past them
                ends = [[mean - y.min()], [y.max() - mean]]
                axes.errorbar(x, [mean], ends, color=colours(i), label=variant.name, marker="o", markersize=4)
                continue
            _band(axes, x, y, colours(i), variant.name)
        axes.set(xlabel=label, ylabel=metric, title=title)
        if log is None:
            log = cost != "round" and _spread(every) > 20
        if log:
            _logarithmic(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
        _save(figure, file)


def clients(chosen: Sequence[Variant], metric: str, file: Path, title: str = "") -> None:
    """Who loses: the metric of each client at the last evaluation, the worst first, over the share of clients; the mean over runs
    as a line and their range as a band."""
    grid = np.linspace(0, 1, 201)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        colours = plt.get_cmap("tab10" if len(chosen) <= 10 else "tab20")
        for i, variant in enumerate(chosen):
            ys = np.stack([_steps(np.sort(values), grid) for values in variant.clients(metric)])
            if minimised(metric):
                ys = ys[:, ::-1]
            _band(axes, 100 * grid, ys, colours(i), variant.name)
        axes.set(xlabel="% of clients, worst first", ylabel=f"{metric} on own test rows", title=title, xlim=(0, 100))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
        _save(figure, file)


def _band(axes, x: np.ndarray, ys: np.ndarray, colour, name: str) -> None:
    """The mean of the runs ys (runs, n) as a line, and their range."""
    axes.plot(x, ys.mean(0), color=colour, label=name, linewidth=1.6)
    if len(ys) > 1:
        axes.fill_between(x, ys.min(0), ys.max(0), color=colour, alpha=0.12, linewidth=0)


def _steps(ordered: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Of values in order, one per client, the one whose client covers each share of them."""
    return ordered[np.minimum((grid * len(ordered)).astype(int), len(ordered) - 1)]


def _spread(every: list) -> float:
    """How many times the dearest variant costs the cheapest."""
    ends = [x[-1] for runs in every for x, _ in runs if len(x) and x[-1] > 0]
    return max(ends) / min(ends) if ends else 1.0


def _clock(hours: float) -> tuple[str, int]:
    """(label, how many to an hour) of the unit in which to show times up to so many hours."""
    units = (("simulated seconds", 3600), ("simulated minutes", 60), ("simulated hours", 1))
    return next(((name, many) for name, many in units if hours * many < 300), units[-1])


def _logarithmic(axes) -> None:
    """The x axis, its numbers written out where they are neither tiny nor huge."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if 1e-3 <= low and high <= 1e5:
        axes.xaxis.set_major_formatter("{x:g}")
    if high / low < 30:  # hardly a power of ten among them
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")


LEG_COLOURS = ("tab:blue", "tab:orange", "tab:green", "0.8")


def time(chosen: Sequence[Variant], file: Path, title: str = "") -> None:
    """Where the simulated hours of each went: download, compute and upload of the last client in each round, and waiting."""
    found = [variant.went() for variant in chosen]
    label, times = _clock(max(sum(went.values()) for went in found))
    found = [{name: times * hours for name, hours in went.items()} for went in found]
    parts = [*((name, colour, "") for name, colour in zip(WENT, LEG_COLOURS)), ("", "white", "////")]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.42 * len(chosen)), layout="constrained")
        _stacked(axes, [variant.name for variant in chosen], found, parts, {"": "overlapping trips"})
        axes.set(xlabel=label, title=title)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        _save(figure, file)


def _stacked(axes, names, found, parts, labels) -> None:
    """A horizontal bar for each name, the first on top, of the parts (key, colour, hatch) of what was found for it."""
    left, longest = np.zeros(len(names)), max(sum(of.values()) for of in found)
    for key, colour, hatch in parts:
        width = np.array([of.get(key, 0.0) for of in found])
        if width.max() < 1e-6 * longest:
            continue
        label, edge = labels.get(key, key), {"edgecolor": "0.5", "hatch": hatch} if hatch else {"linewidth": 0}
        axes.barh(np.arange(len(names)), width, 0.65, left, color=colour, label=label, **edge)
        left += width
    for place, total in enumerate(left):
        axes.annotate(number(total), (total, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axes.set_xlim(0, 1.13 * longest or 1)
    axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)


FATE_COLOURS = ("tab:blue", "tab:purple", "tab:orange", "tab:red", "0.6", "0.85")
MANY_STEPS = 30  # numbers that a histogram shows one by one


def participation(found: Found, file: Path, title: str = "") -> None:
    """How often clients took part; where there is something to tell, how stale updates were and what became of clients."""
    stale = [(name, [of.staleness for of in runs if of.staleness is not None]) for name, runs in found]
    stale = [(name, runs) for name, runs in stale if runs]
    met = [
        {fate: float(np.mean([of.fates.get(fate, 0) for of in runs])) for fate in _all_fates(runs)} for _, runs in found
    ]
    fated = any(sum(fates.values()) for fates in met)
    panels = 1 + bool(stale) + fated
    with plt.rc_context(STYLE):
        figure, every = plt.subplots(1, panels, figsize=(0.6 + 4.2 * panels, 3.4), layout="constrained", squeeze=False)
        panel = iter(every[0])
        colours = dict(zip([name for name, _ in found], plt.get_cmap("tab10" if len(found) <= 10 else "tab20").colors))
        axes = next(panel)
        _steps_of(axes, [(name, [of.times for of in runs]) for name, runs in found], colours)
        axes.set(xlabel="times that a client took part", ylabel="clients", title=title)
        if stale:
            axes = next(panel)
            _steps_of(axes, stale, colours)
            axes.set(xlabel="staleness, in server steps", ylabel="updates")
        if fated:
            axes = next(panel)
            names = [*OUTCOMES, "discarded"]
            parts = [(fate, colour, "") for fate, colour in zip(names, FATE_COLOURS)]
            _stacked(axes, [name for name, _ in found], met, parts, {"in": "in the sum"})
            axes.set(xlabel="clients of all rounds")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
        if len(found) > 1:
            handles = every[0][0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside lower center", ncols=min(4, len(found)), frameon=False)
        _save(figure, file)


def _all_fates(runs) -> list[str]:
    return list(dict.fromkeys(fate for of in runs for fate in of.fates))


def _steps_of(axes, found, colours) -> None:
    """Histograms as outlines, so that one is seen through another; of many numbers several share a step."""
    each = [(name, mean_histogram(runs)) for name, runs in found]
    longest = max(len(counts) for _, counts in each)
    width = -(-longest // MANY_STEPS)
    bins = -(-longest // width)
    edges = np.arange(bins + 1) * width - 0.5
    for name, counts in each:
        steps = np.pad(counts, (0, bins * width - len(counts))).reshape(bins, width).sum(1)
        axes.stairs(steps, edges, color=colours[name], label=name, linewidth=1.6)
        axes.stairs(steps, edges, color=colours[name], fill=True, alpha=0.12)
    if width > 1:
        axes.annotate(f"each step {width} numbers", (0.98, 0.95), xycoords="axes fraction", ha="right", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)


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
                        axes.text(
                            s, t, f"{value:.2f}".lstrip("0"), ha="center", va="center", color=colour, fontsize=size
                        )
            axes.set(
                title=name, xlabel="accuracy on task", xticks=range(values.shape[1]), yticks=range(values.shape[0])
            )
        every[0][0].set_ylabel("after task")
        figure.colorbar(image, ax=every[0].tolist(), shrink=0.8)
        _save(figure, file)


FEW_CLIENTS, FEW_CLASSES, MANY_BARS = 40, 30, 200


def holdings(partition: Partition, labels: np.ndarray | None, file: Path) -> None:
    """Who holds what: of few clients a bubble for each client and class, its area the rows; of many a stack of classes for each,
    the largest client first, and of more than 200 every so manieth."""
    sizes = np.diff(partition.offsets)
    counts = sizes[:, None]  # (N, K)
    classes = None
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu":
        classes, client, which, rows = held(labels, partition)
    few = classes is not None and len(sizes) <= FEW_CLIENTS and len(classes) <= FEW_CLASSES
    shown = np.arange(len(sizes))
    if not few:
        shown = np.argsort(-sizes, kind="stable")
        shown = shown[np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), MANY_BARS)).astype(np.int64))]
    if classes is not None:
        counts = np.zeros((len(shown), len(classes)), np.int64)
        place = np.full(len(sizes), -1)
        place[shown] = np.arange(len(shown))
        seen = place[client] >= 0
        counts[place[client[seen]], which[seen]] = rows[seen]
    else:
        counts = counts[shown]
    if not few:  # clients of one size by their main class
        counts = counts[np.lexsort((counts.argmax(1), -sizes[shown]))]
    with plt.rc_context(STYLE):
        figure = _bubbles(counts, classes) if few and classes is not None else _stacks(counts, classes)
        if not few:
            note = "" if len(shown) == len(sizes) else f", {len(shown)} of {len(sizes)} shown"
            figure.axes[0].set_xlabel(f"clients, largest first{note}")
        _save(figure, file)


def _bubbles(counts: np.ndarray, classes: np.ndarray):
    clients, labels = counts.shape
    width, height = max(4.0, 1.2 + 0.24 * clients), 1.6 + 0.24 * labels
    figure, (above, axes) = plt.subplots(
        2, 1, figsize=(width, height), sharex=True, layout="constrained", height_ratios=(1, 0.35 * labels)
    )
    above.bar(np.arange(clients), counts.sum(1), color="0.6", width=0.7)
    above.set_ylabel("rows")
    c, k = np.nonzero(counts)
    areas = 150 * counts[c, k] / counts.max()  # the largest fills its cell
    axes.scatter(c, k, s=areas, c=k, cmap="tab10" if labels <= 10 else "viridis", vmin=0, vmax=max(labels - 1, 9))
    every = max(1, clients // 20)
    axes.set(xlabel="client", ylabel="label", xlim=(-0.7, clients - 0.3), ylim=(-0.7, labels - 0.3))
    axes.set(xticks=range(0, clients, every), yticks=range(labels), yticklabels=[str(name) for name in classes])
    axes.set_axisbelow(True)
    return figure


def _stacks(counts: np.ndarray, classes: np.ndarray | None):
    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    labels, bottom = counts.shape[1], np.zeros(len(counts))
    colours = plt.get_cmap("tab10" if labels <= 10 else "viridis", max(labels, 10))
    for k in range(labels):
        name = None if classes is None else str(classes[k])
        axes.bar(np.arange(len(counts)), counts[:, k], 1.0, bottom, color=colours(k), linewidth=0, label=name)
        bottom += counts[:, k]
    axes.set(ylabel="rows", xlim=(-0.5, len(counts) - 0.5), xticks=[])
    axes.grid(axis="x", visible=False)
    axes.set_axisbelow(True)
    if classes is not None and labels <= 20:
        figure.legend(
            *(part[::-1] for part in axes.get_legend_handles_labels()), loc="outside right upper", frameon=False
        )
    elif classes is not None:
        scale = plt.cm.ScalarMappable(plt.Normalize(0, labels - 1), colours)
        figure.colorbar(scale, ax=axes, label="label, in ascending order")
    return figure


def _save(figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Software": None} if file.suffix == ".png" else None)
    plt.close(figure)
