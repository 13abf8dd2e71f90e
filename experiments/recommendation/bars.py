"""Draw HR@10 of each variant of a sweep, with the popularity baseline of the same runs.

python -m experiments.recommendation.bars OUT FILE        OUT: the directory of the sweep
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fl.report.plots.style import figure_style, new_figure, save
from fl.storage.run import read_metrics
from fl.tools.sweep.reading import load

CHANCE = 0.1  # HR@10 of random scores among 100 candidates
METRIC = "clients/hr10_mean"


def last_values(out: Path, variant: str) -> tuple[list[float], list[float]]:
    """Return HR@10 of the method and of popularity at the end of each finished run of a variant."""
    rows = [read_metrics(run)[-1] for run in sorted((out / variant).glob("s*")) if (run / "metrics.jsonl").is_file()]
    found = [row for row in rows if METRIC in row]
    return [row[METRIC] for row in found], [row[f"popularity/{METRIC}"] for row in found]


def draw(out: Path, file: Path) -> None:
    """Draw the finished variants, in the order of the sweep file, into `file`."""
    sweep = load(Path(__file__).parent / "movielens.sweep.yaml")
    values = {name: found for name in sweep.variants if (found := last_values(out, name))[0]}
    with figure_style():
        figure, axes = new_figure(6.4, 1.0 + 0.28 * len(values))
        for at, (own, popular) in enumerate(values.values()):
            leaks = list(values)[at].endswith("published")
            axes.barh(at, np.mean(own), color="tab:red" if leaks else "tab:blue", height=0.6)
            axes.plot(own, [at] * len(own), "k.", ms=4)
            axes.plot([np.mean(popular)] * 2, [at - 0.4, at + 0.4], color="tab:orange", lw=2)
        axes.axvline(CHANCE, color="0.4", ls=":")
        axes.set_yticks(range(len(values)), list(values))
        axes.invert_yaxis()
        axes.set(xlabel="HR@10 (points: seeds; orange: popularity)", xlim=(0, 1))
        save(figure, file)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
