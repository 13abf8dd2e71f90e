"""Event files for TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl.registry import register
from fl.tracking.callback import Callback, Row, Run
from fl.tracking.trackers.numbers import imported, numbers

if TYPE_CHECKING:
    from fl.simulation.result import Result


@register("tracker", "tensorboard")
@dataclass(kw_only=True)
class TensorBoard(Callback):
    """Write event files for TensorBoard: `tensorboard --logdir runs`. Needs the package tensorboard.

    A resumed run writes a further event file, which TensorBoard shows as the same curve.

    Args:
        folder: Where to write; default: the folder `tensorboard` in the run directory.
    """

    folder: str | None = None
    writer: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        imported("tensorboard", "tensorboard", "tensorboard")

    def start(self, run: Run) -> None:
        self._close()
        writer = imported("tensorboard", "torch.utils.tensorboard.writer", "tensorboard").SummaryWriter
        folder = run.directory / "tensorboard" if self.folder is None else Path(self.folder) / run.directory.name
        self.writer = writer(str(folder))

    def round(self, row: Row) -> None:
        for name, value in numbers(row).items():
            self.writer.add_scalar(name, value, row["round"])

    def final(self, row: Row) -> None:
        self.round(row)

    def end(self, result: Result) -> None:
        self._close()

    def failure(self, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
