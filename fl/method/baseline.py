"""Baselines: methods that a run is compared with, on the same splits and with the same amount of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the simulation is above this layer
    from fl.config.config import Config
    from fl.simulation.setup import RunSetup


class Baseline:
    """Base of baselines. Subclasses are frozen dataclasses of hyper-parameters, registered under "baseline"."""

    def config(self, run_setup: RunSetup, directory: Path) -> Config:
        """Return the configuration of the baseline's run.

        Args:
            run_setup: the run that the baseline is compared with, before its round 0.
            directory: directory of that run; it holds the run's final model when the baseline starts.

        Raises:
            ConfigError: this baseline does not fit the run.
        """
        raise NotImplementedError
