"""Weights & Biases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fl.checks import one_of
from fl.registry import register
from fl.tracking.callback import Callback, Row, Run
from fl.tracking.trackers.numbers import imported, numbers

if TYPE_CHECKING:
    from fl.simulation.result import Result


@register("tracker", "wandb")
@dataclass(kw_only=True)
class WandB(Callback):
    """Log metrics and configuration to Weights & Biases. Needs the package wandb.

    Offline, the files are in the folder `wandb` of the run directory; `wandb sync` sends them. A resumed run is a
    further run of the same name there.

    Args:
        project: Name of the project.
        entity: User or team; default: that of the login.
        group: Group of runs, such as a method over several seeds.
        tags: Tags of the run.
        mode: "offline" writes files only; "online" also sends them while the run goes on.
    """

    project: str = "fl"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["offline", "online"] = "offline"
    log: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        one_of(("offline", "online"), mode=self.mode)
        imported("wandb", "wandb", "wandb")

    def start(self, run: Run) -> None:
        self._close(0)
        wandb = imported("wandb", "wandb", "wandb")
        self.log = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=list(self.tags) or None,
            mode=self.mode,
            dir=str(run.directory),
            name=run.directory.name,
            config=run.config.to_dict(),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def round(self, row: Row) -> None:
        self.log.log(numbers(row), step=row["round"])

    def final(self, row: Row) -> None:
        self.round(row)

    def end(self, result: Result) -> None:
        self._close(0)

    def failure(self, error: BaseException) -> None:
        self._close(1)

    def _close(self, exit_code: int) -> None:
        if self.log is not None:
            self.log.finish(exit_code=exit_code)
            self.log = None
