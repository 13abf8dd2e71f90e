"""Local training of many clients at once, from the same client definition as the loop.

Parameters are stacked (C, P). Clients are sorted by their number of steps, so that those still training are a prefix that
shrinks; in each step the batches of the active clients are one array (A, B, ...), short ones padded with samples of weight
zero. Gradients come from a backend:

    kernels.LinearStack   explicit forward and backward of linear layers by batched matrix products
    flat.Flat             one pass of the module over all samples, with each client's own tensors
    Vmap                  torch.func.vmap over grad of the objective, for any module

or a backend takes whole phases, of clients in the order they come: compiled.Compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fl.data.augment import Augment, augmented
from fl.execution.training.loop import GRADIENT_BATCH, descends_plainly, overrides
from fl.execution.training.steps import workspace
from fl.execution.workers.process import pooled_buffer
from fl.method.client import LocalTraining, Phase, StepContext, TrainingInputs, TrainingResult, gathered
from fl.method.messages import Update
from fl.models.binding import Initial, bind
from fl.models.nn import DropoutMasks
from fl.tasks.task import Task
from fl.tensors import random
from fl.tensors.params import NOTHING, Params, clipped, zeros_like
from fl.tensors.trees import Tree, leaves, replace_leaves, row, stack
from fl.tracking.profile import timed

BLOCK = 16  # steps whose batches are laid out at once


@dataclass(frozen=True)
class Chunk:
    """C clients that train together. `rows[starts[c] : starts[c] + sizes[c]]` are client c's training rows."""

    clients: np.ndarray  # int64 (C,)
    seed: int
    round: int
    rounds: int
    participation: int
    received: Mapping[str, Tree]
    config: Mapping[str, Any]
    states: Sequence[Tree]  # C trees, `None` for a client that has none yet
    arrays: Mapping[str, Tensor]
    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    initial: Initial
    module: torch.nn.Module
    task: Task
    augment: tuple[Augment, ...] = ()
    known: tuple[np.ndarray, Tree] | None = None  # in place of `states`: (C,) bool, and the states of those, stacked

    def first(self) -> Tensor:
        """(1, ...): an input."""
        return self.arrays["x"][torch.as_tensor(self.rows[self.starts[:1]])]


class Gradients(Protocol):
    """A backend: gradients of A clients at once."""

    def __call__(
        self, params: Params, batch: Mapping[str, Tensor], weights: Tensor, masks, at: StepContext, grad: Params
    ) -> Tensor:
        """params, grad: batched (A,); batch: name -> (A, B, ...); weights (A, B): the sample weights of each client's mean.
        Writes `grad`, returns the losses (A, B)."""

    # Optional. `hold(theta)`, `descend(batch, weights, masks, lr)` and `release(theta)`: plain gradient steps in place;
    # `takes_whole(algorithm, chunk, phases)` and `whole(chunk, phase, start, theta, change, factors)`: all steps of all clients, see
    # `Compiled.whole`


def train(algorithm: LocalTraining, chunk: Chunk, backend: type, factors: Tensor | None = None) -> tuple[Update, Tree]:
    """All phases of C clients' local training: (stacked update, stacked states or None). With `factors` (C,) a backend that can gives
    the sum of updates times them in place of the updates: the group "model" then has no axis."""
    sizes, sorted_ = chunk.sizes, chunk
    given = _given(algorithm, chunk)
    phases = algorithm.phases_of(given, chunk.round, chunk.rounds)
    begun = algorithm.start(given)  # of all clients, or of each
    sorted_given, begun_sorted = given, begun
    finished = overrides(algorithm, "finish")
    whole = hasattr(backend, "whole") and backend.takes_whole(algorithm, chunk, phases)
    moved = not whole and bool((sizes[1:] > sizes[:-1]).any())
    if moved:
        by_length = np.argsort(-sizes, kind="stable")  # more samples, never fewer steps
        sorted_ = replace(chunk, **{n: getattr(chunk, n)[by_length] for n in ("clients", "starts", "sizes")})
        there = _tensor(by_length, begun)
        sorted_given, begun_sorted = replace(given, state=row(given.state, there)), _rows(begun, there)
    summed = whole and not finished and factors is not None
    local = (
        Params(begun.layout, (pooled_buffer(begun.layout.lengths[0]),)) if summed else begun.layout.empty(len(sizes))
    )
    if whole:
        (phase,) = phases
        steps, loss, seen = backend.whole(chunk, phase, begun, local, not finished, factors if summed else None)
        if finished:
            at, lr_sum = StepContext(**vars(given), phase=phase, start=begun), phase.lr_sum(steps)
    else:
        local.copy_(begun_sorted)
        loss, seen = torch.zeros(len(sizes), dtype=torch.float64), np.zeros(len(sizes), np.int64)
        steps, lr_sum = np.zeros(len(sizes), np.int64), np.zeros(len(sizes))
        for index, phase in enumerate(phases):
            theta = local.select(phase.trains)
            start = begun.select(phase.trains) if index == 0 and not begun.batch else theta.clone()
            at = StepContext(**vars(sorted_given), phase=phase, start=start)
            taken = phase.num_steps(sorted_.sizes)
            if taken.any():
                _run_phase(algorithm, sorted_, phase, index, local, theta, at, backend, taken, loss, seen)
            if theta is not local:
                local.copy_(theta, names=theta)
            steps += taken
            lr_sum += phase.lr_sum(taken)

    if moved:
        order = np.argsort(by_length)
        back = _tensor(order, begun)
        local, loss = local.row(back), loss[back]
        steps, lr_sum, seen = steps[order], lr_sum[order], seen[order]
        at = replace(at, state=given.state, start=_rows(at.start, back))

    def full_gradient(params: Params) -> Params:
        return _mean_gradient(algorithm, chunk, params, at, backend)

    # a tensor of its own: `loss` lies among large ones, and kept for a round it would keep their places from being filled again
    n, metrics = _tensor(sizes, begun), {"loss": loss / _tensor(np.maximum(seen, 1), begun)}
    if not finished:  # the default finish, without a copy
        return Update({"model": local if whole else local.sub_(begun)}, n, metrics, owned=True), None
    end = TrainingResult(
        **vars(given),
        start=begun,
        params=local,
        steps=_tensor(steps, begun),
        lr_sum=_tensor(lr_sum, begun),
        num_examples=n,
        full_gradient=full_gradient,
    )
    groups, state = algorithm.finish(end)
    return Update(groups, n, metrics), state


def _given(algorithm: LocalTraining, chunk: Chunk) -> TrainingInputs:
    given = TrainingInputs(chunk.received, None, chunk.config, chunk.initial)
    first = algorithm.first_state(given)
    if chunk.known is not None:
        there, known = chunk.known
        if there.all():
            return replace(given, state=known)
        return given if first is None else replace(given, state=_with_first(first, torch.as_tensor(there), known))
    states = [first if s is None else s for s in chunk.states]
    return given if any(s is None for s in states) else replace(given, state=stack(states))


def _with_first(first: Tree, there: Tensor, known: Tree) -> Tree:
    """States of all: `known` of those who are `there`, `first` of the others."""
    of_all = replace_leaves(stack([first]), [leaf.expand(len(there), *leaf.shape).clone() for leaf in leaves(first)])
    for all_, some in zip(leaves(of_all), leaves(known)):
        all_[there] = some
    return of_all


def _run_phase(algorithm, chunk: Chunk, phase, index, local, theta, at, backend, taken, loss, seen) -> None:
    """Trains theta (C,) in place by `taken` (C,) steps; adds to loss (C,) and seen (C,)."""
    gradients = backend(algorithm, chunk, local, theta, index)
    hooked = overrides(algorithm, "gradient")
    descend = getattr(gradients, "descend", None) if descends_plainly(algorithm, phase) else None
    if descend:
        gradients.hold(theta)
    grad, memory = workspace(theta) if not descend else theta, phase.optimiser.state(theta)
    active, laid_out, batch_of = 0, timed("data", "batches", _block), timed("data", "batch", _batch)
    for first in range(0, int(taken.max()), BLOCK):
        block = laid_out(chunk, phase, index, taken, first, theta.device)
        record = torch.zeros(block.weights.shape)
        steps = zip(block.active, *map(block.each, (block.rows, block.weights, record)))
        for i, (count, rows, weights, losses) in enumerate(steps):
            if count != active and not descend:
                those = slice(0, count)
                params, g, m = theta.row(those), grad.row(those), row(memory, those)
                here = replace(at, state=row(at.state, those), start=_rows(at.start, those))
            active = count
            batch = batch_of(chunk, rows, index, first + i)
            masks = gradients.masks(block.lengths[i, :active])
            if descend:
                losses.copy_(descend(batch, weights, masks, phase.rate(first + i)))
                continue
            losses.copy_(gradients(params, batch, weights, masks, here, g))
            step = algorithm.gradient(g, params, here) if hooked else g
            if phase.clip is not None:
                step = clipped(step, phase.clip)
            phase.optimiser.step(params, step, m, phase.rate(first + i), first + i)
        loss += block.without_pads(record).sum((0, 2), dtype=torch.float64)
        seen += block.lengths.sum(0)
    if descend:
        gradients.release(theta)


def _tensor(array: np.ndarray, there: Params) -> Tensor:
    """As a tensor, where `there` is. (Half a microsecond; `torch.as_tensor`, which would know the default device, takes ten.)"""
    return torch.from_numpy(array).to(there.device)


def _rows(start: Params, clients: slice | Tensor) -> Params:
    return start.row(clients) if start.batch else start


def _batch(chunk: Chunk, rows: Tensor, index: int, step: int) -> dict[str, Tensor]:
    """What the first A clients train on in a step, their samples at `rows` (A, B)."""
    batch = _gather(chunk.arrays, rows)
    if chunk.augment:
        batch["x"] = _augmented(chunk, batch["x"], index, step)
    return batch


def _gather(arrays: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The samples at `rows` (A, B), each array (A, B, ...)."""
    taken = gathered(arrays, rows.reshape(-1))
    return {name: array.view(*rows.shape, *array.shape[1:]) for name, array in taken.items()}


def _augmented(chunk: Chunk, x: Tensor, index: int, step: int) -> Tensor:
    """x (A, B, ...): the batches of the first A clients at a step."""
    clients, columns = chunk.clients[: x.shape[0], None], np.arange(x.shape[1])
    address = (chunk.seed, clients, chunk.participation, index, step, columns)
    return augmented(chunk.augment, x.flatten(0, 1), *address).view_as(x)


@dataclass(frozen=True)
class _Block:
    """What T consecutive steps of C clients train on. In step t the first `active[t]` clients take part, in batches of at
    most `widths[t]`."""

    active: list[int]
    widths: list[int]
    rows: Tensor  # (T, C, B) of the dataset; a pad repeats the client's first sample, with weight zero
    lengths: np.ndarray  # (T, C): true batch lengths, 0 for who is done
    weights: Tensor  # (T, C, B): 1 / length where the sample is real, else 0
    padded: bool  # whether any is not

    def each(self, of: Tensor) -> list[Tensor]:
        """Of `of` (T, C, B) each step's part (A, B)."""
        whole = of.shape[1:]
        return [step if (a, b) == whole else step[:a, :b] for step, a, b in zip(of.unbind(), self.active, self.widths)]

    def without_pads(self, of: Tensor) -> Tensor:
        """`of` (T, C, B), zero where there is no sample."""
        return torch.where(self.weights > 0, of, 0.0) if self.padded else of


def _block(chunk: Chunk, phase: Phase, index: int, taken: np.ndarray, first: int, device: torch.device) -> _Block:
    """Steps first, first + 1, ... of a phase, at most `BLOCK`: all at once, as arrays cost by the call."""
    steps = np.arange(first, min(first + BLOCK, int(taken.max())))[:, None]
    sizes = chunk.sizes
    size = np.maximum(sizes, 1) if phase.batch == "full" else np.full_like(sizes, phase.batch)
    epoch, k = np.divmod(steps, np.maximum(-(-sizes // size), 1))
    runs = steps < taken
    lengths = np.where(runs, np.minimum(size, sizes - k * size), 0)
    shuffles = runs & ((k == 0) | (steps == first))  # where a client's order is drawn: again if the epoch began before
    t, c = np.nonzero(shuffles.T)[::-1]
    orders = random.permutations(
        sizes[c], chunk.seed, chunk.clients[c], chunk.participation, "shuffle", index, epoch[t, c]
    )
    which = np.maximum(np.cumsum(shuffles.T).reshape(shuffles.T.shape).T - 1, 0)  # whose order is whose
    columns = np.arange(int(lengths.max()))
    real = columns < lengths[:, :, None]
    columns = np.where(real, (k * size)[:, :, None] + columns, 0)
    positions = (runs * chunk.starts)[:, :, None] + orders.take(which[:, :, None] * orders.shape[1] + columns)
    return _Block(
        active=runs.sum(1).tolist(),
        widths=lengths.max(1).tolist(),
        rows=torch.from_numpy(chunk.rows.take(positions)).to(device),
        lengths=lengths,
        weights=torch.from_numpy(real * (1 / np.maximum(lengths, 1)[:, :, None]).astype(np.float32)).to(device),
        padded=not real.all(),
    )


def _mean_gradient(algorithm, chunk: Chunk, params: Params, at: StepContext, backend) -> Params:
    """The mean gradient over each client's training data, batched (C,), without noise."""
    params = params if params.batch else params.layout.empty(len(chunk.sizes)).copy_(params)
    gradients, total, part = backend(algorithm, chunk, params, params, None), zeros_like(params), zeros_like(params)
    first = np.minimum(chunk.starts, len(chunk.rows) - 1)  # an empty client may start past the end
    for a in range(0, int(chunk.sizes.max()), GRADIENT_BATCH):
        width = min(GRADIENT_BATCH, int(chunk.sizes.max()) - a)
        columns = a + np.arange(width)
        inside = columns < chunk.sizes[:, None]
        weights = torch.as_tensor((inside / np.maximum(chunk.sizes, 1)[:, None]).astype(np.float32))
        positions = first[:, None] + np.where(inside, columns, 0)
        gradients(params, _gather(chunk.arrays, torch.as_tensor(chunk.rows[positions])), weights, [], at, part)
        total.add_(part)
    return total


class Masks:
    """The Dropout masks of a chunk in one phase: a generator per client, the layers' shapes learnt once."""

    def __init__(self, chunk: Chunk, index: int | None):
        self.noise, self.sources = DropoutMasks(chunk.module, chunk.first), []
        if index is not None and self.noise.layers:
            address = (chunk.participation, f"dropout/{index}")
            self.sources = [random.torch_generator(chunk.seed, int(c), *address) for c in chunk.clients]

    def __call__(self, lengths: np.ndarray) -> list[Tensor]:
        return self.noise.draw(self.sources[: len(lengths)], lengths.tolist()) if self.sources else []


class Vmap:
    """Gradients of any module and objective through torch.func; parameters that are not trained are bound once each."""

    def __init__(self, algorithm: LocalTraining, chunk: Chunk, local: Params, theta: Params, index: int | None):
        self.algorithm, self.module, self.task = algorithm, chunk.module.train(index is not None), chunk.task
        self.frozen = {name: local[name] for name in local if name not in theta}
        bind(chunk.module, NOTHING, chunk.initial)
        self.masks = Masks(chunk, index)

    def __call__(self, params, batch, weights, masks, at, grad):
        own = (at.state, at.start if at.start.batch else None)  # what differs from client to client

        def objective(tensors, frozen, batch, weights, masks, own_leaves):
            self.masks.noise.set(masks)

            def net(x):
                return torch.func.functional_call(self.module, {**frozen, **tensors}, (x,))

            state, start = replace_leaves(own, own_leaves)
            here = replace(at, state=state, start=at.start if start is None else start)
            losses = self.algorithm.objective(net, batch, here, self.task)
            return (losses * weights).sum(), losses.detach()

        gradient = torch.func.vmap(torch.func.grad(objective, has_aux=True))
        frozen = {name: tensor[: weights.shape[0]] for name, tensor in self.frozen.items()}
        grads, losses = gradient({n: params[n] for n in params}, frozen, batch, weights, masks, leaves(own))
        self.masks.noise.set([None] * len(masks))  # they were vmap's own tensors, which nothing outside may meet
        for name, g in grads.items():
            grad[name].copy_(g)
        return losses
