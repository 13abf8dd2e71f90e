"""What the progress of a run says, line by line; the screen, the notebook and run.log show the same.

round  val/accuracy  train/loss  MB up  MB down  clients/s  left
20/40        0.8974      0.3312  8.124    8.124      412.0  3.2s        MB since round 0 (10^6 bytes), time left
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from fl.tracking.callback import Run

Row = Mapping[str, Any]

WINDOW = 20  # rounds that speed and time left are computed from, because the first rounds are slow
_ACCURACY = ("val/accuracy", "eval/accuracy")
_EVALUATED = ("val/", "eval/", "clients/", "evaluate/")


class RoundLines:
    """Turns the rows of a run into lines of cells.

    Attributes:
        cells: the latest line.
        evaluated: whether the latest round was evaluated.
    """

    def __init__(self) -> None:
        self.cells: list[str] = []
        self.evaluated = False
        self.metric: str | None = None
        self.rounds: int | None = None
        self.every = 1
        self.up = self.down = 0  # bytes
        self.recent: deque[Row] = deque(maxlen=WINDOW)

    def start(self, run: Run) -> None:
        """Begin with a run. If it is resumed, count the bytes of the rounds before."""
        self.__init__()  # type: ignore[misc]  # nothing of an earlier run is left
        self.rounds, self.every = run.rounds, run.every
        if run.round:
            from fl.storage.run import read_metrics

            before = read_metrics(run.directory)
            self.up, self.down = (sum(row[k] for row in before) for k in ("uplink_bytes", "downlink_bytes"))

    def add(self, row: Row) -> None:
        """Add a round."""
        self.recent.append(row)
        self._count(row)
        done = row["round"] + 1
        self.evaluated = done % self.every == 0 or done == self.rounds
        if self.evaluated and self.metric is None:
            self.metric = first_metric(row)
        seconds = max(sum(r["wall_seconds"] for r in self.recent), 1e-9)
        speed = sum(r["cohort_size"] for r in self.recent) / seconds
        left = "-" if self.rounds is None else format_seconds((self.rounds - done) * seconds / len(self.recent))
        self.cells = [f"{done}/{self.rounds or '?'}", *self._figures(row), f"{speed:.1f}", left]

    def add_final(self, row: Row) -> None:
        """Add the work after the last round."""
        self._count(row)
        self.evaluated = True
        self.cells = ["final", *self._figures(row), "-", "-"]

    def header(self) -> list[str]:
        """Names of the columns."""
        return ["round", self.metric or "accuracy", "train/loss", "MB up", "MB down", "clients/s", "left"]

    def _count(self, row: Row) -> None:
        self.up += row["uplink_bytes"]
        self.down += row["downlink_bytes"]

    def _figures(self, row: Row) -> list[str]:
        metrics = [_metric_cell(row, self.metric), _metric_cell(row, "train/loss")]
        return [*metrics, megabytes(self.up), megabytes(self.down)]


def first_metric(row: Row) -> str | None:
    """The metric to show: an accuracy on validation or test rows, else the first metric of an evaluation.

    >>> first_metric({"train/loss": 1.0, "eval/mae": 0.5})
    'eval/mae'
    """
    accuracy = next((name for name in _ACCURACY if name in row), None)
    return accuracy or next((name for name in row if name.startswith(_EVALUATED)), None)


def evaluated(row: Row) -> dict[str, float | None]:
    """The metrics of the model in a row: on the server's test set, and on clients' validation and test rows.

    >>> evaluated({"round": 3, "train/loss": 1.0, "eval/loss": 0.5, "val/loss": None})
    {'eval/loss': 0.5, 'val/loss': None}
    """
    return {k: v for k, v in row.items() if k.startswith(("eval/", "val/", "clients/"))}


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
