"""What a client algorithm customises: it decides which plans can train its clients."""

from __future__ import annotations

import functools
from typing import Any

from fl import registry
from fl.method.client import ClientAlgorithm
from fl.method.local_training import LocalTraining
from fl.method.loss_of_outputs import LossOfOutputs
from fl.method.optimiser import SGD
from fl.method.penalty import Penalty, fitted
from fl.method.phase import Phase
from fl.method.training_values import StepContext
from fl.tasks.task import Task

HOOKS = (
    *("facts", "prepare", "prepare_together", "first_state", "samples", "start", "phases", "phases_of"),
    *("objective", "penalty", "gradient", "protected"),
    *("step_memory", "step", "finish", "metrics", "carry", "trainings", "inputs", "initial_tensors"),
    *("reference_models", "constants", "sample_losses"),
)
_LOSS = ("loss", "objective")  # methods of a task


def overrides(algorithm: LocalTraining, name: str) -> bool:
    """Whether the method overrides the hook `name` of LocalTraining. A field of this name is no hook."""
    own = getattr(type(algorithm), name)
    return own is not getattr(LocalTraining, name) and callable(own)


def loss_of_outputs(algorithm: LocalTraining) -> bool:
    """Whether the objective is that of `LossOfOutputs`: a function of the model's outputs and features."""
    return registry.definer(type(algorithm), "objective") is LossOfOutputs


def own_loss(algorithm: LocalTraining) -> str | None:
    """Why the loss is not the task's, or `None`."""
    if not overrides(algorithm, "objective"):
        return None
    kind = "a loss of its own" if loss_of_outputs(algorithm) else "its own objective"
    return f"{type(algorithm).__name__} has {kind}"


def own_objective(algorithm: LocalTraining) -> str | None:
    """Why the loss is not a function of the model's outputs and features, or `None`."""
    return None if loss_of_outputs(algorithm) else own_loss(algorithm)


def ends_plainly(algorithm: LocalTraining) -> bool:
    """Whether an update is the change of the model, without a new state, a carry or metrics of the method's own."""
    return not any(overrides(algorithm, name) for name in ("finish", "metrics", "carry", "trainings"))


def takes_plain_steps(algorithm: LocalTraining, phase: Phase, penalty: Penalty | None) -> bool:
    """Whether each step is w <- w - lr g, with the plain gradient g."""
    plain = penalty is None and phase.clip is None and not phase.rates and phase.optimiser == SGD()
    return plain and not changes_gradients(algorithm) and not overrides(algorithm, "step")


def changes_gradients(algorithm: LocalTraining) -> bool:
    """Whether the hook `gradient` may return something else than the gradient."""
    return overrides(algorithm, "gradient") or overrides(algorithm, "protected")


def penalty_of(algorithm: LocalTraining, at: StepContext, clients: int | None = None) -> Penalty | None:
    """Return the penalty of a phase, checked. `clients`: how many train together, see `fl.method.penalty.fitted`."""
    return fitted(algorithm.penalty(at), at.start, clients, type(algorithm).__name__)


def custom_training(algorithm: ClientAlgorithm) -> str | None:
    """Why a client may do more than take gradients of the task's own loss, or `None`."""
    name = type(algorithm).__name__
    if not isinstance(algorithm, LocalTraining):
        return f"{name} is not a LocalTraining"
    own = [f"{hook}()" for hook in ("work", "prepare", "objective", "step") if overrides(algorithm, hook)]
    return f"{name} has its own {' and '.join(own)}" if own else None


def users_training(algorithm: LocalTraining, task: Task) -> bool:
    """Whether hooks of local training, the loss or the optimiser come from a user and not from this project."""
    kind: Any = type(algorithm)  # mypy does not know that classes can be hashed
    return _users_hooks(kind) or users_loss(algorithm, task) or registry.is_users(type(algorithm.optimiser))


def users_loss(algorithm: LocalTraining, task: Task) -> bool:
    """Whether the objective, or the task's loss or objective, comes from a user."""
    kinds: Any = type(algorithm), type(task)
    return _users_loss(*kinds)


@functools.cache  # a worker asks twice in a round, which may take few milliseconds
def _users_hooks(kind: type[LocalTraining]) -> bool:
    return any(registry.is_users(registry.definer(kind, hook)) for hook in HOOKS if hasattr(kind, hook))


@functools.cache
def _users_loss(kind: type[LocalTraining], task: type[Task]) -> bool:
    hooks = "objective", "reference_models", "constants", "sample_losses"
    own = [name for name in hooks if hasattr(kind, name)]
    owners = *(registry.definer(kind, name) for name in own), *(registry.definer(task, name) for name in _LOSS)
    return any(map(registry.is_users, owners))
