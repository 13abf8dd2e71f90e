"""Fits of a perceptron to given values, for methods in which clients fit more than the labels (strategies/gal.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl.method.optimiser import Optimiser
from fl.models import perceptron
from fl.tensors import random
from fl.tensors.params import Params


@dataclass(frozen=True, kw_only=True)
class Regression:
    """How a perceptron is fitted to given values by squared error.

    Args:
        hidden: hidden units.
        optimiser: rule of a step.
        lr: learning rate.
        batch: rows of a step.
        epochs: passes over the rows.
    """

    hidden: tuple[int, ...]
    optimiser: Optimiser
    lr: float
    batch: int
    epochs: int

    def fit(self, x: Tensor, values: Tensor, *address: int | str) -> Params:
        """Return the parameters of a perceptron with outputs near `values` (n, K) for x (n, ...).

        Args:
            x: inputs.
            values: wanted outputs.
            *address: address of the first weights and of the order of the rows.
        """
        sizes = (x[0].numel(), *self.hidden, values.shape[1])
        model = Params.of(perceptron.first_weights(sizes, random.torch_generator(*address, "weights")))
        memory, steps = self.optimiser.state(model), 0
        for epoch in range(self.epochs):
            order = torch.from_numpy(random.permutation(len(x), *address, "rows", epoch))
            for rows in order.split(self.batch):
                weights = {name: tensor.detach().requires_grad_() for name, tensor in model.items()}
                loss = (perceptron.outputs(weights, x[rows]) - values[rows]).square().mean()
                gradients = torch.autograd.grad(loss, list(weights.values()))
                self.optimiser.step(model, Params.of(dict(zip(weights, gradients))), memory, self.lr, steps)
                steps += 1
        return model
