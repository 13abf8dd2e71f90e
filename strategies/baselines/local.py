"""Each client trains its own model alone.

The number of rounds is the average number of rounds of the run in which a client takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fl.config.config import Config
from fl.method.baseline import Baseline
from fl.registry import register
from fl.simulation.baselines import participation, with_budget, with_method
from fl.simulation.setup import RunSetup

from ..local import Local


@register("baseline", "local")
@dataclass(frozen=True, kw_only=True)
class LocalBaseline(Baseline):
    """Local training without a server."""

    def config(self, run_setup: RunSetup, directory: Path) -> Config:
        config = run_setup.config
        rounds = max(1, round(config.rounds * participation(run_setup)))
        return with_method(config, rounds, Local(), with_budget(Local.client, run_setup))
