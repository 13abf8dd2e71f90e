"""Local training of many clients at once, from the same client definition as the loop.

Parameters are stacked (C, P). Clients are sorted by their number of steps, so that the clients that still train are a
prefix that shrinks. In each step the batches of these A clients are one array (A, B, ...); short batches are padded
with samples of weight zero. Gradients come from a backend:

    kernels.LinearStack   explicit forward and backward passes of linear layers by batched matrix products
    flat.Flat             one pass of the module over all samples, with each client's own tensors
    vmap.Vmap             torch.func.vmap over grad of the objective, for any module

The backend compiled.Compiled trains whole phases, with the clients in the order in which they come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.execution.training.all_samples import mean_gradient, mean_squares_together
from fl.execution.training.at_once import Opening, Window, train_at_once, with_combinations
from fl.execution.training.batches import BLOCK, make_batch, make_block
from fl.execution.training.chunk import (
    Asked,
    Chunk,
    Gradients,
    RunsPrograms,
    TakesSGDSteps,
    TrainsWholePhases,
    Wanted,
    WholePhase,
)
from fl.execution.training.customised import (
    changes_gradients,
    ends_plainly,
    overrides,
    penalty_of,
    takes_plain_steps,
)
from fl.execution.training.own_steps import ChunkSteps
from fl.execution.training.prepared import with_preparation
from fl.execution.training.recorded_steps import train_recorded
from fl.execution.training.references import with_reference_passes
from fl.execution.training.steps import gradient_buffer
from fl.execution.training.trainings import Trainings
from fl.execution.update_checks import check_stacked, end_hook
from fl.method.context import Reply
from fl.method.local_training import LocalTraining
from fl.method.messages import Update
from fl.method.penalty import Penalty
from fl.method.phase import Phase
from fl.method.protected import protected_by
from fl.method.training_values import StepContext, TrainingInputs, TrainingResult
from fl.tensors.combination import Unknown
from fl.tensors.gathered import Gathered, joined_rows, rows_like
from fl.tensors.params import Params, clipped
from fl.tensors.trees import Tree, leaves, named_leaves, replace_leaves, row, stack, tree_map
from fl.tracking.spans import timed_calls


@dataclass(frozen=True)
class _Trained:
    """The end of all phases; arrays are (C,), in the order of the chunk.

    start: parameters before the first step, batched (C,) or one for all clients.
    params: trained parameters.
    loss, seen: sums of the losses, float64, and numbers of samples.
    at: context of the last phase.
    kept: what the steps of the last phase keep.
    """

    start: Params
    params: Params
    loss: Tensor
    seen: np.ndarray
    steps: np.ndarray
    lr_sum: np.ndarray
    at: StepContext
    kept: Mapping[str, Tree] = field(default_factory=dict)


def train(
    algorithm: LocalTraining,
    chunk: Chunk,
    backend: type[Gradients],
    weights: Mapping[str, Tensor] | None = None,
    window: tuple[Window, slice] | None = None,
) -> Reply:
    """Train C clients in all trainings and phases; returns their replies, stacked.

    Args:
        algorithm: the client algorithm.
        chunk: the clients.
        backend: the backend.
        weights: (C,) for each group. A backend that can do so returns the sums of updates times weights: then no group
            has a client axis.
        window: clients whose hooks may be called together, and which of them are the chunk's, see at_once.py.
    """
    inputs = with_preparation(algorithm, chunk, _inputs(algorithm, chunk), backend)
    chunk = with_reference_passes(algorithm, chunk, inputs, backend)
    first = _open(algorithm, chunk, backend, inputs)
    whole = train_at_once(algorithm, chunk, backend, first, weights, window)
    if whole is not None:
        return whole
    # `_tensor` makes tensors of their own: a view of a large array would keep that array's memory in use
    n = torch.from_numpy(chunk.sizes)
    if ends_plainly(algorithm):
        one = _train(algorithm, chunk, backend, first)  # the default finish, without a copy
        one.params.sub_(one.start)
        return Reply(Update({"model": one.params}, n.to(one.params.device), {"loss": _mean_loss(one)}, owned=True))

    trainings = Trainings(algorithm, inputs)
    for wanted in trainings:
        here, opening = chunk, first
        if wanted is not inputs:
            _check_received(algorithm, chunk, wanted)
            here = replace(chunk, received=wanted.received, config=wanted.config, initial=wanted.initial)
            opening = _open(algorithm, here, backend, wanted)
        one = _train(algorithm, here, backend, opening)
        trainings.ended(
            TrainingResult(
                **vars(wanted),
                start=one.start,
                params=one.params,
                steps=_tensor(one.steps, one.start),
                lr_sum=_tensor(one.lr_sum, one.start),
                num_examples=_tensor(chunk.sizes, one.start),
                full_gradient=partial(mean_gradient, algorithm, here, at=one.at, backend=backend),
                fisher=partial(mean_squares_together, algorithm, here, backend=backend),
                memory=one.kept,
            ),
            _mean_loss(one),
        )
    groups, state, carry = trainings.groups, trainings.state, trainings.carry()
    who, hook = type(algorithm).__name__, end_hook(algorithm)
    check_stacked(groups, state, carry, len(chunk.sizes), who, hook, chunk.received)
    return Reply(Update(groups, trainings.first.num_examples, trainings.metrics()), state, carry)


def is_summed(update: Update) -> bool:
    """Whether `train` has summed the groups of an update: then they have no axis of clients."""
    groups = update.groups
    return bool(groups) and all(isinstance(group, Params) and not group.batch for group in groups.values())


def _check_received(algorithm: LocalTraining, chunk: Chunk, wanted: TrainingInputs) -> None:
    """Refuse values of each client in `received`, which is the same for all clients that train together.

    Parameters tell whether they have an axis of clients. A new tensor has one if its first axis is as long as that.

    Raises:
        ValueError: there are some.
    """
    shared = {id(leaf) for _, leaf in named_leaves(chunk.received)}
    for name, leaf in named_leaves(wanted.received, "received"):
        axes = leaf.batch if isinstance(leaf, Params) else leaf.shape if isinstance(leaf, Tensor) else ()
        if axes[:1] == (len(chunk.sizes),) and id(leaf) not in shared:
            raise ValueError(
                f"client {type(algorithm).__name__}: trainings yielded {name} with an axis of {len(chunk.sizes)} "
                "clients; values of each client belong in the state: yield replace(inputs, state=...). Values that all "
                "clients share come with the broadcast"
            )


def _open(algorithm: LocalTraining, chunk: Chunk, backend: type[Gradients], inputs: TrainingInputs) -> Opening:
    """Call the hooks that say how training from `inputs` begins."""
    phases = algorithm.phases_of(inputs, chunk.round, chunk.rounds)
    if any(phase.has_views and (phase.view != "train" or not backend.takes_views) for phase in phases):
        raise ValueError(
            f"phases: those of round {chunk.round} take steps over several views, and those of round 0 do not; set "
            "execution.plan: loop"
        )
    return Opening(inputs, phases, algorithm.start(inputs))


def _train(algorithm: LocalTraining, chunk: Chunk, backend: type[Gradients], opening: Opening) -> _Trained:
    """Train in all phases."""
    inputs, phases, start = opening.inputs, opening.phases, opening.start
    if not issubclass(backend, TrainsWholePhases) or not backend.trains_whole(algorithm, chunk, phases):
        recorded = _train_recorded(algorithm, chunk, backend, phases, inputs, start)
        return recorded or _train_in_steps(algorithm, chunk, backend, phases, inputs, start)
    count, local, trained = len(chunk.sizes), start, Unknown(start.layout, (len(chunk.sizes),))
    loss, seen = torch.zeros(count, dtype=torch.float64), np.zeros(count, np.int64)
    steps, lr_sum = np.zeros(count, np.int64), np.zeros(count)
    for index, phase in enumerate(phases):
        at, penalty = StepContext(**vars(inputs), phase=phase, start=local.select(phase.trains)), None
        if overrides(algorithm, "penalty"):  # it is made of sums that the backend computes
            summed = StepContext(**vars(with_combinations(inputs, start.layout)), phase=phase, start=at.start)
            penalty = penalty_of(algorithm, summed, count)
        whole = WholePhase(phase, index, local, at.start, protected_by(algorithm, at))
        asked = Asked(backend.formulas(whole, count, penalty, trained, [Wanted(trained)]))
        (local,), taken, losses, samples = backend.train_whole(chunk, whole, asked)
        loss, seen, steps, lr_sum = loss + losses, seen + samples, steps + taken, lr_sum + phase.lr_sum(taken)
    return _Trained(start, local, loss, seen, steps, lr_sum, at)


def _mean_loss(trained: _Trained) -> Tensor:
    """Mean loss over the samples of all steps, (C,)."""
    return trained.loss / _tensor(np.maximum(trained.seen, 1), trained.start)


def _inputs(algorithm: LocalTraining, chunk: Chunk) -> TrainingInputs:
    """The inputs of C clients, with the first state for clients without one."""
    inputs = TrainingInputs(
        chunk.received,
        None,
        chunk.config,
        chunk.initial,
        facts=chunk.facts,
        prepared=chunk.prepared,
        round=chunk.round,
        rounds=chunk.rounds,
        module=chunk.module,
    )
    if chunk.known_states is not None and chunk.known_states[0].all():
        return replace(inputs, state=chunk.known_states[1])
    first = algorithm.first_state(inputs)
    if first is None:
        return inputs if any(s is None for s in chunk.states) else replace(inputs, state=stack([*chunk.states]))
    if chunk.known_states is not None:
        return replace(inputs, state=_with_first(first, *chunk.known_states))
    if all(s is None for s in chunk.states):
        return replace(inputs, state=_repeated(first, len(chunk.sizes)))
    return replace(inputs, state=stack([first if s is None else s for s in chunk.states]))


def _repeated(first: Tree, count: int) -> Tree:
    """The first state of `count` clients, stacked, in memory of its own."""
    return replace_leaves(first, [rows_like(leaf, count).copy_(leaf) for leaf in leaves(first)])


def _with_first(first: Tree, has_state: np.ndarray, known: Tree) -> Tree:
    """States of all clients: `known` for clients that have a state, `first` for the others."""

    def of(other: Params | Tensor, rows: Params | Tensor) -> Params | Tensor:
        if isinstance(other, Params):
            if not isinstance(rows, Params) or rows.layout is not other.layout:
                raise ValueError("first_state: it returns other tensors than the states that clients have")
            return Gathered(has_state, rows, other)
        assert isinstance(rows, Tensor)
        return joined_rows(has_state, rows, other)

    return tree_map(of, first, known)


def _train_recorded(
    algorithm: LocalTraining,
    chunk: Chunk,
    backend: type[Gradients],
    phases: Sequence[Phase],
    inputs: TrainingInputs,
    start: Params,
) -> _Trained | None:
    """All steps of the method's own in one call of the backend; None if it cannot take them."""
    if not issubclass(backend, RunsPrograms) or not backend.runs_programs(algorithm, chunk, phases):
        return None
    at = StepContext(**vars(inputs), phase=phases[0], start=start.select(phases[0].trains))
    if penalty_of(algorithm, at, len(chunk.sizes)) is not None:
        return None
    found = train_recorded(algorithm, chunk, backend, at, start)
    if found is None:
        return None
    params, kept, steps, loss, seen = found
    return _Trained(start, params, loss, seen, steps, phases[0].lr_sum(steps), at, kept)


def _train_in_steps(
    algorithm: LocalTraining,
    chunk: Chunk,
    backend: type[Gradients],
    phases: Sequence[Phase],
    inputs: TrainingInputs,
    start: Params,
) -> _Trained:
    """All phases step by step, with the clients sorted by their number of samples."""
    sizes, original_inputs, original_start = chunk.sizes, inputs, start
    sort = bool((sizes[1:] > sizes[:-1]).any())
    if sort:
        by_size = np.argsort(-sizes, kind="stable")  # more samples mean at least as many steps
        names = ("clients", "starts", "sizes", *(() if chunk.unlabelled is None else ("unlabelled",)))
        chunk = replace(chunk, **{n: getattr(chunk, n)[by_size] for n in names})
        there = _tensor(by_size, start)
        inputs = inputs.row(there)
        start = start.row(there) if start.batch else start
    local = start.layout.empty(len(sizes)).copy_(start)
    loss, seen = torch.zeros(len(sizes), dtype=torch.float64), np.zeros(len(sizes), np.int64)
    steps, lr_sum = np.zeros(len(sizes), np.int64), np.zeros(len(sizes))
    kept: Mapping[str, Tree] = {}
    for index, phase in enumerate(phases):
        theta = local.select(phase.trains)
        phase_start = start.select(phase.trains) if index == 0 and not start.batch else theta.clone()
        at = StepContext(**vars(inputs), phase=phase, start=phase_start)
        counts = phase.num_steps(chunk.sizes)
        gradients = backend(algorithm, chunk, local, theta, index)
        stepper = _stepper(algorithm, chunk, gradients, theta, at, index, len(phases), counts)
        if counts.any():
            _take_steps(chunk, phase, index, counts, gradients, stepper, loss, seen)
        kept = stepper.finish()
        if theta is not local:
            local.copy_(theta, names=theta)
        steps += counts
        lr_sum += phase.lr_sum(counts)
    if sort:
        order = np.argsort(by_size)
        back = _tensor(order, start)
        local, loss = local.row(back), loss[back]
        steps, lr_sum, seen = steps[order], lr_sum[order], seen[order]
        of_all = {name: getattr(original_inputs, name) for name in ("state", "facts", "prepared")}
        at = replace(at.row(back), **of_all)
        kept = row(kept, back)
    return _Trained(original_start, local, loss, seen, steps, lr_sum, at, kept)


def _stepper(
    algorithm: LocalTraining,
    chunk: Chunk,
    gradients: Gradients,
    theta: Params,
    at: StepContext,
    index: int,
    phases: int,
    counts: np.ndarray,
) -> _SGDSteps | _OptimiserSteps | ChunkSteps:
    """What takes the steps of a phase, in place on theta (C,)."""
    penalty = penalty_of(algorithm, at, len(chunk.sizes))
    if overrides(algorithm, "step"):
        return ChunkSteps(algorithm, gradients, theta, penalty, at, chunk, index, phases, counts)
    if isinstance(gradients, TakesSGDSteps) and takes_plain_steps(algorithm, at.phase, penalty):
        return _SGDSteps(gradients, theta, at.phase)
    return _OptimiserSteps(algorithm, gradients, theta, penalty, at)


def _take_steps(
    chunk: Chunk,
    phase: Phase,
    index: int,
    counts: np.ndarray,
    gradients: Gradients,
    stepper: _SGDSteps | _OptimiserSteps | ChunkSteps,
    loss: Tensor,
    seen: np.ndarray,
) -> None:
    """Take `counts` (C,) steps of a phase; add to the sums of losses and the numbers of samples, (C,)."""
    timed_block, timed_batch = timed_calls("data", "batches", make_block), timed_calls("data", "batch", make_batch)
    for first in range(0, int(counts.max()), BLOCK):
        block = timed_block(chunk, phase, index, counts, first, stepper.theta.device)
        record = torch.zeros(block.weights.shape)
        for t, (rows, weights, losses, lengths) in enumerate(block.steps(record), first):
            batch = timed_batch(chunk, phase, rows, lengths, index, t)
            masks = gradients.masks.draw(t, lengths)
            losses.copy_(stepper.take(batch, weights, masks, t))
        loss += block.without_pads(record).sum((0, 2), dtype=torch.float64)
        seen += block.lengths.sum(0)


class _SGDSteps:
    """Plain gradient steps that the backend takes itself."""

    def __init__(self, gradients: TakesSGDSteps, theta: Params, phase: Phase):
        self.gradients, self.theta, self.phase = gradients, theta, phase
        gradients.begin_sgd(theta)

    def take(self, batch: Mapping[str, Tensor], weights: Tensor, masks: list[Tensor], t: int) -> Tensor:
        """Take step t of the first A clients; returns the losses (A, B)."""
        return self.gradients.sgd_step(batch, weights, masks, self.phase.rate(t))

    def finish(self) -> Mapping[str, Tree]:
        """Write the trained parameters into theta. The steps keep nothing."""
        self.gradients.end_sgd(self.theta)
        return {}


class _OptimiserSteps:
    """Steps of any optimiser, with the method's penalty and hook, and clipping."""

    def __init__(
        self, algorithm: LocalTraining, gradients: Gradients, theta: Params, penalty: Penalty | None, at: StepContext
    ):
        self.algorithm, self.gradients, self.at, self.theta, self.penalty = algorithm, gradients, at, theta, penalty
        self.hooked = changes_gradients(algorithm)
        self.grad: Params = gradient_buffer(theta)
        self.rule = at.phase.rule
        self.memory: dict[str, Any] = self.rule.state(theta)
        self.active = 0

    def take(self, batch: Mapping[str, Tensor], weights: Tensor, masks: list[Tensor], t: int) -> Tensor:
        """Take step t of the first A clients; returns the losses (A, B)."""
        if len(weights) != self.active:
            self.active = len(weights)
            clients = slice(0, self.active)
            self.params, self.g = self.theta.row(clients), self.grad.row(clients)
            self.m = row(self.memory, clients)
            self.active_penalty = None if self.penalty is None else self.penalty.row(clients)
            self.here = self.at.row(clients)
        phase = self.at.phase
        losses = self.gradients(self.params, batch, weights, masks, self.here, self.g)
        if self.active_penalty is not None:
            self.active_penalty.add_gradient(self.g, self.params)
        step = self.algorithm.gradient(self.g, self.params, self.here) if self.hooked else self.g
        if phase.clip is not None:
            step = clipped(step, phase.clip)
        self.rule.step(self.params, step, self.m, phase.rate(t), t)
        return losses

    def finish(self) -> Mapping[str, Tree]:
        """Return nothing: each step changes theta in place, and keeps nothing."""
        return {}


def _tensor(array: np.ndarray, like: Params) -> Tensor:
    """A tensor on the device of `like`, in 0.5 microseconds; `torch.as_tensor` takes 10 for the default device."""
    return torch.from_numpy(array).to(like.device)
