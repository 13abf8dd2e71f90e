"""Train one model on the pooled training rows of all clients.

A round trains on as many samples as a round of the run does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fl.config.config import Config
from fl.method.baseline import Baseline
from fl.method.sampler import Fixed
from fl.registry import register
from fl.simulation.baselines import local_training, participation, with_budget, with_method
from fl.simulation.setup import RunSetup

from ..fedavg import FedAvg


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
            steps = max(1, round((client.epochs or 1) * participation(run_setup) * rows / batch))
        trainer = with_budget(FedAvg.client, run_setup, epochs=None, steps=steps)
        pooled = with_method(config, config.rounds, FedAvg(), trainer, server=True)
        return replace(pooled, splits=replace(config.splits, pooled=True), cohort=Fixed(clients=(0,)))
