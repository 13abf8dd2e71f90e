"""FOT's client: plain local training; after the last round of a task, statistics of the inputs of its layers.

    work train:  FedAvg's;  in the last round of a task the trained model is carried to
    work gpse:  per protected layer  R = (I - U U^T) X,   send  R G (d, m)  or  R R^T (upper triangle),  and two numbers

X (d, n) are the inputs of the layer over the client's training data, U the received basis (none in the first task), G
(n, m) Gaussian from the client's own stream, which no other party knows.  The two numbers give the residual ratio
over all clients (`fl/tensors/input_statistics.py`).

Bakman, Yaldiz, Ezzeldin, Avestimehr 2024 (ICLR), arXiv:2309.01289.  The model is in evaluation mode, and X are the
layers' true inputs.  The strategy chooses the layers and the statistic (`strategies/fot.py`); a client without rows
sends zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fl import (
    ClientContext,
    LocalTraining,
    Params,
    Reply,
    TrainingResult,
    Tree,
    Update,
    input_statistics,
    register,
    subspace,
)

BLOCK = 128  # samples whose inputs are held at once


@register("client", "fot")
@dataclass(frozen=True, kw_only=True)
class FOT(LocalTraining):
    """Local training, and statistics of layer inputs at the end of a task."""

    sends: ClassVar[tuple[str, ...]] = ("model", "sketch")

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        if name == "gpse":  # forward passes only
            return np.zeros_like(sizes), np.zeros_like(sizes)
        return super().workload(sizes, round_, rounds, name)

    def carry(self, end: TrainingResult) -> Tree:
        return end.received["model"] + end.delta if end.config.get("carry") else None

    def answer(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        model = ctx.received["model"] if carry is None else carry
        return Reply(Update({"sketch": layer_statistics(ctx, model)}, len(ctx.train)))


def layer_statistics(ctx: ClientContext, model: Params) -> Mapping[str, Any]:
    """Return weight -> {"y": (d, m) or (d (d + 1) / 2,), "norms": (2,)}, over the client's training data under
    `model`."""
    sizes, statistic, ratio = (
        ctx.config["sizes"],
        input_statistics.statistic_of(ctx.config["factor"]),
        input_statistics.RATIOS[ctx.config["ratio"]],
    )
    basis: Mapping[str, Tensor] = ctx.received.get("basis", {})
    ys = {name: statistic.zeros(d) for name, d in sizes.items()}
    squares = {name: torch.zeros(2, dtype=torch.float64) for name in sizes}
    draw = {name: ctx.generator(f"gpse/{name}") for name in sizes}
    n, net = len(ctx.train), ctx.net(model)
    assert isinstance(net, nn.Module)
    batches = (ctx.train.take(slice(a, a + BLOCK))["x"] for a in range(0, n, BLOCK))
    for name, x in subspace.inputs(net, list(sizes), batches):
        u = basis.get(name)
        statistic.add(ys[name], x, u, draw[name])
        squares[name] += torch.stack([subspace.residual(x, u).square().sum(), x.square().sum()]).double()
    return {name: {"y": statistic.message(y), "norms": ratio.terms(squares[name], n).float()} for name, y in ys.items()}
