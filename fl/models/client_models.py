"""The models of a run whose clients have different architectures, built (fl/models/architectures/by_client.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from fl.models.batch_norm import statistics_names
from fl.models.binding import Initial
from fl.models.probe import ModuleFacts


@dataclass(frozen=True, eq=False)
class ClientModel:
    """One architecture.

    Attributes:
        name: its name in the configuration.
        module: the model's structure.
        facts: what the module does beside computing outputs.
        initial: the module's tensors as the run began.
    """

    name: str
    module: torch.nn.Module
    facts: ModuleFacts
    initial: Initial

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """Names of the running statistics that each client keeps for itself."""
        return tuple(statistics_names(self.module, "local"))


@dataclass(frozen=True, eq=False)
class ClientModels:
    """All architectures of a run, and which client has which.

    Attributes:
        models: the architectures.
        assigned: number of each client's model, (N,).
    """

    models: tuple[ClientModel, ...]
    assigned: np.ndarray

    def of(self, client: int) -> ClientModel:
        """Return a client's model.

        Raises:
            ValueError: `client` is negative: the server has no model.
        """
        if client < 0:
            raise ValueError("with model.by_client the server has no model; evaluate on clients' own rows")
        return self.models[self.assigned[client]]

    def counts(self) -> np.ndarray:
        """Return the number of clients of each model, (K,)."""
        return np.bincount(self.assigned, minlength=len(self.models))

    def changed(self, change: Callable[[ClientModel], ClientModel]) -> ClientModels:
        """Return the same with each architecture changed."""
        return replace(self, models=tuple(map(change, self.models)))
