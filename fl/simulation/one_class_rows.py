"""Runs with `task: one_class`: y = 1 is a client's own class, y = 0 another one."""

from __future__ import annotations

import numpy as np

from fl.config.config import Config
from fl.data.dataset import Dataset
from fl.errors import ConfigError
from fl.tasks.one_class import OneClass


def check_own_and_other(config: Config, dataset: Dataset) -> None:
    """Check that y tells a client's own class from others, and is no class of the data.

    Raises:
        ConfigError: AUROC would be that of class 1 for each client.
    """
    labels = dataset.train.get("y")
    if not isinstance(config.task, OneClass) or labels is None or "y" in getattr(config.shift, "changes", ()):
        return
    others = np.setdiff1d(np.unique(labels), [0, 1])
    if len(others):
        raise ConfigError(
            "shift",
            f"missing: task one_class takes y = 1 for a client's own class and 0 for others, and the data have class "
            f"{others[0]}; set shift: own_or_other with partition: one_class",
        )
