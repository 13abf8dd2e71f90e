"""Local training whose loss is a function of what models compute for a sample: distillation, contrast of features.

    losses (B,) <- f(outputs and features of the trained model, constants of the samples, labels)
    constants   <- outputs and features of other models, which do not change while a client trains

The engine makes the passes of the other models once, before the first step, or for each batch, if training batches are
random. For stacks of linear layers the engine computes the passes of the trained model itself,
for many clients at once, and asks torch only for the gradient of f.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fl.data.views import Batch, View
from fl.method.context import ClientContext
from fl.method.local_training import LocalTraining
from fl.method.training_values import StepContext, TrainingInputs
from fl.models.layers import features_of
from fl.tasks.task import Task
from fl.tensors.params import Params

BLOCK = 1024  # samples per forward pass of a reference model
_PREFIX = "constant/"


@dataclass(frozen=True)
class ModelOutputs:
    """What a model computes for B samples.

    Attributes:
        outputs: (B, ...), what evaluations use.
        features: (B, D), the inputs of the last layer, or the outputs of the layer `LossOfOutputs.features`.
    """

    outputs: Tensor
    features: Tensor


class WrongResult(ValueError):
    """A hook of a `LossOfOutputs` returned something else than it should."""


class LossOfOutputs(LocalTraining):
    """Local training with a loss of its own, `sample_losses`, in place of `objective`.

    It trains many clients together where the hook `objective` trains one after another.

    Raises:
        ValueError: the class does not define `sample_losses`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self).sample_losses is LossOfOutputs.sample_losses:
            raise ValueError(
                f"sample_losses: {type(self).__name__} does not define it; it returns the loss of each sample, (B,)"
            )

    @property
    def features(self) -> str | None:
        """Name of the layer whose outputs are the features. Default, None: the inputs of the last layer.

        A method overrides it by a class attribute, or by a field that the user sets.
        """
        return None

    def reference_models(self, inputs: TrainingInputs) -> Mapping[str, Params]:
        """Return the models that the loss compares with, by name. They compute in evaluation mode.

        Args:
            inputs: those of the first training. When C clients train together, a model from their states has a leading
                axis C.
        """
        return {}

    def constants(
        self, references: Mapping[str, ModelOutputs], config: Mapping[str, Any], task: Task
    ) -> Mapping[str, Tensor]:
        """Return what `sample_losses` needs of the reference models, arrays (B, ...) by name. One row is one sample.

        Called once, before the first step, or for each batch, if training batches are random. Not called without
        reference models.

        Args:
            references: what the reference models compute, by name.
            config: values of the broadcast's `config`.
            task: the run's task.
        """
        return {}

    def sample_losses(
        self, own: ModelOutputs, constants: Mapping[str, Tensor], batch: Batch, config: Mapping[str, Any], task: Task
    ) -> Tensor:
        """Return the loss of each sample, (B,). The engine takes each client's mean.

        The samples may be those of many clients, so a loss depends on its own sample alone.

        Args:
            own: what the trained model computes, with gradients.
            constants: rows of what `constants` returned, of the same samples; {} without reference models.
            batch: arrays of B samples by name.
            config: values of the broadcast's `config`.
            task: the run's task.
        """
        raise NotImplementedError

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        """Return `sample_losses` of a batch."""
        module = net if isinstance(net, nn.Module) else at.module
        assert module is not None
        own, constants = self._recorded(module, partial(net, batch["x"])), constants_in(batch)
        models = {} if constants else models_of(self, at)
        if models:
            passes = {name: self._recorded(module, partial(at.under, w, batch["x"])) for name, w in models.items()}
            constants = constants_of(self, passes, at.config, task, len(batch["x"]))
        return losses_of_samples(self, own, constants, batch, at.config, task, len(batch["x"]))

    def samples(self, ctx: ClientContext) -> View:
        """Return the client's samples, with the constants beside them."""
        if ctx.random_batches or not len(ctx.train):  # `objective` makes the passes
            return ctx.train
        inputs = self.inputs(ctx)
        views = any(phase.has_views for phase in self.phases_of(inputs, ctx.round, ctx.rounds))
        models = {} if views else models_of(self, inputs)
        if not models:
            return ctx.train
        arrays, count = ctx.train.take(), len(ctx.train)
        passes = {name: self.outputs_of(ctx.net(model), arrays["x"]) for name, model in models.items()}
        return View(with_constants(arrays, constants_of(self, passes, ctx.config, ctx.task, count)), np.arange(count))

    def check_models(self, modules: Mapping[str, nn.Module], x: Tensor) -> None:
        """Check that each architecture has the layer `features`."""
        super().check_models(modules, x)
        for module in modules.values():
            with features_of(module, self.features):
                pass

    def outputs_of(self, module: nn.Module, x: Tensor) -> ModelOutputs:
        """Return what a module computes for samples x (n, ...), without gradients."""
        with torch.no_grad():
            found = [self._recorded(module, partial(module, part)) for part in torch.split(x, BLOCK)]
        return joined(found)

    def _recorded(self, module: nn.Module, call: Callable[[], Tensor]) -> ModelOutputs:
        """Return the outputs of a call of the module, with its features."""
        with features_of(module, self.features) as recorded:
            outputs = call()
        return ModelOutputs(outputs, recorded[-1][1].flatten(1))


def models_of(algorithm: LossOfOutputs, inputs: TrainingInputs) -> Mapping[str, Params]:
    """Return the reference models, checked.

    Raises:
        WrongResult: `reference_models` returned something else than models by name, or asked for a missing value.
    """
    hook = f"{type(algorithm).__name__}: reference_models"
    try:
        models = algorithm.reference_models(inputs)
    except KeyError as error:
        raise WrongResult(
            f"{hook} asks for {error}, which is missing; the groups of the broadcast are {list(inputs.received)}, and "
            f"the names of its config {list(inputs.config)}"
        ) from error
    if not isinstance(models, Mapping):
        raise WrongResult(f"{hook} returned a {type(models).__name__}, expected a mapping of names to models (Params)")
    for name, model in models.items():
        if model is None:
            raise WrongResult(
                f"{hook} returned None for {name!r}, expected a model (Params); in its first training a client has the "
                "state that the hook first_state returns, by default None"
            )
        if not isinstance(model, Params):
            raise WrongResult(f"{hook} returned a {type(model).__name__} for {name!r}, expected a model (Params)")
    return models


def constants_of(
    algorithm: LossOfOutputs, passes: Mapping[str, ModelOutputs], config: Mapping[str, Any], task: Task, count: int
) -> dict[str, Tensor]:
    """Return the constants of `count` samples, checked.

    Raises:
        WrongResult: `constants` returned something else than tensors by name with one row for each sample.
    """
    hook = f"{type(algorithm).__name__}: constants"
    found = algorithm.constants(passes, config, task)
    if not isinstance(found, Mapping):
        raise WrongResult(f"{hook} returned a {type(found).__name__}, expected a mapping of names to tensors")
    for name, array in found.items():
        if not isinstance(array, Tensor):
            expected = f"expected a tensor with {count} rows, one for each sample"
            raise WrongResult(f"{hook} returned a {type(array).__name__} for {name!r}, {expected}")
        if array.dim() == 0:
            raise WrongResult(f"{hook} returned {name!r} without rows for {count} samples; its shape is ()")
        if len(array) != count:
            raise WrongResult(f"{hook} returned {name!r} with {len(array)} rows for {count} samples")
    return dict(found)


def losses_of_samples(
    algorithm: LossOfOutputs,
    own: ModelOutputs,
    constants: Mapping[str, Tensor],
    batch: Batch,
    config: Mapping[str, Any],
    task: Task,
    count: int,
) -> Tensor:
    """Return the losses of a batch of `count` samples, checked.

    Raises:
        WrongResult: `sample_losses` returned something else than one loss for each sample, or losses that depend on
            neither outputs nor features.
    """
    losses = algorithm.sample_losses(own, constants, batch, config, task)
    hook = f"sample_losses of {type(algorithm).__name__}"
    if not isinstance(losses, Tensor):
        raise WrongResult(f"{hook} returned a {type(losses).__name__}, expected a tensor ({count},)")
    if losses.shape != (count,) and not (algorithm.loss_over_batch and losses.dim() == 0):
        raise WrongResult(
            f"{hook} returned shape {tuple(losses.shape)} for {count} samples, expected ({count},): the loss of each "
            "sample; the engine takes the mean"
        )
    if own.outputs.requires_grad and not losses.requires_grad:
        raise WrongResult(
            f"{hook} returned losses without a gradient; they have to depend on own.outputs or own.features, without "
            "detach(), torch.no_grad() or NumPy in between"
        )
    return losses


def joined(parts: Sequence[ModelOutputs]) -> ModelOutputs:
    """Return what a model computes for the samples of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    return ModelOutputs(torch.cat([part.outputs for part in parts]), torch.cat([part.features for part in parts]))


def with_constants(arrays: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return arrays of samples with the constants of their losses beside them."""
    return {**arrays, **{f"{_PREFIX}{name}": array for name, array in constants.items()}}


def constants_in(batch: Batch) -> dict[str, Tensor]:
    """Return the constants that lie in a batch, by name."""
    return {name.removeprefix(_PREFIX): batch[name] for name in batch if name.startswith(_PREFIX)}
