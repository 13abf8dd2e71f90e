"""Call a client algorithm's objective: the losses of a batch, and a check that they are the losses of its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fl.data.views import Batch
from fl.execution.training.customised import loss_of_outputs, overrides
from fl.method.local_training import LocalTraining
from fl.method.loss_of_outputs import LossOfOutputs
from fl.method.training_values import StepContext
from fl.tasks.task import Task

TOLERANCE = 1e-4  # relative; losses that are divided by the size of the batch differ by 0.5


def losses_of(algorithm: LocalTraining, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
    """Return the objective as one loss per sample, (B,). One loss of the whole batch counts for each sample.

    Raises:
        ValueError: the objective is neither.
    """
    losses = algorithm.objective(net, batch, at, task)
    if losses.dim() == 1:
        return losses
    if algorithm.loss_over_batch and losses.dim() == 0:
        return losses.expand(len(batch["x"]))
    raise ValueError(_shape_error(name_of_objective(algorithm, task), algorithm, losses, len(batch["x"])))


def name_of_objective(algorithm: LocalTraining, task: Task) -> str:
    """The objective in words: the client algorithm's, or the objective or the loss of the task."""
    if overrides(algorithm, "objective"):
        return f"{'sample_losses' if loss_of_outputs(algorithm) else 'objective'} of {type(algorithm).__name__}"
    return f"{'loss' if type(task).objective is Task.objective else 'objective'} of {type(task).__name__}"


def objective_error(
    name: str,
    algorithm: LocalTraining,
    net: Callable[..., Any],
    batch: Batch,
    at: StepContext,
    task: Task,
) -> str | None:
    """Why the objective `name` does not return the loss of each sample, or `None`. Compares 2 samples and 2 x 2.

    Losses of the same samples that are halved when the batch is doubled are divided by its size. The engine takes the
    mean, so they would be divided twice. Other differences are fine: they come from normalisation over the batch or
    from contrastive losses.
    """
    two = {name: array[:2].repeat_interleave(3 - len(array[:2]), 0) for name, array in batch.items()}
    four = {name: torch.cat([array, array]) for name, array in two.items()}
    mode = net.training if isinstance(net, nn.Module) else False
    try:
        if isinstance(net, nn.Module):
            net.eval()  # no Dropout
        with torch.no_grad():
            small, large = (algorithm.objective(net, part, at, task) for part in (two, four))
    finally:
        if isinstance(net, nn.Module):
            net.train(mode)
    for losses, count in ((small, 2), (large, 4)):
        if not isinstance(losses, Tensor):
            return f"{name} returned a {type(losses).__name__}, expected a tensor ({count},)"
        if losses.shape != (count,) and not (algorithm.loss_over_batch and losses.dim() == 0):
            return _shape_error(name, algorithm, losses, count)
    if algorithm.loss_over_batch or not small.abs().max() > 0:
        return None
    if (2 * large.view(2, 2) - small).abs().max() <= TOLERANCE * small.abs().max():
        return (
            f"{name} divides the losses by the number of samples in the batch: the "
            f"loss of the same sample is {float(small[0]):.4g} in a batch of 2 and {float(large[0]):.4g} in a batch of "
            f"4. {_way_out(algorithm)}"
        )
    return None


def _way_out(algorithm: LocalTraining) -> str:
    undivided = "Return the loss of each sample, undivided; the engine takes the mean"
    if isinstance(algorithm, LossOfOutputs):
        return undivided
    return (
        f"{undivided}. An objective that is one loss of the whole batch returns a number, shape (), and its client "
        "algorithm sets the class attribute loss_over_batch = True"
    )


def _shape_error(name: str, algorithm: LocalTraining, losses: Tensor, count: int) -> str:
    shape = tuple(losses.shape)
    return f"{name} returned shape {shape} for {count} samples, expected ({count},). {_way_out(algorithm)}"
