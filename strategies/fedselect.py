"""FedSelect: each client keeps some entries of the model for itself; the others are averaged over who shares them.

    w_j <- w_j + sum_i (1 - k_ij) D_ij / sum_i (1 - k_ij);    an entry that no client shares stays

k_i is the mask of client i's own entries, D_i its change; the mean is uniform.  Tamirisa, Xie, Bao, Zhou, Arel,
Shamsian 2024, arXiv:2404.02478.  `clients/fedselect.py` has the training and the growth of masks.
Traffic per client and round, d entries, |k_i| of them own: d - |k_i| values down (both sides know the mask); up
d - |k_i| values and their positions, 4 (d - |k_i|) + ceil(min((d - |k_i|) ceil(log2 d), d) / 8) bytes, and when the
mask grows by a entries, their positions once, ceil(min(a ceil(log2 d), d) / 8) bytes.  `uplink_values_bytes` counts the
values alone, as the paper does.  clients/* measures the clients' own models, eval/* the server's w.
Differs from the paper: clients with the same mask size may have sent different entries, so each entry has a mean of its
own; masks grow from the first rounds on, not after the last aggregation.
Equals FedAvg: client limit=0: FedAvg with uniform weights, to 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl import (
    Broadcast,
    FedAvgEquivalent,
    Meta,
    Metrics,
    Params,
    Reduction,
    ServerContext,
    Sparse,
    Strategy,
    Tree,
    register,
    unpack_mask,
)


def shared_positions(d: int, client: int, state: Tree) -> Tensor:
    """Return the positions of the entries that a client shares, from its state; all d of a new client."""
    return torch.arange(d) if state is None else (~unpack_mask(state["own"], d)).nonzero()[:, 0]


@dataclass(frozen=True)
class Overlap(Reduction):
    """For each entry the mean of the updates that have it, and the number of these updates: (mean (d,), count (d,)).

    An entry that no update has gets the mean 0. Updates are `Sparse`, or whole `Params`.

    >>> rule = Overlap()
    >>> one = rule.lift(Sparse(torch.tensor([1, 2]), torch.tensor([8.0, 1.0]), size=4), Meta(client=0, num_examples=1))
    >>> two = rule.lift(Sparse(torch.tensor([0, 1]), torch.tensor([4.0, 4.0]), size=4), Meta(client=1, num_examples=3))
    >>> rule.finish(rule.merge(one, two))
    (tensor([4., 6., 1., 0.]), tensor([1, 2, 1, 0], dtype=torch.int32))
    """

    linear: ClassVar[bool] = True

    def lift(self, value: Sparse | Params, meta: Meta) -> tuple[Tensor, Tensor]:
        if isinstance(value, Params):
            change = value.compact().clone()
            return change, torch.ones(len(change), dtype=torch.int32)
        has = torch.zeros(value.size, dtype=torch.int32)
        has[value.positions] = 1
        return value.dense(), has

    def merge(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return a[0].add_(b[0]), a[1].add_(b[1])

    def finish(self, acc: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        total, count = acc
        return total / count.clamp(min=1), count


@dataclass(frozen=True)
class Unused(Reduction):
    """Updates that the server's step does not need."""

    def lift(self, value: Tree, meta: Meta) -> int:
        return 0

    def merge(self, a: int, b: int) -> int:
        return 0


@register("strategy", "fedselect")
@dataclass(frozen=True, kw_only=True)
class FedSelect(Strategy):
    """Average each entry of the model over the clients that share it."""

    client: ClassVar[str] = "fedselect"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        client={"limit": 0.0}, fedavg={"weights": "uniform"}, bits=False
    )
    example_config: ClassVar[dict[str, Any]] = {"client.every": 1}  # masks grow within three rounds

    def broadcast(self, state: Params, ctx: ServerContext) -> Broadcast:
        select = {"part": ("model", partial(shared_positions, state.numel))}
        return Broadcast(shared={"model": state}, select=select, hidden=("model",))

    def reduction(self, state: Params, ctx: ServerContext) -> dict[str, Reduction]:
        return {"model": Overlap(), "grown": Unused()}

    def step(self, state: Params, reduced: dict[str, Any], ctx: ServerContext) -> tuple[Params, Metrics]:
        mean, count = reduced["model"]
        values = {"uplink_values_bytes": int(count.sum()) * mean.itemsize}
        return state + Params.expand(state.layout, mean), values
