"""MLflow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fl.registry import register
from fl.tracking.callback import Callback, Row, Run
from fl.tracking.trackers.numbers import flat, imported, numbers

if TYPE_CHECKING:
    from fl.simulation.result import Result

LONGEST = 500  # characters of a parameter; MLflow refuses longer ones


@register("tracker", "mlflow")
@dataclass(kw_only=True)
class MLflow(Callback):
    """Log metrics and configuration to MLflow. Needs the package mlflow-skinny.

    Args:
        experiment: Name of the experiment.
        uri: Where MLflow keeps its runs: a server's address, or a database such as sqlite:///mlflow.db; default:
            mlflow.db in the folder that holds the run directory.
    """

    experiment: str = "fl"
    uri: str | None = None
    client: Any = field(default=None, init=False, repr=False)
    id: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        imported("mlflow", "mlflow", "mlflow")

    def start(self, run: Run) -> None:
        self._close("KILLED")
        mlflow = imported("mlflow", "mlflow", "mlflow")
        self.client = mlflow.MlflowClient(self.uri or f"sqlite:///{run.directory.resolve().parent}/mlflow.db")
        known = self.client.get_experiment_by_name(self.experiment)
        experiment = known.experiment_id if known else self.client.create_experiment(self.experiment)
        self.id = self.client.create_run(experiment, run_name=run.directory.name).info.run_id
        for name, value in flat(run.config.to_dict()).items():
            self.client.log_param(self.id, name, str(value)[:LONGEST])

    def round(self, row: Row) -> None:
        for name, value in numbers(row).items():
            self.client.log_metric(self.id, name, value, step=row["round"])

    def final(self, row: Row) -> None:
        self.round(row)

    def end(self, result: Result) -> None:
        self._close("FINISHED")

    def failure(self, error: BaseException) -> None:
        self._close("FAILED")

    def _close(self, status: str) -> None:
        if self.client is not None:
            self.client.set_terminated(self.id, status)
            self.client = None
