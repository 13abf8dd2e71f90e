"""PeFLL's clients: they describe their data, train the model that the server makes of it, and pass a gradient back.

    describe   v_i = mean over a batch of v(x, onehot y; eta_v)        send v_i, (l,)
    train      local steps theta_i -> theta'_i                         send theta'_i - theta_i
    backward   from the gradient of v_i that the server sends          send the gradient of eta_v

Scott, Zakerinia, Lampert 2024, arXiv:2306.05515.  `backward` uses the batch and the eta_v of `describe`, which the
client carries from one to the other; a client keeps nothing between rounds.  A client with at most `batch` samples
describes all of them. One without samples sends zeros, and the server leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fl import SGD, Batch, ClientContext, LocalTraining, Optimiser, Params, Reply, Tree, Update, register


def descriptor(module: nn.Module, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return v, the mean of the embedding network's outputs over a batch, (l,)."""
    module.eval()
    return torch.func.functional_call(module, dict(params), (batch["x"], batch["y"])).mean(0)


@register("client", "pefll")
@dataclass(frozen=True, kw_only=True)
class PeFLL(LocalTraining):
    """Descriptions of the client's data, and local training of a generated model."""

    steps: int | None = 50
    lr: float = 2e-3
    optimiser: Optimiser = field(default_factory=lambda: SGD(momentum=0.9, weight_decay=5e-5))
    clip: float | None = 50.0

    sends: ClassVar[tuple[str, ...]] = ("descriptor", "model", "embedding")
    receives: ClassVar[tuple[str, ...]] = ("embedding", "model", "gradient")
    classes_only: ClassVar[bool] = True
    example_config: ClassVar[Mapping[str, Any]] = {"client.steps": None}

    def answer(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        return self.describe(ctx) if name == "describe" else self.backward(ctx, carry)

    def describe(self, ctx: ClientContext) -> Reply:
        """Send the descriptor of a batch, and carry the batch's positions and the embedding network."""
        n, params = len(ctx.train), ctx.received["embedding"]
        rows = torch.arange(n)
        if self.batch != "full" and n > self.batch:
            rows = torch.randperm(n, generator=ctx.generator("describe"))[: self.batch]
        with torch.no_grad():
            v = descriptor(ctx.module, params, ctx.train.take(rows.numpy()))
        return Reply(Update({"descriptor": v if n else torch.zeros_like(v)}, n), carry={"rows": rows, "params": params})

    def backward(self, ctx: ClientContext, carry: Tree) -> Reply:
        """Send the gradient of the embedding network, from the received gradient of the descriptor."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in carry["params"].items()}
        v = descriptor(ctx.module, leaves, ctx.train.take(carry["rows"].numpy()))
        found = torch.autograd.grad(v, list(leaves.values()), ctx.received["gradient"])
        return Reply(Update({"embedding": Params.of(dict(zip(leaves, found)))}, len(ctx.train)))

    def workload_of_views(
        self, labelled: np.ndarray, unlabelled: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        if name == "train":
            return super().workload_of_views(labelled, unlabelled, round_, rounds, name)
        return np.zeros_like(labelled), self.extra_samples(labelled, round_, rounds, name)

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        if name != "backward":
            return np.zeros_like(sizes)
        return sizes if self.batch == "full" else np.minimum(sizes, self.batch)
