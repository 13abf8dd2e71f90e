"""Each client trains a model of its own, for as many rounds as a client takes part in on average."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fl.config.config import Config
from fl.method.baseline import Baseline
from fl.registry import register
from fl.simulation.baselines import compared, participation, trainer
from fl.simulation.setup import RunSetup
from strategies.local import Local


@register("baseline", "local")
@dataclass(frozen=True, kw_only=True)
class LocalBaseline(Baseline):
    """Local training only."""

    def config(self, run_setup: RunSetup, directory: Path) -> Config:
        config = run_setup.config
        rounds = max(1, round(config.rounds * participation(run_setup)))
        return compared(config, rounds, Local(), trainer(Local.client, run_setup))
