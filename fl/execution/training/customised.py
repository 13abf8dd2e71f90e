"""What a client algorithm customises: it decides which plans can train its clients."""

from __future__ import annotations

from fl.method.client import ClientAlgorithm
from fl.method.local_training import LocalTraining
from fl.method.optimiser import SGD
from fl.method.phase import Phase


def overrides(algorithm: LocalTraining, name: str) -> bool:
    """Whether the method overrides the hook `name` of LocalTraining."""
    return getattr(type(algorithm), name) is not getattr(LocalTraining, name)


def takes_plain_steps(algorithm: LocalTraining, phase: Phase) -> bool:
    """Whether each step is w <- w - lr g, with the plain gradient g."""
    return not overrides(algorithm, "gradient") and phase.clip is None and phase.optimiser == SGD()


def custom_training(algorithm: ClientAlgorithm) -> str | None:
    """Why a client may do more than take gradients of the task's own loss, or `None`."""
    if (
        isinstance(algorithm, LocalTraining)
        and not overrides(algorithm, "work")
        and not overrides(algorithm, "objective")
    ):
        return None
    return f"{type(algorithm).__name__} has its own work() or objective()"
