"""The local steps of one client: batches, Dropout masks, gradients and optimiser steps, for every client algorithm.

    steps = LocalSteps(algorithm, ctx)
    descent = Descent(steps.phase, params)
    for batch in steps:
        descent.step(steps.gradient(params))

A method may compute several gradients on one batch, at any parameters. The masks of the Dropout layers are drawn once
for each batch, and all gradients on that batch use them. `index` addresses the shuffles, augmentations and masks within
the round. FedAvg uses index 0, so a method with FedAvg's steps has FedAvg's bits. A method that draws more batches uses
other indices for them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.data.views import Batch
from fl.execution.training.client_batches import mini_batches
from fl.execution.training.graph import Compute, recorded
from fl.execution.training.objective import losses_of
from fl.execution.training.one_client import OneClient
from fl.method.context import ClientContext
from fl.method.local_training import LocalTraining
from fl.method.phase import Phase
from fl.method.training_values import StepContext
from fl.models.binding import bind
from fl.models.dropout import DropoutDraws, DropoutMasks
from fl.models.structure import structure
from fl.tensors import random
from fl.tensors.generators import seed_generators
from fl.tensors.params import Layout, Params, clipped, zeros_like


class LocalSteps:
    """The local steps of one client in one phase. Iterate over them to get the batch of each step.

    Args:
        algorithm: defines the objective.
        ctx: context of the client.
        phase: optimiser, learning rate, batch size and budget. Default: the algorithm's first phase.
        index: address of the random draws within the round: a number, or a name if there are `batches`. FedAvg uses 0.
        at: context that the objective is called with. Default: the algorithm's inputs and start; the hook `prepare`
            makes the inputs, so it has to give a context.
        limit: maximum number of steps. Default: `ctx.limit`.
        batches: batches to use in place of the phase's.
        training: True puts the module in training mode; False computes gradients without Dropout.

    Attributes:
        algorithm: defines the objective.
        ctx: context of the client.
        phase: optimiser, learning rate, batch size and budget.
        at: context that the objective is called with.
        machine_code: gives the gradients of `gradient` where machine code can compute them.
        batch: the batch of the current step.
        masks: Dropout masks of the current batch, which CUDA graphs are given.
        names: names of the bound parameters that get gradients; set by `bind`.
        views: the bound tensors by name; set by `bind`.
        last: sum of the losses of the batch at the last gradient, a tensor ().
        loss_sum: sum of the losses of all samples at the first gradient of each batch, a float64 tensor ().
        samples: number of samples so far.
        taken: number of steps so far.
    """

    def __init__(
        self,
        algorithm: LocalTraining,
        ctx: ClientContext,
        *,
        phase: Phase | None = None,
        index: int | str = 0,
        at: StepContext | None = None,
        limit: int | None = None,
        batches: Iterable[Batch] | None = None,
        training: bool = True,
    ):
        self.algorithm, self.ctx, self.training = algorithm, ctx, training
        self.phase = algorithm.phases(ctx.round, ctx.rounds)[0] if phase is None else phase
        if at is None:
            inputs = algorithm.inputs(ctx)
            start, facts = algorithm.start(inputs), ctx.module_facts
            at = StepContext(**vars(inputs), phase=self.phase, start=start, module_facts=facts)
        self.at = at
        self.limit = ctx.limit if limit is None else limit
        if batches is None and not isinstance(index, int):
            raise ValueError(f"index: {index!r} is a name, and the phase's batches have numbers; give batches, too")
        self.batches = mini_batches(ctx, self.phase, int(index)) if batches is None else batches
        self.structure = structure(ctx.module)
        self.index = index
        repeats, micro = not ctx.module_facts.dropout_once, bool(ctx.micro_batch)
        address = (ctx.seed, ctx.client, ctx.participation, f"dropout/{index}")
        self.draws = DropoutDraws(self.structure.dropout, address, repeats, micro)
        self.drawn_before: DropoutMasks | None = None  # masks that CUDA graphs are given
        if training and self.draws.layers and len(ctx.train) and ctx.graphs:
            self.drawn_before = DropoutMasks(ctx.module, lambda: ctx.train.take(slice(0, 1))["x"])
        self.loss_sum, self.samples, self.taken = torch.zeros((), dtype=torch.float64), 0, 0
        dropped = training and bool(self.draws.layers)
        self.machine_code = OneClient.of(algorithm, ctx) if ctx.machine_code and not dropped else None
        self.batch: Batch = {}
        self.masks: list[Tensor] = []

    def __iter__(self) -> Iterator[Batch]:
        for self.batch in islice(self.batches, self.limit):
            count = len(self.batch["x"])
            if self.drawn_before:
                word = np.atleast_1d(self.draws.word)
                self.masks = [mask[0] for mask in self.drawn_before.draw(word, self.taken, count)]
            else:
                self.draws.begin_batch(self.taken)
            self.first, self.samples, self.taken = True, self.samples + count, self.taken + 1
            yield self.batch

    def bind(self, trained: Params, params: Params | None = None) -> None:
        """Make the module's tensors views of `trained`. Tensors missing from `trained` are taken from `params`."""
        ctx = self.ctx
        descending: Mapping[str, Tensor] = trained
        averaged = self.structure.averaged
        if any(name in trained for name in averaged):  # the module updates them itself, without gradients
            descending = {name: trained[name] for name in trained if name not in averaged}
        self.views = bind(ctx.module, trained if params is None else params, ctx.initial, descending)
        self.structure.set_training(ctx.module, self.training)
        own = dict(self.structure.trained)
        self.names = list(own)
        dropout = self.drawn_before or self.draws
        compute = partial(_gradients, self.algorithm, ctx, dropout, list(own.values()), self.at)
        self.compute: Compute = recorded(ctx.module, compute) if ctx.graphs else compute

    def bound_gradient(self) -> tuple[Tensor, ...]:
        """Return the gradient of the batch's mean loss at the bound parameters, one tensor for each of `names`."""
        if self.ctx.module_facts.draws:  # all gradients on a batch see the same draws
            address = (self.ctx.client, self.ctx.participation, f"draws/{self.index}", self.taken)
            seed_generators(int(random.hash64(self.ctx.seed, *address)), self.batch["x"].is_cuda)
        own_masks = self.draws.layers and self.training and not self.drawn_before
        with self.draws.gradient() if own_masks else nullcontext():
            loss, gradient = self.compute(self.batch, self.masks)
        self._count(loss)
        return gradient

    def _count(self, loss: Tensor) -> None:
        """Enter the sum of the losses at a gradient."""
        self.last = loss
        if self.first:
            self.loss_sum += loss
            self.first = False

    def gradient(self, params: Params, others: Params | None = None) -> Params:
        """Return the gradient of the batch's mean loss at `params`, of their shape.

        Tensors missing from them are taken from `others`; by default they keep their initial values.
        """
        computed = self.machine_code and self.machine_code.gradient(params, others, self.batch)
        if computed:
            self._count(computed[1])
            return computed[0]
        self.bind(params, others)
        packed = zeros_like(params)
        torch._foreach_copy_([packed[name] for name in self.names], self.bound_gradient())
        return packed

    @property
    def batch_loss(self) -> Tensor:
        """Mean loss of the current batch at the last gradient, a tensor ()."""
        return self.last / len(self.batch["x"])

    @property
    def loss(self) -> float:
        """Mean loss over the samples of all steps; 0 without steps."""
        return float(self.loss_sum) / max(self.samples, 1)


class Descent:
    """Optimiser steps on one set of parameters, in place.

    Args:
        phase: optimiser, learning rates and bound of the gradient's norm.
        params: the parameters to change.

    Attributes:
        phase: optimiser, learning rates and bound of the gradient's norm.
        rule: the rule of a step, `Phase.rule`.
        params: the parameters.
        t: number of steps so far.
        steps_before: number of steps that `memory` remembers from earlier rounds.
        memory: what the optimiser remembers between steps, such as its velocity.
    """

    def __init__(self, phase: Phase, params: Params):
        self.phase, self.params, self.t, self.steps_before = phase, params, 0, 0
        self.rule = phase.rule
        self.memory: dict[str, Any] = self.rule.state(params)

    def step(self, gradient: Params) -> None:
        """Clip the gradient and take one step along it. The learning rate is that of step `t` of the phase."""
        phase = self.phase
        if phase.clip is not None:
            gradient = clipped(gradient, phase.clip)
        self.rule.step(self.params, gradient, self.memory, phase.rate(self.t), self.steps_before + self.t)
        self.t += 1


def _gradients(
    algorithm: LocalTraining,
    ctx: ClientContext,
    dropout: DropoutMasks | DropoutDraws,
    leaves: list[torch.nn.Parameter],
    at: StepContext,
    batch: Mapping[str, Tensor],
    masks: list[Tensor],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return (sum of the losses, gradient of their mean), from forward passes of `ctx.micro_batch` samples."""
    count = len(batch["x"])
    piece = ctx.micro_batch or count
    if piece >= count:
        if isinstance(dropout, DropoutMasks):
            dropout.set(masks)
        losses = losses_of(algorithm, ctx.module, batch, at, ctx.task)
        return losses.detach().sum(), gradients_of(losses.mean(), leaves)
    total, grads = torch.zeros(()), [torch.zeros_like(leaf) for leaf in leaves]
    for a in range(0, count, piece):
        if isinstance(dropout, DropoutMasks):
            dropout.set([mask[a : a + piece] for mask in masks])
        else:
            dropout.begin_micro_batch(a, count)
        part = {name: array[a : a + piece] for name, array in batch.items()}
        losses = losses_of(algorithm, ctx.module, part, at, ctx.task)
        torch._foreach_add_(grads, gradients_of(losses.sum() / count, leaves))
        total += losses.detach().sum()
    return total, tuple(grads)


def gradients_of(loss: Tensor, leaves: list[torch.nn.Parameter]) -> tuple[Tensor, ...]:
    """The gradient of a loss, dense, and zero for leaves that the loss does not depend on."""
    found = torch.autograd.grad(loss, leaves, allow_unused=True)  # materialize_grads would cost 10 microseconds
    return tuple(
        torch.zeros_like(leaf) if grad is None else grad if grad.layout == torch.strided else grad.to_dense()
        for grad, leaf in zip(found, leaves)
    )


def gradient_buffer(theta: Params, number: int = 0) -> Params:
    """Return memory for a gradient of `theta`'s shape. Steps write the tensors; padding is 0.

    Calls of one thread share the memory. `number` tells the gradients of one step apart.
    """
    buffer = _gradient_buffer(theta.layout, theta.batch, theta.device, threading.get_ident(), number)
    for flat, gaps in zip(buffer.buffers, theta.layout.gaps):
        for a, b in gaps:
            flat[..., a:b] = 0
    return buffer


@functools.lru_cache(maxsize=16)
def _gradient_buffer(layout: Layout, batch: tuple[int, ...], device: torch.device, thread: int, number: int) -> Params:
    return layout.zeros(*batch).to(device)
