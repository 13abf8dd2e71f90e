"""HetLoRA: train the adapters at the received rank, with a penalty on the last pairs; pairs that shrank are dropped.

    tail: rows (columns) floor(gamma r) .. r-1;    loss + lam sum_l ||A_l tail|| ||B_l tail||
    if sum_l ||A_l tail|| ||B_l tail|| is smaller after training than before:    rank r <- floor(gamma r), at least 1

Cho, Liu, Xu, Fahrezi, Joshi 2024, arXiv:2401.06432.  `gamma` and `lam` come with the broadcast; the server sees the
new rank in the shape of the message.  The penalty enters as its gradient, taken as zero where a norm is zero; the
reported loss is without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from fl import Params, StepContext, TrainingInputs, TrainingResult, Tree, adapter, register

from .lora import LoRA


def tails(params: Params, rank: int, kept: int) -> torch.Tensor:
    """Return sum_l ||A_l tail|| ||B_l tail|| of the pairs kept..rank-1."""
    pairs = adapter.layers(params).values()
    return sum((params[a][kept:rank].norm() * params[b][:, kept:rank].norm() for a, b in pairs), torch.zeros(()))


def kept_rank(rank: int, gamma: float) -> int:
    """Return floor(gamma rank), at least 1.

    >>> kept_rank(8, 0.5), kept_rank(1, 0.5)
    (4, 1)
    """
    return max(1, int(gamma * rank))


@register("client", "hetlora")
@dataclass(frozen=True, kw_only=True)
class HetLoRA(LoRA):
    """Local training of adapters with rank pruning."""

    receives: ClassVar[tuple[str, ...]] = ("model", "gamma", "lam")

    def gradient(self, grad: Params, params: Params, at: StepContext) -> Params:
        rank, penalised = self.rank(at), grad.clone()
        kept = kept_rank(rank, at.config["gamma"])
        for a, b in adapter.layers(params).values():
            first, second = params[a][kept:rank], params[b][:, kept:rank]
            sizes = first.norm(), second.norm()
            if min(sizes) > 0:
                penalised[a][kept:rank] += at.config["lam"] * sizes[1] / sizes[0] * first
                penalised[b][:, kept:rank] += at.config["lam"] * sizes[0] / sizes[1] * second
        return penalised

    def rank(self, inputs: TrainingInputs) -> int:
        """Return the received rank."""
        received = inputs.received["model"]
        return max(len(received[a]) for a, _ in adapter.layers(received).values())

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        sent, rank = self.sent(end.delta, end.received), self.rank(end)
        kept = kept_rank(rank, end.config["gamma"])
        if tails(end.params, rank, kept) < tails(end.start, rank, kept):
            sent["model"] = adapter.at_rank(sent["model"], kept)
        return sent, None
