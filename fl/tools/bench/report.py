"""What `fl bench` says: the ratios that were promised, a table, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

# clients per second, the best of ours over a contestant's, at least; k: as many processes as we have workers
BARS = {
    "cnn_small": {"pfl xk": 1.25, "bare xk": 1.1},
    "femnist_mlp": {"pfl xk": 1.5, "bare xk": 1.3, "flower": 20.0},
    "softmax": {"jax vmap x1": 2.0, "pfl xk": 30.0, "flower": 800.0},
    "softmax_10k": {"jax vmap x1": 3.0},
    "lora": {"bare xk": 1.5},
}
ON_GPUS = dict.fromkeys(("cnn_pfl", "cnn_small", "femnist_mlp"), {"pfl x1": 20.0, "pfl xk": 8.0})


def summary(held: dict[str, Any]) -> dict[str, Any]:
    """A contest's result with the best of ours, its ratio to each, and the bars that were measured."""
    entries, workers = held["contestants"], held["workers"]
    figures = {name: entry["clients_per_second"] for name, entry in entries.items() if "clients_per_second" in entry}
    peak = figures.pop("peak", None)
    ours = [name for name in figures if name.startswith("ours ")]
    best = max(ours, key=figures.__getitem__, default=None)
    bars = []
    for name, entry in entries.items():
        if name not in figures:
            continue
        entry["share_of_peak"] = figures[name] * held["flops"] / peak if peak else None
        entry["ratio"] = best and _ratio(entries[best]["turns"], entry["turns"])
    for name, bar in (BARS if held["device"] == "cpu" else ON_GPUS).get(held["workload"], {}).items():
        name = name.replace("xk", f"x{workers}")
        if best and name in figures:
            ratio = entries[name]["ratio"]
            bars.append({"against": name, "bar": bar, "ratio": ratio, "reached": ratio >= bar})
    peak_flops = peak and peak * held["samples"]
    return held | {"best": best, "peak_flops_per_second": peak_flops, "bars": bars}


def _ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float:
    """The median over turns in which both took part."""
    return median(a / b for a, b in zip(ours, theirs) if a is not None and b is not None)


def print_table(results: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console

    console = Console()
    machine = results[0]["machine"]
    console.print(
        f"{machine['cores']} cores, {machine['processor']}, torch {machine['packages']['torch']}", style="bold"
    )
    for result in results:
        _print_one(console, result)


def _print_one(console: Any, result: dict[str, Any]) -> None:
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
        if "lost" in entry:
            table.add_row(name, "-", "", "", "", "", f"[red]{entry['lost'][-200:]}[/]")
            continue
        bar, shown = bars.get(name), f"[bold]{name}[/]" if name == result["best"] else name
        reached = "" if bar is None else f"[{'green' if bar['reached'] else 'red'}]{bar['bar']:g}[/]"
        share = "" if entry["share_of_peak"] is None else f"{entry['share_of_peak']:.1%}"
        figures = (
            f"{entry['clients_per_second']:,.0f}",
            _short(entry["ratio"]),
            reached,
            share,
            f"{entry['distance']:.0e}",
        )
        table.add_row(shown, *figures, _facts(entry))
    for name, why in result["missing"].items():
        table.add_row(name, "-", "", "", "", "", why[-200:])
    versions = {k: v for entry in result["contestants"].values() for k, v in entry["facts"].get("versions", {}).items()}
    table.caption = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    console.print(table)
    if result["peak_flops_per_second"]:
        console.print(
            f"peak of {result['workers']} threads: {result['peak_flops_per_second'] / 1e9:,.0f} GFLOP/s of float32\n"
        )


def _facts(entry: dict[str, Any]) -> str:
    facts = entry["facts"]
    said = [f"{key} {facts[key]}" for key in ("way", "chunk", "mode", "back end", "nodes") if key in facts]
    if facts.get("auto"):
        said.append("auto")
    if "ledger_share" in entry:
        said.append(f"ledger {entry['ledger_share']:.1%}")
    return ", ".join(said)


def _short(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Horizontal bars, the quickest on top, one panel for each workload; a logarithmic axis where figures lie far apart."""
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
        far = max(figures) > 30 * min(figures)
        axes.set_xscale("log" if far else "linear")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.margins(x=0.12 if far else 0.08, y=0.02)
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.set_title(f"{result['workload']}: clients per second", loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _bars(result: dict[str, Any]) -> dict[str, float]:
    entries = {n: e["clients_per_second"] for n, e in result["contestants"].items() if "clients_per_second" in e}
    return dict(sorted(((n, f) for n, f in entries.items() if n != "peak"), key=lambda item: -item[1]))
