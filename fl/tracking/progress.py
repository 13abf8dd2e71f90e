"""Progress of a run: a table that lives on a terminal, or a line per evaluated round where there is none.

    round  val/accuracy  train/loss  MB up  MB down  clients/s  left
    20/40        0.8974      0.3312  8.124    8.124      412.0  3.2s        MB so far, 1 MB = 1e6 bytes

`Progress` is a watcher of `fl.run(watch=...)` and a context: outside of it nothing is left on the terminal but the last table.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any, TextIO

Row = dict[str, Any]

WINDOW = 20  # rounds that speed and time left are taken from: the first ones are slow
LINES = 10  # evaluated rounds that the live table shows
_ACCURACY = ("val/accuracy", "eval/accuracy")
_EVALUATED = ("val/", "eval/", "clients/", "evaluate/")


class Progress:
    """Called with ("start", run), ("ready", run), ("round", Row). A run has a `directory`, a `headline`, the `round`
    it begins at, how many `rounds` it will have (if that is known), and evaluates `every` so many."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self.status, self.metric = "reading data", None
        self.up = self.down = 0
        self.recent: deque[Row] = deque(maxlen=WINDOW)
        self.lines: deque[list[str]] = deque(maxlen=LINES)
        self.latest: list[str] | None = None  # of a round that was not evaluated
        self.live = None

    def __enter__(self) -> Progress:
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(get_renderable=self._picture, console=Console(file=self.stream), refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, event: str, value: Any) -> None:
        if event == "round":
            self._round(value)
            return
        if event == "start":  # of a run, or of a baseline after it
            self.up, self.down, self.metric, self.latest = 0, 0, None, None
            self.recent.clear()
            self.lines.clear()
            self.rounds, self.every = value.rounds, value.every
            self._resumed(value)
            self.status = f"{value.headline}\nstarting workers"
            if not self.live:
                print(self.status, file=self.stream, flush=True)
        if event == "ready":
            self.status = f"round {value.round}"

    def _resumed(self, run: Any) -> None:
        """The bytes of the rounds before this start."""
        if run.round:
            from fl.storage.run import read_metrics

            before = read_metrics(run.directory)
            self.up, self.down = (sum(row[k] for row in before) for k in ("uplink_bytes", "downlink_bytes"))

    def _round(self, row: Row) -> None:
        self.recent.append(row)
        self.up += row["uplink_bytes"]
        self.down += row["downlink_bytes"]
        number = row["round"] + 1
        evaluated = number % self.every == 0 or number == self.rounds
        if evaluated and self.metric is None:
            self.metric = first_metric(row)
            if not self.live:
                self._print(self.header())
        line = self._cells(row, number)
        self.latest = None if evaluated else line
        if evaluated:
            self.lines.append(line)
            if not self.live:
                self._print(line)

    def _cells(self, row: Row, number: int) -> list[str]:
        seconds = max(sum(r["wall_seconds"] for r in self.recent), 1e-9)
        speed = sum(r["cohort_size"] for r in self.recent) / seconds
        left = "-" if self.rounds is None else clock((self.rounds - number) * seconds / len(self.recent))
        return [
            f"{number}/{self.rounds or '?'}",
            _number(row, self.metric),
            _number(row, "train/loss"),
            megabytes(self.up),
            megabytes(self.down),
            f"{speed:.1f}",
            left,
        ]

    def header(self) -> list[str]:
        return ["round", self.metric or "accuracy", "train/loss", "MB up", "MB down", "clients/s", "left"]

    def _print(self, cells: list[str]) -> None:
        widths = [max(len(name), 7) for name in self.header()]
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths)), file=self.stream, flush=True)

    def _picture(self):
        from rich.spinner import Spinner
        from rich.table import Table

        lines = [*self.lines, *([self.latest] if self.latest else ())]
        if not lines:
            self.spinner = getattr(self, "spinner", None) or Spinner("dots")
            self.spinner.update(text=self.status)
            return self.spinner
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in self.header():
            table.add_column(name, justify="right", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        return table


def first_metric(row: Row) -> str | None:
    """The metric to show: an accuracy, or else the first that evaluations gave."""
    return next(
        (name for name in _ACCURACY if name in row), next((name for name in row if name.startswith(_EVALUATED)), None)
    )


def megabytes(count: int) -> str:
    """Four digits or more: 0.0312, 12.35, 1235."""
    return f"{count / 1e6:.4g}" if count < 1e9 else f"{count / 1e6:.0f}"


def clock(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _number(row: Row, name: str | None) -> str:
    return f"{row[name]:.4f}" if name in row else "-"
