"""What a finished run returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fl.simulation.totals import Row
from fl.storage import files, sums
from fl.storage.run import RunDirectory, read_metrics
from fl.tensors.params import Params
from fl.tensors.serialise import digest

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Result:
    """A finished or interrupted run.

    Attributes:
        metrics: one row per committed round.
        model: the final model.
        directory: the run directory.
        reason: why the run ended.
        baselines: results of the configuration's `baselines`, by name.
    """

    metrics: list[Row]
    model: Params
    directory: Path
    reason: str
    baselines: Mapping[str, Result] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of all tensors of the final model."""
        return digest(self.model)

    @property
    def ledger(self) -> pyarrow.Table:
        """Bytes per round, exchange, client, direction and group."""
        import pyarrow.parquet as pq

        return pq.read_table(sums.checked(self.directory / "ledger.parquet"))

    @property
    def summary(self) -> Row:
        """The last round's metrics, totals over all rounds, and the model's digest."""
        last = self.metrics[-1] if self.metrics else {}
        summed = ("uplink_bytes", "downlink_bytes", "wall_seconds")
        totals = {f"total_{name}": sum(row[name] for row in self.metrics) for name in summed}
        row = {"directory": str(self.directory), "reason": self.reason, "digest": self.digest, "final": last, **totals}
        others = {name: result.summary for name, result in self.baselines.items()}
        return {**row, "baselines": others} if others else row


def save_result(folder: RunDirectory, round_: int, reason: str, model: Params) -> Result:
    """Write the final model and the tables of a run, and return its result.

    Args:
        folder: the run directory.
        round_: rounds done.
        reason: why the run ends.
        model: the model after the last round.
    """
    from safetensors.torch import save_file

    copies = {name: tensor.clone() for name, tensor in model.items()}
    with files.replacing(folder.path / "model.safetensors") as part:
        save_file(copies, part, {"round": str(round_)})
    folder.export()
    return Result(read_metrics(folder.path), model, folder.path, reason)
