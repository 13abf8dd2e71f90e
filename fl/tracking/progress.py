"""Progress of a run: a live table on a terminal, else a line per evaluated round.

    round  val/accuracy  train/loss  MB up  MB down  clients/s  left
    20/40        0.8974      0.3312  8.124    8.124      412.0  3.2s        MB since round 0 (10^6 bytes), time left

`Progress` is a watcher of `fl.run(watch=...)` and a context.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:  # rich takes a tenth of a second
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.table import Table

Row = Mapping[str, Any]

WINDOW = 20  # rounds that speed and time left are computed from, because the first rounds are slow
MAX_LINES = 10  # evaluated rounds in the live table
_ACCURACY = ("val/accuracy", "eval/accuracy")
_EVALUATED = ("val/", "eval/", "clients/", "evaluate/")


class WatchedRun(Protocol):
    """What `Progress` reads of a run."""

    directory: Path

    @property
    def headline(self) -> str:
        """One line about the run."""

    @property
    def round(self) -> int:
        """The next round."""

    @property
    def rounds(self) -> int | None:
        """Number of rounds; None if it is unknown."""

    @property
    def every(self) -> int:
        """Rounds between evaluations."""


class Progress:
    """Watcher that shows a run's progress; called with ("start", run), ("ready", run) and ("round", row).

    Args:
        stream: where to print; default stderr.
    """

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self.status = "reading data"
        self.metric: str | None = None
        self.rounds: int | None = None
        self.every = 1
        self.up = self.down = 0  # bytes
        self.recent: deque[Row] = deque(maxlen=WINDOW)
        self.lines: deque[list[str]] = deque(maxlen=MAX_LINES)
        self.latest: list[str] | None = None  # line of the latest round, if it was not evaluated
        self.live: Live | None = None
        self.spinner: Spinner | None = None

    def __enter__(self) -> Progress:
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(get_renderable=self._picture, console=Console(file=self.stream), refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, event: str, value: Any) -> None:
        """Show an event of a run."""
        if event == "start":
            self._start(value)
        elif event == "ready":
            self.status = f"round {value.round}"
        elif event == "round":
            self._show_round(value)
        elif event == "final":
            self._show_final(value)

    def _start(self, run: WatchedRun) -> None:
        """Start with a run, or with a baseline after it."""
        self.up, self.down, self.metric, self.latest = 0, 0, None, None
        self.recent.clear()
        self.lines.clear()
        self.rounds, self.every = run.rounds, run.every
        if run.round:  # resumed: count the bytes of the rounds before
            from fl.storage.run import read_metrics

            before = read_metrics(run.directory)
            self.up, self.down = (sum(row[k] for row in before) for k in ("uplink_bytes", "downlink_bytes"))
        self.status = f"{run.headline}\nstarting workers"
        if not self.live:
            print(self.status, file=self.stream, flush=True)

    def _show_round(self, row: Row) -> None:
        self.recent.append(row)
        self.up += row["uplink_bytes"]
        self.down += row["downlink_bytes"]
        done = row["round"] + 1
        evaluated = done % self.every == 0 or done == self.rounds
        if evaluated and self.metric is None:
            self.metric = first_metric(row)
            if not self.live:
                self._print(self.header())
        line = self._cells(row, done)
        self.latest = None if evaluated else line
        if evaluated:
            self.lines.append(line)
            if not self.live:
                self._print(line)

    def _show_final(self, row: Row) -> None:
        """Show the work after the last round."""
        self.up += row["uplink_bytes"]
        self.down += row["downlink_bytes"]
        line = ["final", _metric_cell(row, self.metric), _metric_cell(row, "train/loss")]
        self.latest = None
        self.lines.append([*line, megabytes(self.up), megabytes(self.down), "-", "-"])
        if not self.live:
            self._print(self.lines[-1])

    def _cells(self, row: Row, done: int) -> list[str]:
        seconds = max(sum(r["wall_seconds"] for r in self.recent), 1e-9)
        speed = sum(r["cohort_size"] for r in self.recent) / seconds
        left = "-" if self.rounds is None else format_seconds((self.rounds - done) * seconds / len(self.recent))
        return [
            f"{done}/{self.rounds or '?'}",
            _metric_cell(row, self.metric),
            _metric_cell(row, "train/loss"),
            megabytes(self.up),
            megabytes(self.down),
            f"{speed:.1f}",
            left,
        ]

    def header(self) -> list[str]:
        """Names of the columns."""
        return ["round", self.metric or "accuracy", "train/loss", "MB up", "MB down", "clients/s", "left"]

    def _print(self, cells: list[str]) -> None:
        widths = [max(len(name), 7) for name in self.header()]
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths)), file=self.stream, flush=True)

    def _picture(self) -> Spinner | Table:
        """What a terminal shows now: the table, or a spinner before the first round."""
        from rich.spinner import Spinner
        from rich.table import Table

        lines = [*self.lines, *([self.latest] if self.latest else ())]
        if not lines:
            self.spinner = self.spinner or Spinner("dots")
            self.spinner.update(text=self.status)
            return self.spinner
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in self.header():
            table.add_column(name, justify="right", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        return table


def first_metric(row: Row) -> str | None:
    """The metric to show: an accuracy on validation or test rows, else the first metric of an evaluation.

    >>> first_metric({"train/loss": 1.0, "eval/mae": 0.5})
    'eval/mae'
    """
    accuracy = next((name for name in _ACCURACY if name in row), None)
    return accuracy or next((name for name in row if name.startswith(_EVALUATED)), None)


def megabytes(count: int) -> str:
    """Bytes as MB of 10^6 bytes, four significant digits, or all digits before the point.

    >>> megabytes(31_200), megabytes(1_234_567_890)
    ('0.0312', '1235')
    """
    return f"{count / 1e6:.4g}" if count < 1e9 else f"{count / 1e6:.0f}"


def format_seconds(seconds: float) -> str:
    """A duration in at most two units.

    >>> format_seconds(9.9), format_seconds(185), format_seconds(3720)
    ('9.9s', '3m05s', '1h02m')
    """
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _metric_cell(row: Row, name: str | None) -> str:
    return f"{row[name]:.4f}" if name is not None and name in row else "-"
