"""HetLoRA: train the adapters at the rank received, with pressure on the last pairs, which go when they have shrunk.

    tail: rows (columns) floor(gamma r) .. r-1;    loss + lam sum_l ||A_l tail|| ||B_l tail||
    if sum_l ||A_l tail|| ||B_l tail|| is smaller after training than before:    rank r <- floor(gamma r), at least 1

Cho, Liu, Xu, Fahrezi, Joshi 2024, arXiv:2401.06432. `gamma` and `lam` come with the broadcast; the server sees the new rank in what it
receives. The pressure enters as its gradient, taken as zero where a norm is zero; the reported loss is without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from clients.lora import LoRA
from fl.models import adapter
from fl.registry import register


def tails(params, rank: int, kept: int) -> torch.Tensor:
    """sum_l ||A_l tail|| ||B_l tail|| of pairs kept..rank-1."""
    pairs = adapter.layers(params).values()
    return sum((params[a][kept:rank].norm() * params[b][:, kept:rank].norm() for a, b in pairs), torch.zeros(()))


def kept_rank(rank: int, gamma: float) -> int:
    return max(1, int(gamma * rank))


@register("client", "hetlora")
@dataclass(frozen=True, kw_only=True)
class HetLoRA(LoRA):
    receives: ClassVar[tuple[str, ...]] = ("model", "gamma", "lam")

    def gradient(self, grad, params, at):
        rank, pressed = self.rank(at), grad.clone()
        kept = kept_rank(rank, at.config["gamma"])
        for a, b in adapter.layers(params).values():
            first, second = params[a][kept:rank], params[b][:, kept:rank]
            sizes = first.norm(), second.norm()
            if min(sizes) > 0:
                pressed[a][kept:rank] += at.config["lam"] * sizes[1] / sizes[0] * first
                pressed[b][:, kept:rank] += at.config["lam"] * sizes[0] / sizes[1] * second
        return pressed

    def rank(self, given):
        received = given.received["model"]
        return max(len(received[a]) for a, _ in adapter.layers(received).values())

    def finish(self, end):
        sent, rank = self.sent(end.delta, end.received), self.rank(end)
        kept = kept_rank(rank, end.config["gamma"])
        if tails(end.params, rank, kept) < tails(end.start, rank, kept):
            sent["model"] = adapter.at_rank(sent["model"], kept)
        return sent, None
