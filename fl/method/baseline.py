"""Baselines: methods that a run is compared with, on the same splits and for the same work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the simulation is above this layer
    from fl.config.config import Config
    from fl.simulation.setup import RunSetup


class Baseline:
    """Base of baselines: frozen dataclasses of their parameters, registered under "baseline"."""

    def config(self, run_setup: RunSetup, directory: Path) -> Config:
        """The configuration of the baseline's own run.

        Args:
            run_setup: the run that the baseline is compared with; none of its rounds has been trained yet.
            directory: directory of that run, which holds its final model when the baseline starts.

        Raises:
            ConfigError: there is no such baseline for this run.
        """
        raise NotImplementedError
