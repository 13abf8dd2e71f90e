"""Each client predicts the most frequent label of its training rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fl import registry
from fl.config.config import Config
from fl.errors import ConfigError
from fl.method.baseline import Baseline
from fl.registry import register
from fl.simulation.baselines import with_method
from fl.simulation.setup import RunSetup

from ..majority import Majority


@register("baseline", "majority")
@dataclass(frozen=True, kw_only=True)
class MajorityBaseline(Baseline):
    """The majority class of each client."""

    def config(self, run_setup: RunSetup, directory: Path) -> Config:
        y = run_setup.dataset.train.get("y")
        if run_setup.config.task.kernel != "cross_entropy" or y is None or y.ndim != 1:
            raise ConfigError("baselines", "'majority' needs a classification task with one label per row")
        return with_method(run_setup.config, 1, Majority(), registry.lookup("client", Majority.client)())
