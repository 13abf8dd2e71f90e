"""run.log in the run directory: when the run began, each evaluated round, warnings, and how the run ended."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fl.tracking.callback import Callback, Row, Run
from fl.tracking.round_lines import RoundLines

if TYPE_CHECKING:
    from fl.simulation.result import Result

FILE = "run.log"
_TREE = logging.getLogger("fl")  # the loggers of this package


class RunLog(Callback):
    """Writes run.log. A run that is resumed continues its file.

    2026-11-29 18:40:02  FedAvg, softmax on digits, ...
    2026-11-29 18:40:03  round 20/40  val/accuracy 0.8974  train/loss 0.3312  MB up 8.124  MB down 8.124
    2026-11-29 18:40:05  warning: client 3 ...
    2026-11-29 18:40:05  ended: all rounds done
    """

    def __init__(self) -> None:
        self.lines = RoundLines()
        self.handler: logging.Handler | None = None

    def start(self, run: Run) -> None:
        self._close()
        self.lines = RoundLines()
        self.lines.start(run)
        self.handler = _file_handler(run.directory / FILE)
        _TREE.addHandler(self.handler)
        self._write(f"resumed at round {run.round}: {run.headline}" if run.round else run.headline)

    def round(self, row: Row) -> None:
        self.lines.add(row)
        if self.lines.evaluated:
            cells = zip(self.lines.header()[1:-2], self.lines.cells[1:-2])
            self._write(f"round {self.lines.cells[0]}  " + "  ".join(f"{name} {cell}" for name, cell in cells))

    def final(self, row: Row) -> None:
        self.lines.add_final(row)
        self._write(f"final  {self.lines.header()[1]} {self.lines.cells[1]}")

    def end(self, result: Result) -> None:
        self._write(f"ended: {result.reason}")
        self._close()

    def failure(self, error: BaseException) -> None:
        self._write(f"failed: {type(error).__name__}: {error}")
        self._close()

    def _write(self, text: str) -> None:
        if self.handler is not None:
            self.handler.handle(logging.LogRecord(__name__, logging.INFO, __file__, 0, text, None, None))

    def _close(self) -> None:
        if self.handler is not None:
            _TREE.removeHandler(self.handler)
            self.handler.close()
            self.handler = None


def _file_handler(file: Path) -> logging.Handler:
    handler = logging.FileHandler(file, encoding="utf-8", delay=True)
    handler.setFormatter(_Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name == __name__)
    return handler


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING:
            record.message = f"{record.levelname.lower()}: {record.message}"
        return super().formatMessage(record)
