"""Progress of a run: a table in a notebook, a live table on a terminal, else a line for each evaluated round."""

from __future__ import annotations

from typing import TextIO

from fl.tracking.callback import Callback, Row, Run
from fl.tracking.round_lines import RoundLines
from fl.tracking.screens import screen


class Progress(Callback):
    """Callback that shows a run's progress, and a context in which it does.

    Args:
        stream: where to print; default: the notebook, else stderr.
    """

    def __init__(self, stream: TextIO | None = None):
        self.screen = screen(stream)
        self.lines = RoundLines()

    def __enter__(self) -> Progress:
        self.screen.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.screen.close()

    def start(self, run: Run) -> None:
        self.headline = run.headline
        self.lines.start(run)
        self.screen.status(f"{self.headline}\nstarting", new=True)

    def ready(self, run: Run) -> None:
        self.screen.status(f"{self.headline}\nround {run.round}")

    def round(self, row: Row) -> None:
        self.lines.add(row)
        self.screen.line(self.lines.header(), self.lines.cells, self.lines.evaluated)

    def final(self, row: Row) -> None:
        self.lines.add_final(row)
        self.screen.line(self.lines.header(), self.lines.cells, evaluated=True)
