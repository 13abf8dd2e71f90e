"""Results of `fl bench`: bars to reach, a table, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Smallest ratio of clients per second, the best of ours / the contestant. xk: one process per worker of the workload.
BARS = {
    "cnn_small": {"pfl xk": 1.25, "bare xk": 1.1},
    "femnist_mlp": {"pfl xk": 1.5, "bare xk": 1.3, "flower": 20.0},
    "softmax": {"jax vmap x1": 2.0, "pfl xk": 30.0, "flower": 800.0},
    "softmax_10k": {"jax vmap x1": 3.0},
    "lora": {"bare xk": 2.0},
}
# smallest ratio of rounds that are evaluated and committed to bare rounds
EVALUATED = "ours, evaluated and committed"
EVALUATED_BARS = {"softmax": 0.5, "femnist_mlp": 0.9}
TREE_BAR = 0.97  # smallest ratio to the same contestant of another checkout: "within noise"
GPU_BARS = dict.fromkeys(("cnn_pfl", "cnn_small", "femnist_mlp"), {"pfl x1": 20.0, "pfl xk": 8.0})


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Add the best of ours, its ratio to each contestant, and the measured bars to a result of `Comparison.run`."""
    entries, workers = result["contestants"], result["workers"]
    figures = {name: entry["clients_per_second"] for name, entry in entries.items() if "clients_per_second" in entry}
    peak = figures.pop("peak", None)
    ours = [name for name in figures if name.startswith("ours ")]
    best = max(ours, key=figures.__getitem__, default=None)
    bars = []
    for name, entry in entries.items():
        if name not in figures:
            continue
        entry["share_of_peak"] = figures[name] * result["flops"] / peak if peak else None
        same = name.partition(": ")[2] or best  # of another checkout: the same contestant of ours
        entry["ratio"] = _ratio(entries[same]["turns"], entry["turns"]) if same in figures else None
    for name, bar in (BARS if result["device"] == "cpu" else GPU_BARS).get(result["workload"], {}).items():
        name = name.replace("xk", f"x{workers}")
        if best and name in figures:
            ratio = entries[name]["ratio"]
            bars.append({"against": name, "bar": bar, "ratio": ratio, "reached": ratio >= bar})
    for name, bar in EVALUATED_BARS.items():
        bare = entries.get(EVALUATED, {}).get("facts", {}).get("bare")
        if name == result["workload"] and bare in figures and EVALUATED in figures:
            ratio = _ratio(entries[EVALUATED]["turns"], entries[bare]["turns"])
            bars.append({"against": EVALUATED, "bar": bar, "ratio": ratio, "reached": ratio >= bar})
    for name in figures:
        if ": " in name and (ratio := entries[name]["ratio"]):
            bars.append({"against": name, "bar": TREE_BAR, "ratio": ratio, "reached": ratio >= TREE_BAR})
    peak_flops = peak and peak * result["samples"]
    return result | {"best": best, "peak_flops_per_second": peak_flops, "bars": bars}


def _ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float:
    """Median ratio of the turns in which both took part."""
    return median(a / b for a, b in zip(ours, theirs) if a is not None and b is not None)


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """Print a table per workload on stdout, the fastest contestant first."""
    from rich.console import Console

    console = Console()
    machine = results[0]["machine"]
    console.print(
        f"{machine['cores']} cores, {machine['processor']}, torch {machine['packages']['torch']}", style="bold"
    )
    for result in results:
        _print_workload(console, result)


def _print_workload(console: Console, result: dict[str, Any]) -> None:
    from rich.table import Table

    cohort = (
        f"cohort {result['cohort']:,}, {result['samples']:.0f} samples a client, {result['parameters']:,} parameters"
    )
    table = Table("contestant", title=f"{result['workload']}: {cohort}", title_justify="left", caption_justify="left")
    for column in ("clients/s", "ours / it", "bar", "of peak", "checked"):
        table.add_column(column, justify="right")
    table.add_column("with")
    bars = {bar["against"]: bar for bar in result["bars"]}
    for name, entry in sorted(result["contestants"].items(), key=lambda item: -item[1].get("clients_per_second", 0.0)):
        if name == "peak":
            continue
        if "failed" in entry:
            table.add_row(name, "-", "", "", "", "", f"[red]{entry['failed'][-200:]}[/]")
            continue
        bar, shown = bars.get(name), f"[bold]{name}[/]" if name == result["best"] else name
        reached = "" if bar is None else f"[{'green' if bar['reached'] else 'red'}]{bar['bar']:g}[/]"
        share = "" if entry["share_of_peak"] is None else f"{entry['share_of_peak']:.1%}"
        figures = (
            f"{entry['clients_per_second']:,.0f}",
            _ratio_cell(entry["ratio"]),
            reached,
            share,
            f"{entry['distance']:.0e}",
        )
        table.add_row(shown, *figures, _facts(entry))
    for name, reason in result["missing"].items():
        table.add_row(name, "-", "", "", "", "", reason[-200:])
    versions = {k: v for entry in result["contestants"].values() for k, v in entry["facts"].get("versions", {}).items()}
    table.caption = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    console.print(table)
    if result["peak_flops_per_second"]:
        console.print(
            f"peak of {result['workers']} threads: {result['peak_flops_per_second'] / 1e9:,.0f} GFLOP/s of float32\n"
        )


def _facts(entry: dict[str, Any]) -> str:
    facts = entry["facts"]
    texts = [f"{key} {facts[key]}" for key in ("mode", "chunk", "back end", "nodes") if key in facts]
    if facts.get("auto"):
        texts.append("auto")
    if "ledger_share" in entry:
        texts.append(f"ledger {entry['ledger_share']:.1%}")
    return ", ".join(texts)


def _ratio_cell(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot bars, the fastest on top, a panel per workload; the axis is logarithmic where speeds differ widely."""
    from matplotlib.figure import Figure

    shown = [_bars(result) for result in results]
    heights = [len(bars) + 2 for bars in shown]
    figure = Figure(figsize=(9, 0.28 * sum(heights) + 0.3), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, result, bars in zip(panels, results, shown):
        names, figures = list(bars), list(bars.values())
        colours = ["C0" if n.startswith("ours") else "0.35" if n.startswith("bare") else "C1" for n in names]
        drawn = axes.barh(names, figures, color=colours)
        axes.bar_label(drawn, [f"{f:,.0f}" for f in figures], padding=3, fontsize=8)
        wide = max(figures) > 30 * min(figures)
        axes.set_xscale("log" if wide else "linear")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.margins(x=0.12 if wide else 0.08, y=0.02)
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.set_title(f"{result['workload']}: clients per second", loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _bars(result: dict[str, Any]) -> dict[str, float]:
    """Contestant -> clients per second, the fastest first, without the peak."""
    entries = {n: e["clients_per_second"] for n, e in result["contestants"].items() if "clients_per_second" in e}
    return dict(sorted(((n, f) for n, f in entries.items() if n != "peak"), key=lambda item: -item[1]))
