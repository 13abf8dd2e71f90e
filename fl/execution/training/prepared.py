"""Preparations: fits before training, of one client by `LocalSteps`, or of a chunk by its backend.

The samples that are chosen from the n samples of a client, and their order in an epoch, are

    chosen = permutation(n, seed, client, participation, name/sample)[:count]
    order = chosen[permutation(count, seed, client, participation, name/shuffle, epoch)]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor

from fl import registry
from fl.data.views import Batch
from fl.execution.stages import during
from fl.execution.training.chunk import Chunk, PreparesTogether
from fl.execution.training.customised import overrides
from fl.execution.training.steps import LocalSteps
from fl.method.context import ClientContext
from fl.method.local_training import LocalTraining
from fl.method.loss_of_outputs import LossOfOutputs
from fl.method.preparation import Fit, Preparation, check_fit
from fl.method.training_values import StepContext, TrainingInputs
from fl.tensors import random
from fl.tensors.params import Params, elementwise
from fl.tensors.trees import Tree, named_leaves, row, tree_map
from fl.tracking.spans import span


def prepare_alone(algorithm: LocalTraining, ctx: ClientContext, inputs: TrainingInputs) -> Tree:
    """Return what the hook `prepare_together` of a method prepares for one client.

    Args:
        algorithm: has the hook.
        ctx: the client's data and what it received.
        inputs: the inputs of the training, without `prepared`.
    """

    def with_axis(leaf: Params | Tensor) -> Params | Tensor:
        return Params(leaf.layout, tuple(b[None] for b in leaf.buffers)) if isinstance(leaf, Params) else leaf[None]

    state, facts = (tree_map(with_axis, tree) for tree in (inputs.state, inputs.facts))
    found = algorithm.prepare_together(_Alone(algorithm, ctx, inputs), replace(inputs, state=state, facts=facts))
    return row(_checked(found, 1, algorithm), 0)


def preparation_of(algorithm: LocalTraining, chunk: Chunk, backend: type) -> Preparation | None:
    """Return the preparation of a chunk; None if its clients have to prepare one after another, or not at all."""
    if not overrides(algorithm, "prepare_together") or isinstance(algorithm, LossOfOutputs):
        return None
    together, alone = (registry.definer(type(algorithm), hook) for hook in ("prepare_together", "prepare"))
    if not issubclass(together, alone) or not issubclass(backend, PreparesTogether):
        return None  # a subclass has a `prepare` of its own
    return backend.preparation(chunk, algorithm.phases(chunk.round, chunk.rounds)[0])


def with_preparation(algorithm: LocalTraining, chunk: Chunk, inputs: TrainingInputs, backend: type) -> TrainingInputs:
    """Return the inputs with what clients prepare together. They do not change if clients have prepared already."""
    preparation = None if chunk.prepared is not None else preparation_of(algorithm, chunk, backend)
    if preparation is None:
        return inputs
    with span("compute", "prepare"), during("prepare"):
        found = algorithm.prepare_together(preparation, inputs)
        return replace(inputs, prepared=_checked(found, len(chunk.sizes), algorithm))


def _checked(found: Tree, clients: int, algorithm: LocalTraining) -> Tree:
    """Return what `prepare_together` returned.

    Raises:
        ValueError: a tensor lacks the axis of clients.
    """
    for name, leaf in named_leaves(found, "prepared"):
        axes = leaf.batch if isinstance(leaf, Params) else leaf.shape if isinstance(leaf, Tensor) else None
        if axes is None or axes[:1] != (clients,):
            given = type(leaf).__name__ + ("" if axes is None else f" of shape {tuple(axes)}")
            raise ValueError(
                f"client {type(algorithm).__name__}: prepare_together returned {name}, {given}, "
                f"for {clients} clients; its leaves are Params and tensors whose first axis is the clients"
            )
    return found


class _Alone:
    """The preparation of one client, see `fl.method.preparation.Preparation`."""

    def __init__(self, algorithm: LocalTraining, ctx: ClientContext, inputs: TrainingInputs):
        self.algorithm, self.ctx = algorithm, replace(ctx, limit=None)
        self.phase = algorithm.phases(ctx.round, ctx.rounds)[0]
        start, facts = inputs.received["model"], ctx.module_facts
        self.at = StepContext(**vars(inputs), phase=self.phase, start=start, module_facts=facts)
        self.sizes = np.array([len(ctx.train)], np.int64)

    def fit(self, how: Fit, name: str, counts: np.ndarray, others: Params) -> tuple[Params, np.ndarray]:
        check_fit(how, counts, self.sizes, others)
        base, direction, z = how.base.row(0), how.direction.row(0), how.start.row(0).clone()
        losses = list[float]()
        for epoch in range(int(how.epochs[0]) if counts[0] else 0):
            batches = self._samples(name, int(counts[0]), epoch)
            steps = LocalSteps(self.algorithm, self.ctx, at=self.at, index=f"{name}/{epoch}", batches=batches)
            for _ in steps:
                gradient = steps.gradient(elementwise(lambda b, d, v: v * d + b, base, direction, z), others)
                z = elementwise(lambda v, g, d: (v - g * how.rate * d).clamp(how.low, how.high), z, gradient, direction)
            losses.append(float(steps.batch_loss))
            if _settled(losses, how):
                break
        return Params(z.layout, tuple(buffer[None] for buffer in z.buffers)), np.array([len(losses)])

    def _samples(self, name: str, count: int, epoch: int) -> Iterator[Batch]:
        """Yield the samples of each batch."""
        train, address = self.ctx.train, (self.ctx.seed, self.ctx.client, self.ctx.participation)
        chosen = random.permutation(len(train), *address, f"{name}/sample")[:count]
        order = chosen[random.permutation(count, *address, f"{name}/shuffle", epoch)]
        for part in self.phase.batch_slices(count):
            yield train.take(order[part])


def _settled(losses: list[float], how: Fit) -> bool:
    """Whether the last losses hardly differ. Sums have the order of native/fits.py."""
    if len(losses) <= how.window:
        return False
    last = losses[-how.window :]
    mean = sum(last) / how.window
    return math.sqrt(sum((loss - mean) * (loss - mean) for loss in last) / how.window) < how.threshold
