"""A passive party of FedOnce: it learns a representation of its columns without labels, and sends it once.

    targets c_i (n, width): random points on the unit sphere;   z_i = f(x_i) / |f(x_i)|
    in each batch the targets are assigned to the rows again, to minimise sum_i |z_i - c_i|^2; then a step on this loss

Noise as targets: Bojanowski, Joulin 2017, arXiv:1704.05310. The assignment is exact (Hungarian method). The source of
FedOnce is in strategies/fedonce.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from fl import (
    Adam,
    ClientAlgorithm,
    ClientContext,
    Optimiser,
    Params,
    Reply,
    Tree,
    Update,
    View,
    checks,
    perceptron,
    random,
    register,
)


def assigned(z: Tensor, targets: Tensor) -> Tensor:
    """Return the order (B,) of the targets (B, width) with the least sum of squared distances to z (B, width).

    >>> assigned(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.1, 0.9], [0.8, 0.2]])).tolist()
    [1, 0]
    """
    _, order = linear_sum_assignment(torch.cdist(z.double(), targets.double()).square().numpy())
    return torch.from_numpy(order)


@register("client", "fedonce")
@dataclass(frozen=True, kw_only=True)
class FedOnceParty(ClientAlgorithm):
    """Learn a representation without labels, send it for all training rows, and keep the model for predictions.

    Args:
        hidden: hidden units of the representation model.
        optimiser: rule of a step.
        lr: learning rate, at least 0.
        batch: rows of a step, positive; also the rows among which targets are assigned.
        epochs: passes over the training rows, positive.
    """

    hidden: tuple[int, ...] = (100, 100)
    optimiser: Optimiser = Adam(weight_decay=1e-5)
    lr: float = 1e-3
    batch: int = 128
    epochs: int = 20

    sends: ClassVar[tuple[str, ...]] = ("representation",)
    receives: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for size in self.hidden:
            checks.positive(hidden=size)
        checks.positive(batch=self.batch, epochs=self.epochs)
        checks.not_negative(lr=self.lr)

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        return -(-sizes // self.batch) * self.epochs, sizes * self.epochs

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        model = self._learned(ctx) if name == "represent" else ctx.state
        view: View = getattr(ctx, ctx.config["view"])
        x = view.take()["x"]
        with torch.no_grad():
            z = normalize(perceptron.outputs(model, x))
        return Reply(Update({"representation": z}, len(x)), state=model)

    def _learned(self, ctx: ClientContext) -> Params:
        """Return the representation model, trained on the training rows."""
        x, width, address = ctx.train.take()["x"], ctx.config["width"], (ctx.seed, ctx.client)
        sizes = (int(np.prod(x.shape[1:])), *self.hidden, width)
        model = Params.of(perceptron.first_weights(sizes, random.torch_generator(*address, "fedonce")))
        targets = torch.randn((len(x), width), generator=random.torch_generator(*address, "targets"))
        targets, memory, steps = normalize(targets), self.optimiser.state(model), 0
        for epoch in range(self.epochs):
            order = torch.from_numpy(random.permutation(len(x), *address, "fedonce", epoch))
            for rows in order.split(self.batch):
                weights = {name: tensor.detach().requires_grad_() for name, tensor in model.items()}
                z = normalize(perceptron.outputs(weights, x[rows]))
                targets[rows] = targets[rows][assigned(z.detach(), targets[rows])]
                loss = (z - targets[rows]).square().sum(1).mean()
                gradients = torch.autograd.grad(loss, list(weights.values()))
                self.optimiser.step(model, Params.of(dict(zip(weights, gradients))), memory, self.lr, steps)
                steps += 1
        return model
