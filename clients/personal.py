"""Local training whose steps need more than one gradient: the loop that pFedMe, APFL, FedROD and Per-FedAvg write for themselves.

    steps = Steps(algorithm, ctx)
    for batch in steps.batches():
        gradient, losses = steps.gradient(params, batch)
        memory.descend(params, gradient)            # memory = steps.memory(params)

Batches, shuffles and Dropout's noise have the addresses of `LocalTraining`'s one phase, so that what coincides has equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fl.execution.training import loop
from fl.method.client import ClientContext, LocalTraining, Phase
from fl.models.binding import bind
from fl.models.nn import DropoutMasks
from fl.tasks.task import Batch
from fl.tensors.params import Params, zeros_like


@dataclass(frozen=True, kw_only=True)
class Personal(LocalTraining):
    """Base of clients that train all of the model in one phase of their own."""

    def __post_init__(self):
        super().__post_init__()
        if self.trains is not None:
            raise ValueError(
                f"trains: {self.trains} is not for {type(self).__name__}; keep tensors still with model.freeze"
            )


class Steps:
    """One client's mini-batches, gradients at any point, and optimiser steps; `loss` is the mean over the samples noted."""

    def __init__(self, algorithm: LocalTraining, ctx: ClientContext):
        self.ctx, self.phase = ctx, algorithm.phases(ctx.round, ctx.rounds)[0]
        self.total, self.seen = torch.zeros((), dtype=torch.float64), 0
        noise = DropoutMasks(ctx.module, ctx.train.take(slice(0, 1))["x"]) if len(ctx.train) else None
        self.noise = noise if noise and noise.layers else None
        self.source = ctx.generator("dropout/0")

    def batches(self, index: int = 0) -> Iterator[Batch]:
        """The phase's mini-batches; each index is a shuffle of its own, 0 is FedAvg's."""
        return loop.mini_batches(self.ctx, self.phase, index)

    def gradient(
        self, params: Params, batch: Batch, loss: Callable[[Tensor, Batch], Tensor] | None = None
    ) -> tuple[Params, Tensor]:
        """(gradient of the mean loss at `params`, losses (B,)); `loss` of (outputs, batch), by default the task's."""
        ctx, loss = self.ctx, loss or self.ctx.task.loss
        bind(ctx.module, params, ctx.initial, params)
        ctx.module.train()
        if self.noise:
            self.noise.set([mask[0] for mask in self.noise.draw([self.source], [len(batch["x"])])])
        leaves = {name: p for name, p in ctx.module.named_parameters() if p.requires_grad}
        losses = loss(ctx.module(batch["x"]), batch)
        grads, packed = torch.autograd.grad(losses.mean(), list(leaves.values())), zeros_like(params)
        for name, grad in zip(leaves, grads):
            packed[name].copy_(grad)
        return packed, losses.detach()

    def note(self, losses: Tensor) -> None:
        self.total += losses.sum()
        self.seen += len(losses)

    @property
    def loss(self) -> float:
        return float(self.total) / max(self.seen, 1)

    def memory(self, params: Params) -> Memory:
        return Memory(self.phase, self.phase.optimiser.state(params))


@dataclass
class Memory:
    """What an optimiser remembers of one set of parameters."""

    phase: Phase
    state: dict
    t: int = 0

    def descend(self, params: Params, gradient: Params) -> None:
        """One step of the phase's optimiser, in place."""
        step = gradient if self.phase.clip is None else loop.clipped(gradient, self.phase.clip)
        self.phase.optimiser.step(params, step, self.state, self.phase.rate(self.t), self.t)
        self.t += 1
