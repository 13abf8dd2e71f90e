"""Fits of perceptrons to rows, for methods in which a party trains a model of its own (strategies/gal.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl import checks
from fl.method.optimiser import Adam, Optimiser
from fl.models import perceptron
from fl.tensors import random
from fl.tensors.params import Params

BatchLoss = Callable[[Mapping[str, Tensor], Tensor], Tensor]  # (parameters, positions of rows) -> loss, ()


@dataclass(frozen=True, kw_only=True)
class PerceptronFit:
    """Base of strategies and client algorithms that fit perceptrons to rows of their own.

    Args:
        hidden: hidden units of each model, positive.
        optimiser: rule of a step.
        lr: learning rate, at least 0.
        batch: rows of a step, positive.
        epochs: passes over the training rows in a fit, positive.
    """

    hidden: tuple[int, ...] = (100, 100)
    optimiser: Optimiser = Adam(weight_decay=1e-5)
    lr: float = 1e-3
    batch: int = 128
    epochs: int = 10

    def __post_init__(self) -> None:
        checks.positive(hidden=self.hidden, batch=self.batch, epochs=self.epochs)
        checks.not_negative(lr=self.lr)

    def first_model(self, x: Tensor, outputs: int, *address: int | str) -> Params:
        """Draw a perceptron with `outputs` outputs for rows like x (n, ...)."""
        sizes = (math.prod(x.shape[1:]), *self.hidden, outputs)
        return Params.of(perceptron.first_weights(sizes, random.torch_generator(*address)))

    def train(self, model: Params, n: int, loss: BatchLoss, *order: int | str) -> Params:
        """Change a model in place by steps on a loss, and return it.

        Args:
            model: the parameters.
            n: number of rows.
            loss: loss of a batch from the parameters and the positions of its rows.
            *order: address of the order of the rows; the epoch follows.
        """
        memory, steps = self.optimiser.state(model), 0
        for epoch in range(self.epochs):
            for rows in torch.from_numpy(random.permutation(n, *order, epoch)).split(self.batch):
                weights = {name: tensor.detach().requires_grad_() for name, tensor in model.items()}
                gradients = torch.autograd.grad(loss(weights, rows), list(weights.values()))
                self.optimiser.step(model, Params.of(dict(zip(weights, gradients))), memory, self.lr, steps)
                steps += 1
        return model

    def fit(self, x: Tensor, values: Tensor, *address: int | str) -> Params:
        """Return a perceptron whose outputs are near `values` (n, K) for x (n, ...), by squared error.

        Args:
            x: inputs.
            values: wanted outputs.
            *address: address of the first weights and of the order of the rows.
        """

        def loss(weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
            return (perceptron.outputs(weights, x[rows]) - values[rows]).square().mean()

        model = self.first_model(x, values.shape[1], *address, "weights")
        with torch.enable_grad():
            return self.train(model, len(x), loss, *address, "rows")
