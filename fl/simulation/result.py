"""What a finished run returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from fl.simulation.totals import Row
from fl.storage import files, sums
from fl.storage.run import RunDirectory, read_metrics
from fl.tensors.params import Params
from fl.tensors.serialise import digest
from fl.tracking.round_lines import evaluated, megabytes

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Result:
    """A finished or interrupted run.

    Attributes:
        metrics: one row per committed round.
        model: the final model.
        directory: the run directory.
        reason: why the run ended.
        configuration: digest of the configuration, see `fl.config.digest`.
        baselines: results of the configuration's `baselines`, by name.
    """

    metrics: list[Row]
    model: Params
    directory: Path
    reason: str
    configuration: str
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

    def frame(self) -> pandas.DataFrame:
        """Return the metrics as a frame with a row for each round; pandas must be installed."""
        return _pandas().DataFrame(self.metrics)

    def ledger_frame(self) -> pandas.DataFrame:
        """Return the ledger as a frame: round, exchange, client, direction, group, bytes, tier."""
        _pandas()
        return self.ledger.to_pandas()

    def plot(self, metric: str | None = None, cost: str = "round") -> Figure:
        """Return a figure of a metric against a cost, with the run's baselines.

        Args:
            metric: metric on the y axis. Default: the first of the accuracies and losses that the run measured.
            cost: "round", "up" or "down" (MB), "hours" (simulated), or another key of `fl.report.costs.COSTS`.
        """
        from fl.report.compare import default_metric
        from fl.report.plots.curves import draw_curves
        from fl.report.variants import Variant

        mine = Variant(self.directory.name, [self.metrics])
        others = [Variant(name, [result.metrics], baseline=True) for name, result in self.baselines.items()]
        return draw_curves([mine, *others], metric or default_metric([mine]), cost)

    def __repr__(self) -> str:
        last = {name: f"{value:.4f}" for name, value in self.shown.items()}
        figures = "".join(f", {name} {value}" for name, value in last.items())
        done = len([row for row in self.metrics if row["round"] >= 0 and "stage" not in row])
        return f"<Result: {done} rounds{figures}, {self.reason}, {self.directory}>"

    def _repr_html_(self) -> str:
        from fl.tracking.screens import html_table

        summary = self.summary
        rows = [[name, f"{value:.4f}"] for name, value in self.shown.items()]
        rows += [["MB up", megabytes(summary["total_uplink_bytes"])]]
        rows += [["MB down", megabytes(summary["total_downlink_bytes"])], ["ended", self.reason]]
        return html_table(["", str(self.directory)], rows)

    @property
    def shown(self) -> dict[str, float]:
        """The metrics of the last evaluation: on the server's test set, and on clients' rows."""
        last = evaluated(self.metrics[-1]) if self.metrics else {}
        return {name: value for name, value in last.items() if value is not None}

    @property
    def summary(self) -> Row:
        """The last round's metrics, totals over all rounds, and the digests of model and configuration."""
        last = self.metrics[-1] if self.metrics else {}
        summed = ("uplink_bytes", "downlink_bytes", "wall_seconds")
        totals = {f"total_{name}": sum(row[name] for row in self.metrics) for name in summed}
        row: Row = {"directory": str(self.directory), "reason": self.reason, "digest": self.digest}
        row |= {"configuration": self.configuration, "final": last, **totals}
        others = {name: result.summary for name, result in self.baselines.items()}
        return {**row, "baselines": others} if others else row


def _pandas() -> ModuleType:
    try:
        import pandas
    except ImportError:
        raise ImportError("a frame needs pandas; install it with: pip install pandas") from None
    return pandas


def save_result(folder: RunDirectory, round_: int, reason: str, model: Params, configuration: str) -> Result:
    """Write the final model and the tables of a run, and return its result.

    Args:
        folder: the run directory.
        round_: rounds done.
        reason: why the run ends.
        model: the model after the last round.
        configuration: digest of the configuration.
    """
    from safetensors.torch import save_file

    copies = {name: tensor.clone() for name, tensor in model.items()}
    with files.replacing(folder.path / "model.safetensors") as part:
        save_file(copies, part, {"round": str(round_)})
    folder.export()
    return Result(read_metrics(folder.path), model, folder.path, reason, configuration)
