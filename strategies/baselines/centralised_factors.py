"""Matrix factorisation on the pooled training rows of all users, as many passes over the rows as the run makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fl import registry
from fl.checks import positive
from fl.config.config import Config
from fl.errors import ConfigError
from fl.method.baseline import Baseline
from fl.method.sampler import Fixed
from fl.registry import register
from fl.simulation.baselines import participation, with_method
from fl.simulation.setup import RunSetup
from fl.tasks.ranking import Ranking

from ..fedavg import FedAvg


@register("baseline", "centralised_factors")
@dataclass(frozen=True, kw_only=True)
class CentralisedFactorsBaseline(Baseline):
    """Centralised matrix factorisation, for the task `ranking`.

    Args:
        lr: learning rate of Adam, positive.
        epochs: passes over all rows per round, positive. Default: those of the run's clients, times the fraction of
            clients in a cohort.
        batch: samples per step, positive.
        weight_decay: strength of the L2 penalty on the rows of a batch, at least 0.
    """

    lr: float = 0.01
    epochs: float | None = None
    batch: int = 1024
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        positive(lr=self.lr, epochs=self.epochs, batch=self.batch)

    def config(self, run_setup: RunSetup, directory: Path) -> Config:
        config, users = run_setup.config, run_setup.dataset.train.get("user")
        if not isinstance(config.task, Ranking) or users is None:
            raise ConfigError("baselines", "'centralised_factors' needs `task: ranking` and data with the array `user`")
        epochs = (getattr(config.client, "epochs", None) or 1) * participation(run_setup)
        factors = registry.lookup("client", "centralised_factors")
        client = factors(
            users=int(users.max()) + 1,
            negatives=getattr(config.client, "negatives", factors.negatives),
            lr=self.lr,
            epochs=self.epochs or epochs,
            batch=self.batch,
            weight_decay=self.weight_decay,
        )
        pooled = with_method(config, config.rounds, FedAvg(), client)
        return replace(pooled, splits=replace(config.splits, pooled=True), cohort=Fixed(clients=(0,)))
