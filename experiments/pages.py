"""Pages of experiments: a table and a plot of accuracy against MB for each sweep.

A page is a Python module of this package with a `Page`, for example experiments/headline.py. Its command is

    python -m experiments.NAME OUT [--jobs 2]

Runs of the page's sweeps that are not yet in OUT are run first. The page is NAME.md in this folder; its plots are in
NAME/.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from fl.report.compare import table
from fl.report.render import markdown
from fl.report.stream import accuracy_matrix
from fl.tools.sweep.reading import load

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """A section of a page: one sweep.

    Args:
        title: heading of the section.
        sweep: sweep file, relative to this folder.
        metric: metric to plot against MB up.
        description: sentences below the heading.
        plotted: names of the variants in the plot. Default: all.
        matrices: for a task stream, the variants to plot accuracy matrices of (first seed).
    """

    title: str
    sweep: str
    metric: str
    description: str
    plotted: tuple[str, ...] = ()
    matrices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Folder of the runs, and prefix of the plots."""
        return self.sweep.removesuffix(".sweep.yaml").replace("/", "-")


@dataclass(frozen=True)
class Page:
    """A page.

    Args:
        name: name of the page's file and of the folder of its plots, without suffix.
        title: heading of the page.
        introduction: paragraph below the heading, before the sentences that all pages share.
        sections: one for each sweep.
    """

    name: str
    title: str
    introduction: str
    sections: tuple[Section, ...]

    def main(self) -> None:
        """Write the page from the command line."""
        parser = argparse.ArgumentParser(description=f"Write experiments/{self.name}.md and its plots.")
        parser.add_argument("out", type=Path, help="folder of the run directories")
        parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time")
        arguments = parser.parse_args()
        sections = [render(self, section, arguments.out, arguments.jobs) for section in self.sections]
        first = f"`python -m experiments.{self.name} OUT` makes this page from run directories. {SHARED}"
        introduction = fill(f"{first} {self.introduction}".strip(), 120)
        text = "\n".join([f"# {self.title}\n\n{introduction}\n", *sections])
        (HERE / f"{self.name}.md").write_text(text)


SHARED = (
    "The page of each experiment says what was tuned, and how. Figures are means ± standard deviations over seeds. "
    "MB (10^6 bytes) count the encoded messages of all clients in a whole run."
)


def render(page: Page, section: Section, out: Path, jobs: int) -> str:
    """Run the missing runs of a section, draw its plots and return its text."""
    from fl.report.plots.curves import plot_curves
    from fl.report.plots.heatmap import plot_accuracy_matrices

    sweep = load(HERE / section.sweep)
    chosen = sweep.run(out / section.name, jobs=jobs)
    plots = HERE / page.name
    shown = [variant for variant in chosen if not section.plotted or variant.name in section.plotted]
    plot_curves(shown, "eval/accuracy" if section.matrices else section.metric, "up", plots / f"{section.name}.png")
    command = f"fl sweep experiments/{section.sweep} --out OUT/{section.name}"
    lines = [f"## {section.title}", fill(section.description, 120), f"    {command}"]
    lines += [markdown(table(chosen, sweep.metrics or [section.metric])).rstrip()]
    lines += [f"![{section.title}]({page.name}/{section.name}.png)"]
    if section.matrices:
        runs = {path.name: path for path in (out / section.name).iterdir() if path.is_dir()}
        drawn = [(name, next(p for n, p in runs.items() if n.split(",")[0] == name)) for name in section.matrices]
        plot_accuracy_matrices(
            [(name, accuracy_matrix(path / f"s{sweep.seeds[0]}")) for name, path in drawn],
            plots / f"{section.name}-matrix.png",
        )
        lines += [f"![accuracy on every task after every task]({page.name}/{section.name}-matrix.png)"]
    return "\n\n".join(lines) + "\n"
