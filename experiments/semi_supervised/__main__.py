"""Accuracy against the share of labels, all methods: `python -m experiments.semi_supervised OUT --plot FILE`.

It runs the variants of mnist.sweep.yaml at each share, for 12 rounds, with a perceptron, which is cheap. Finished runs
in OUT are reused. With all labels no method takes an unlabelled step, so all methods of the clients coincide; that
share is run once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fl.report.plots.style import Line, figure_style, new_figure, save
from fl.tools.sweep.reading import load
from fl.tools.sweep.sweep import Sweep

SHARES = (0.002, 0.01, 0.05, 0.2)
ROUNDS = 12
SETTING = {"rounds": ROUNDS, "model": {"name": "mlp", "hidden": [100]}, "client.lr": 0.1}
METRIC = "eval/accuracy"
BOUND = "all labels"


def at_share(overrides: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Return the overrides of a variant with another share of labels."""
    labels = overrides.get("labels")
    changed = {"labels": {**labels, "share": share}} if isinstance(labels, dict) else {"labels.share": share}
    rate = {"strategy.server_lr": SETTING["client.lr"]} if isinstance(labels, dict) else {}
    return {**overrides, **changed, **SETTING, **rate}


def by_share(sweep: Sweep, seeds: int) -> Sweep:
    """Return the sweep over all shares; the variant "FedLabel 0.01" is FedLabel with 1 % of the labels."""
    variants = {
        f"{name} {share:g}": at_share(overrides or {}, share)
        for name, overrides in sweep.variants.items()
        if name != BOUND
        for share in SHARES
    }
    bound = {BOUND: {**(sweep.variants[BOUND] or {}), **SETTING}}
    return replace(sweep, variants=variants | bound, seeds=range(seeds), metrics=[METRIC])


def accuracies(sweep: Sweep, out: Path) -> dict[str, np.ndarray]:
    """Run what is missing; return variant -> accuracy after the last round of each run, (runs,)."""
    return {variant.name: variant.values(METRIC) for variant in sweep.run(out)}


def draw(found: Mapping[str, np.ndarray], names: list[str], file: Path) -> None:
    """Draw the mean over runs of each method over the share of labels in %, and their range as a band."""
    percent = [100 * share for share in SHARES]
    with figure_style():
        figure, axes = new_figure(6.4, 4.0)
        for i, name in enumerate(names):
            runs, line = np.stack([found[f"{name} {share:g}"] for share in SHARES]), Line.number(i)  # (shares, runs)
            look = {"color": line.color, "linestyle": line.linestyle, "marker": line.marker}
            axes.plot(percent, runs.mean(1), label=name, markersize=4, linewidth=1.5, **look)
            axes.fill_between(percent, runs.min(1), runs.max(1), color=line.color, alpha=0.12, linewidth=0)
        bound = found[BOUND].mean()
        axes.plot([100], [bound], color="black", marker="*", markersize=9, linestyle="none", label=BOUND)
        axes.set(xscale="log", xlabel="rows with labels, %", ylabel=f"{METRIC} after {ROUNDS} rounds")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xticks([*percent, 100])
        axes.xaxis.set_minor_formatter("")
        figure.supxlabel("line: mean of the runs; band: smallest to largest", fontsize="x-small", color="0.35")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
        save(figure, file)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the run directories")
    parser.add_argument("--plot", type=Path, default=Path("shares.png"), help="the figure")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    options = parser.parse_args()
    base = load(Path(__file__).parent / "mnist.sweep.yaml")
    sweep = by_share(base, options.seeds)
    found = accuracies(sweep, options.out)
    names = [name for name in base.variants if name != BOUND]
    print("| share of labels | " + " | ".join(names) + " |")
    print("|---|" + "---:|" * len(names))
    for share in SHARES:
        print(f"| {share:g} | " + " | ".join(f"{found[f'{name} {share:g}'].mean():.3f}" for name in names) + " |")
    print(f"\n{BOUND}: {found[BOUND].mean():.3f}")
    draw(found, names, options.plot)


if __name__ == "__main__":
    main()
