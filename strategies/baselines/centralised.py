"""One model from the training rows of all clients; a round trains on as many samples as a cohort of the run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fl.config.config import Config
from fl.method.baseline import Baseline
from fl.method.sampler import Fixed
from fl.registry import register
from fl.simulation.baselines import compared, local_training, participation, trainer
from fl.simulation.setup import RunSetup
from strategies.fedavg import FedAvg


@register("baseline", "centralised")
@dataclass(frozen=True, kw_only=True)
class CentralisedBaseline(Baseline):
    """Centralised training."""

    def config(self, run_setup: RunSetup, directory: Path) -> Config:
        config = run_setup.config
        client, rows = local_training(run_setup), int(run_setup.sizes(0)[: run_setup.trainable].sum())
        if client.steps is not None:
            cohort = max(1, round(participation(run_setup) * run_setup.trainable))
            steps = client.steps * cohort
        else:
            batch = rows if client.batch == "full" else client.batch
            steps = max(1, round(client.epochs * participation(run_setup) * rows / batch))
        pooled = compared(config, config.rounds, FedAvg(), trainer(FedAvg.client, run_setup, steps=steps), server=True)
        return replace(pooled, splits=replace(config.splits, pooled=True), cohort=Fixed(clients=(0,)))
