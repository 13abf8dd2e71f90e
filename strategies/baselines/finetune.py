"""Each client trains the run's final model further, for one round of the run's local budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fl.config.config import Config
from fl.errors import ConfigError
from fl.method.baseline import Baseline
from fl.registry import register
from fl.simulation.baselines import with_budget, with_method
from fl.simulation.setup import RunSetup

from ..local import Local


@register("baseline", "finetune")
@dataclass(frozen=True, kw_only=True)
class FinetuneBaseline(Baseline):
    """Local fine-tuning of the run's final model."""

    def config(self, run_setup: RunSetup, directory: Path) -> Config:
        config = run_setup.config
        if config.model.freeze or config.model.adapter:
            raise ConfigError(
                "baselines", "'finetune' needs a run that trains the whole model; leave out freeze and adapter"
            )
        model = replace(config.model, init=str((directory / "model.safetensors").absolute()))
        return replace(with_method(config, 1, Local(), with_budget(Local.client, run_setup)), model=model)
