"""Local training whose loss is a function of what models compute for a sample: distillation, contrast of features.

    losses (B,) <- f(outputs and features of the trained model, constants of the samples, labels)
    constants   <- outputs and features of other models, which do not change while a client trains

The engine makes the passes of the other models once, before the first step, or, if training batches are random, for
each batch as the model sees it. For stacks of linear layers the engine computes the passes of the trained model itself,
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
            inputs: those of the first training. With C clients a model of each client, from the state, is batched (C,).
        """
        return {}

    def constants(
        self, references: Mapping[str, ModelOutputs], config: Mapping[str, Any], task: Task
    ) -> Mapping[str, Tensor]:
        """Return what `sample_losses` needs of the reference models, arrays (B, ...) by name. One row is one sample.

        Called for all samples before the first step, or, if batches are random, for each batch; not called without
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
        models = {} if constants else self.reference_models(at)
        if models:
            passes = {name: self._recorded(module, partial(at.under, w, batch["x"])) for name, w in models.items()}
            constants = dict(self.constants(passes, at.config, task))
        return self.sample_losses(own, constants, batch, at.config, task)

    def samples(self, ctx: ClientContext) -> View:
        """Return the client's samples, with the constants beside them."""
        views = any(phase.has_views for phase in self.phases(ctx.round, ctx.rounds))
        if ctx.random_batches or views or not len(ctx.train):  # `objective` makes the passes
            return ctx.train
        models = self.reference_models(self.inputs(ctx))
        if not models:
            return ctx.train
        arrays = ctx.train.take()
        passes = {name: self.outputs_of(ctx.net(model), arrays["x"]) for name, model in models.items()}
        return View(with_constants(arrays, self.constants(passes, ctx.config, ctx.task)), np.arange(len(ctx.train)))

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
    return {name.removeprefix(_PREFIX): array for name, array in batch.items() if name.startswith(_PREFIX)}
