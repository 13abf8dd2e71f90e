"""FOT's client: plain local training, and after the last round of a task what the inputs of its layers span.

    work train:  FedAvg's;  in the last round of a task the trained model is carried to
    work gpse:   per protected layer  R = (I - U U^T) X,   send  R G (d, m)  or  R R^T (upper triangle),  and two numbers

X (d, n) are the inputs of the layer over the client's training data, U the basis received (none in the first task), G (n, m) Gaussian
from the client's own stream, which nobody else sees. The two numbers are what the residual ratio is pooled from:
n_i rho_i and n_i with rho_i = ||R|| / ||X|| (ratio norm), or ||R||^2 and ||X||^2 (ratio energy).

Bakman, Yaldiz, Ezzeldin, Avestimehr 2024 (ICLR), arXiv:2309.01289. The model is in evaluation mode, and X are the layers' true
inputs. Which layers, and how, the strategy says (`strategies/fot.py`); a client without rows sends zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fl.method.context import ClientContext, Reply
from fl.method.local_training import LocalTraining
from fl.method.messages import Update
from fl.registry import register
from fl.tensors import subspace
from fl.tensors.params import Params

BLOCK = 128  # samples whose inputs are held at once


@register("client", "fot")
@dataclass(frozen=True, kw_only=True)
class FOT(LocalTraining):
    sends: ClassVar[tuple[str, ...]] = ("model", "sketch")

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        if name == "gpse":  # forward passes alone
            return np.zeros_like(sizes), np.zeros_like(sizes)
        return super().workload(sizes, round_, rounds, name)

    def work(self, name, ctx, carry):
        if name == "gpse":
            model = ctx.received["model"] if carry is None else carry
            return Reply(Update({"sketch": principal(ctx, model)}, len(ctx.train)))
        reply = super().work(name, ctx, carry)
        if ctx.config.get("carry"):
            return replace(reply, carry=ctx.received["model"] + reply.update.groups["model"])
        return reply


def principal(ctx: ClientContext, model: Params) -> Mapping[str, Any]:
    """Name of weight -> {"y": (d, m) or (d (d + 1) / 2,), "norms": (2,)}, over the client's training data under `model`."""
    sizes, factor = ctx.config["sizes"], ctx.config["factor"]
    basis: Mapping[str, Tensor] = ctx.received.get("basis", {})
    ys = {name: torch.zeros(d, round(factor * d) if factor else d) for name, d in sizes.items()}
    squares = {name: torch.zeros(2, dtype=torch.float64) for name in sizes}
    draw = {name: ctx.generator(f"gpse/{name}") for name in sizes}
    n = len(ctx.train)
    batches = (ctx.train.take(slice(a, a + BLOCK))["x"] for a in range(0, n, BLOCK))
    for name, x in subspace.inputs(ctx.net(model), list(sizes), batches):
        u, y = basis.get(name), ys[name]
        if factor:
            y += subspace.sketch(x, u, torch.randn(x.shape[1], y.shape[1], generator=draw[name]))
        else:
            y += subspace.gram(x, u)
        squares[name] += torch.stack([subspace.residual(x, u).square().sum(), x.square().sum()]).double()
    return {
        name: {"y": y if factor else subspace.packed(y), "norms": norms(squares[name], n, ctx.config["ratio"]).float()}
        for name, y in ys.items()
    }


def norms(squares: Tensor, n: int, ratio: str) -> Tensor:
    """(2,): of (||R||^2, ||X||^2), the two terms whose sums over clients have the residual ratio as quotient."""
    if ratio == "energy":
        return squares
    rho = torch.sqrt(squares[0] / squares[1]) if squares[1] > 0 else squares.new_zeros(())
    return torch.stack([n * rho, torch.full_like(rho, n)])
