"""The headline methods and their baselines: accuracy against MB, as one page with plots.

    python -m experiments.headline OUT [--jobs 2]

Runs what OUT lacks of the sweeps below, and writes headline.md beside this file, with its plots in headline/.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from fl.report.compare import table
from fl.report.render import markdown
from fl.report.stream import accuracy_matrix
from fl.tools.sweep import Sweep

HERE = Path(__file__).parent


@dataclass(frozen=True)
class PartialResult:
    """One sweep: `metric` against MB up; of a task stream, the accuracy matrices of `matrices`, first seed."""

    title: str
    sweep: str
    metric: str
    says: str
    matrices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.sweep.removesuffix(".sweep.yaml").replace("/", "-")


PARTS = [
    PartialResult(
        "Prototype averaging: Federated Reconnaissance on Omniglot",
        "reconnaissance/omniglot.sweep.yaml",
        "eval/accuracy",
        "Five clients meet 100 new characters, class by class; accuracy over all characters met so far.",
    ),
    PartialResult(
        "Orthogonal updates: FOT on permuted digits",
        "fot/permuted_digits.sweep.yaml",
        "stream/acc",
        "Four tasks; ACC is the mean accuracy over all tasks after the last, FGT what was lost since each was known best.",
        ("FedAvg", "FOT"),
    ),
    PartialResult(
        "Orthogonal updates: FOT on permuted MNIST",
        "fot/permuted_mnist.sweep.yaml",
        "stream/acc",
        "Ten tasks.",
        ("FedAvg", "FOT"),
    ),
    PartialResult(
        "Orthogonal updates: FOT on split MNIST, one shared head",
        "fot/split_mnist.sweep.yaml",
        "stream/acc",
        "Five tasks of two digits.",
        ("FedAvg", "FOT"),
    ),
    PartialResult(
        "LoRA-A sharing: FedSA-LoRA on relabelled digits",
        "fedsa_lora/digits.sweep.yaml",
        "clients/accuracy_weighted",
        "Twenty clients, each of which calls five classes by other names; every client's own test rows.",
    ),
    PartialResult(
        "LoRA-A sharing: FedSA-LoRA on SST-2 with MiniLM",
        "fedsa_lora/sst2.sweep.yaml",
        "clients/accuracy_weighted",
        "Ten clients with Dirichlet(0.5) label skew; every client's own test rows.",
    ),
    PartialResult(
        "LoRA-A sharing: FedSA-LoRA on AG News with MiniLM",
        "fedsa_lora/ag_news.sweep.yaml",
        "clients/accuracy_weighted",
        "Ten clients with Dirichlet(0.5) label skew; every client's own test rows.",
    ),
]
INTRODUCTION = """# The headline methods beside their baselines

Made by `python -m experiments.headline OUT` from run directories; each experiment's own page says what was tuned, and how. Mean ± standard deviation over seeds; MB (10^6 bytes) are those of all clients in a whole run, as encoded.
"""


def section(part: PartialResult, out: Path, jobs: int) -> str:
    """The part's table and plots, from its runs."""
    from fl.report.plots.curves import plot_curves
    from fl.report.plots.heatmap import plot_accuracy_matrices

    sweep = Sweep.load(HERE / part.sweep)
    chosen = sweep.run(out / part.name, jobs=jobs)
    plots = HERE / "headline"
    plot_curves(chosen, "eval/accuracy" if part.matrices else part.metric, "up", plots / f"{part.name}.png")
    command = f"fl sweep experiments/{part.sweep} --out OUT/{part.name}"
    lines = [f"## {part.title}", f"{part.says} `{command}`"]
    lines += [markdown(table(chosen, sweep.metrics or [part.metric])).rstrip()]
    lines += [f"![{part.title}](headline/{part.name}.png)"]
    if part.matrices:
        runs = {path.name: path for path in (out / part.name).iterdir() if path.is_dir()}
        shown = [(name, next(p for n, p in runs.items() if n.split(",")[0] == name)) for name in part.matrices]
        plot_accuracy_matrices(
            [(name, accuracy_matrix(path / f"s{sweep.seed_list[0]}")) for name, path in shown],
            plots / f"{part.name}-matrix.png",
        )
        lines += [f"![accuracy on every task after every task](headline/{part.name}-matrix.png)"]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    sections = [section(part, arguments.out, arguments.jobs) for part in PARTS]
    (HERE / "headline.md").write_text("\n".join([INTRODUCTION, *sections]))


if __name__ == "__main__":
    main()
