"""A passive party of FedOnce: it learns a representation of its columns without labels, and sends it once.

    targets c_i (n, width): random points on the unit sphere;   z_i = f(x_i) / |f(x_i)|
    in each batch the targets are assigned to the rows again, to minimise sum_i |z_i - c_i|^2; then a step on this loss

Noise as targets: Bojanowski, Joulin 2017, arXiv:1704.05310. The assignment is exact (Hungarian method). The source of
FedOnce is in strategies/fedonce.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from fl import (
    ClientContext,
    Params,
    Reply,
    Tree,
    Update,
    aligned,
    perceptron,
    random,
    register,
)

from .party import FittingParty


def assigned(z: Tensor, targets: Tensor) -> Tensor:
    """Return the order (B,) of the targets (B, width) with the least sum of squared distances to z (B, width).

    >>> assigned(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.1, 0.9], [0.8, 0.2]])).tolist()
    [1, 0]
    """
    _, order = linear_sum_assignment(torch.cdist(z.double(), targets.double()).square().numpy())
    return torch.from_numpy(order)


@register("client", "fedonce")
@dataclass(frozen=True, kw_only=True)
class FedOnceParty(FittingParty):
    """Learn a representation without labels, send it for all training rows, and keep the model for predictions.

    Args:
        batch: rows of a step, positive; targets are assigned among them.
        epochs: passes over the training rows, positive.
    """

    epochs: int = 20

    sends: ClassVar[tuple[str, ...]] = ("representation",)
    receives: ClassVar[tuple[str, ...]] = ()

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        model = self._learned(ctx) if name == "represent" else ctx.state
        x = aligned.all_rows(ctx)
        with torch.no_grad():
            z = normalize(perceptron.outputs(model, x))
        return Reply(Update({"representation": z}, len(x)), state=model)

    def _learned(self, ctx: ClientContext) -> Params:
        """Return the representation model, trained on the training rows."""
        x, width, address = ctx.train.take()["x"], ctx.config["width"], (ctx.seed, ctx.client)
        targets = torch.randn((len(x), width), generator=random.torch_generator(*address, "targets"))
        targets = normalize(targets)

        def loss(weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
            z = normalize(perceptron.outputs(weights, x[rows]))
            targets[rows] = targets[rows][assigned(z.detach(), targets[rows])]
            return (z - targets[rows]).square().sum(1).mean()

        return self.train(self.first_model(x, width, *address, "fedonce"), len(x), loss, *address, "fedonce")
