"""Plot accuracy against MB for the headline methods and their baselines, on one page.

    python -m experiments.headline OUT [--jobs 2]

Runs of the sweeps below that are not yet in OUT are run first. The page is headline.md beside this file; its plots are
in headline/.
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
class Section:
    """A section of the page: one sweep.

    Args:
        title: heading of the section.
        sweep: sweep file, relative to this folder.
        metric: metric to plot against MB up.
        description: sentence below the heading.
        matrices: for a task stream, the variants to plot accuracy matrices of (first seed).
    """

    title: str
    sweep: str
    metric: str
    description: str
    matrices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Folder of the runs, and prefix of the plots."""
        return self.sweep.removesuffix(".sweep.yaml").replace("/", "-")


SECTIONS = [
    Section(
        "Prototype averaging: Federated Reconnaissance on Omniglot",
        "reconnaissance/omniglot.sweep.yaml",
        "eval/accuracy",
        "Five clients meet 100 new characters, class by class. Accuracy over all characters met so far.",
    ),
    Section(
        "Orthogonal updates: FOT on permuted digits",
        "fot/permuted_digits.sweep.yaml",
        "stream/acc",
        "Four tasks. ACC is the mean accuracy over all tasks after the last one, "
        "FGT the mean drop from each task's best.",
        ("FedAvg", "FOT"),
    ),
    Section(
        "Orthogonal updates: FOT on permuted MNIST",
        "fot/permuted_mnist.sweep.yaml",
        "stream/acc",
        "Ten tasks.",
        ("FedAvg", "FOT"),
    ),
    Section(
        "Orthogonal updates: FOT on split MNIST, one shared head",
        "fot/split_mnist.sweep.yaml",
        "stream/acc",
        "Five tasks of two digits.",
        ("FedAvg", "FOT"),
    ),
    Section(
        "LoRA-A sharing: FedSA-LoRA on relabelled digits",
        "fedsa_lora/digits.sweep.yaml",
        "clients/accuracy_weighted",
        "Each of twenty clients permutes the labels of five classes. Accuracy on each client's own test rows.",
    ),
    Section(
        "LoRA-A sharing: FedSA-LoRA on SST-2 with MiniLM",
        "fedsa_lora/sst2.sweep.yaml",
        "clients/accuracy_weighted",
        "Ten clients with Dirichlet(0.5) label skew. Accuracy on each client's own test rows.",
    ),
    Section(
        "LoRA-A sharing: FedSA-LoRA on AG News with MiniLM",
        "fedsa_lora/ag_news.sweep.yaml",
        "clients/accuracy_weighted",
        "Ten clients with Dirichlet(0.5) label skew. Accuracy on each client's own test rows.",
    ),
]
INTRODUCTION = """# The headline methods beside their baselines

`python -m experiments.headline OUT` makes this page from run directories. The page of each experiment says what was
tuned, and how. Figures are means ± standard deviations over seeds. MB (10^6 bytes) count the encoded messages of all
clients in a whole run.
"""


def render(section: Section, out: Path, jobs: int) -> str:
    """Run the missing runs of a section, draw its plots and return its text."""
    from fl.report.plots.curves import plot_curves
    from fl.report.plots.heatmap import plot_accuracy_matrices

    sweep = Sweep.load(HERE / section.sweep)
    chosen = sweep.run(out / section.name, jobs=jobs)
    plots = HERE / "headline"
    plot_curves(chosen, "eval/accuracy" if section.matrices else section.metric, "up", plots / f"{section.name}.png")
    command = f"fl sweep experiments/{section.sweep} --out OUT/{section.name}"
    lines = [f"## {section.title}", section.description, f"    {command}"]
    lines += [markdown(table(chosen, sweep.metrics or [section.metric])).rstrip()]
    lines += [f"![{section.title}](headline/{section.name}.png)"]
    if section.matrices:
        runs = {path.name: path for path in (out / section.name).iterdir() if path.is_dir()}
        shown = [(name, next(p for n, p in runs.items() if n.split(",")[0] == name)) for name in section.matrices]
        plot_accuracy_matrices(
            [(name, accuracy_matrix(path / f"s{sweep.seed_list[0]}")) for name, path in shown],
            plots / f"{section.name}-matrix.png",
        )
        lines += [f"![accuracy on every task after every task](headline/{section.name}-matrix.png)"]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the run directories")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time")
    arguments = parser.parse_args()
    sections = [render(section, arguments.out, arguments.jobs) for section in SECTIONS]
    (HERE / "headline.md").write_text("\n".join([INTRODUCTION, *sections]))


if __name__ == "__main__":
    main()
