"""Losses of a method's own, between the forward and the backward pass of linear layers.

    outputs, features (A, B, ...) -> losses (A, B) by `sample_losses` -> autograd -> gradients in outputs and features

`kernels.py` and `split.py` make the passes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fl.execution.training.chunk import Chunk
from fl.method.loss_of_outputs import LossOfOutputs, ModelOutputs, constants_in, losses_of_samples


class OwnLosses:
    """The losses of a `LossOfOutputs` and their gradients, for the samples of all clients of a chunk at once."""

    def __init__(self, algorithm: LossOfOutputs, chunk: Chunk):
        self.algorithm, self.config, self.task = algorithm, chunk.config, chunk.task

    def __call__(
        self, outputs: Tensor, features: Tensor, batch: Mapping[str, Tensor], weights: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return (gradients of the weighted sum of the losses in outputs and in features, losses (A, B)).

        The second gradient is None if the losses do not depend on the features.

        Args:
            outputs: (A, B, K).
            features: (A, B, D).
            batch: name -> (A, B, ...).
            weights: (A, B).
        """
        samples = {name: array.flatten(0, 1) for name, array in batch.items()}
        of_outputs, of_features, losses = self.of_samples(
            outputs.flatten(0, 1), features.flatten(0, 1), samples, weights.flatten()
        )
        if of_features is not None:
            of_features = of_features.view_as(features)
        return of_outputs.view_as(outputs), of_features, losses.view_as(weights)

    def of_samples(
        self, outputs: Tensor, features: Tensor, samples: Mapping[str, Tensor], weights: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the same without the axis of clients: outputs (N, K), features (N, D), weights (N,)."""
        leaves = [values.detach().requires_grad_() for values in (outputs, features)]
        own, constants, count = ModelOutputs(*leaves), constants_in(samples), len(weights)
        losses = losses_of_samples(self.algorithm, own, constants, samples, self.config, self.task, count)
        of_outputs, of_features = torch.autograd.grad(losses, leaves, weights, allow_unused=True)
        return torch.zeros_like(outputs) if of_outputs is None else of_outputs, of_features, losses.detach()
