"""Local training of one client at a time, for any model.

    for each training:  theta <- start;  for each batch: gradient, penalty, gradient hook, clip, optimiser step in place

The module's parameters are views of the flat buffer `theta`. A step copies no parameters and does not wait for the
device (no `.item()`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fl.execution.training.client_batches import view_of
from fl.execution.training.customised import overrides, penalty_of, takes_plain_steps
from fl.execution.training.graph import place
from fl.execution.training.objective import losses_of
from fl.execution.training.own_steps import ClientSteps
from fl.execution.training.steps import Descent, LocalSteps, gradient_buffer, gradients_of
from fl.execution.training.trainings import run_trainings
from fl.method.context import ClientContext, Reply
from fl.method.local_training import LocalTraining, StepContext, TrainingInputs, TrainingResult
from fl.method.messages import Update
from fl.method.optimiser_memory import GROUP, OptimiserMemory
from fl.method.penalty import Penalty
from fl.method.phase import Phase
from fl.models.binding import bind
from fl.models.structure import structure
from fl.tensors.params import Params, match, zeros_like
from fl.tensors.trees import Tree

GRADIENT_BATCH = 256  # samples per forward pass of a full gradient


@dataclass(frozen=True)
class _Trained:
    """The end of one training.

    inputs: what it started from.
    start, local: the parameters before and after it.
    loss, samples: sum of the losses, and number of samples.
    steps, lr_sum: see `TrainingResult`.
    at: context of the last phase.
    kept: what the steps of the last phase keep.
    optimisers: memory of the optimisers, if it lasts until the next round.
    """

    inputs: TrainingInputs
    start: Params
    local: Params
    loss: Tensor
    samples: int
    steps: int
    lr_sum: float
    at: StepContext
    kept: Mapping[str, Tree]
    optimisers: OptimiserMemory | None


def train(algorithm: LocalTraining, ctx: ClientContext) -> Reply:
    """Train one client in all trainings and phases; return its update and its new state."""
    if overrides(algorithm, "samples"):
        ctx = replace(ctx, train=algorithm.samples(ctx))
    n = len(ctx.train if algorithm.weight_view == "train" else view_of(ctx, algorithm.weight_view))
    inputs, done = algorithm.inputs(ctx), list[_Trained]()

    def run(wanted: TrainingInputs) -> TrainingResult:
        here = ctx
        if wanted is not inputs:
            here = replace(ctx, received=wanted.received, config=wanted.config, initial=wanted.initial)
        one = _train(algorithm, here, wanted)
        done.append(one)
        return TrainingResult(
            **vars(wanted),
            start=one.start,
            params=one.local,
            steps=one.steps,
            lr_sum=one.lr_sum,
            num_examples=n,
            full_gradient=lambda params: mean_gradient(algorithm, here, params, one.at),
            memory=one.kept,
        )

    plain = algorithm.optimiser_state == "reset" and not any(
        overrides(algorithm, name) for name in ("finish", "metrics", "trainings")
    )
    if plain:  # the default finish, without a copy
        one = _train(algorithm, ctx, inputs)
        metrics = {"loss": float(one.loss) / max(one.samples, 1)}
        return Reply(Update({"model": one.local.sub_(one.start)}, n, metrics, owned=True))
    ended = run_trainings(algorithm, inputs, run)
    one = done[0]
    reported: dict[str, Any] = {"loss": float(one.loss) / max(one.samples, 1), **algorithm.metrics(ended.first)}
    if one.optimisers is None:
        return Reply(Update(ended.groups, n, reported), ended.state)
    if algorithm.optimiser_state == "kept":
        return Reply(Update(ended.groups, n, reported), ended.state, optimiser=one.optimisers.now)
    return Reply(Update({**ended.groups, GROUP: one.optimisers.now}, n, reported), ended.state)


def _train(algorithm: LocalTraining, ctx: ClientContext, inputs: TrainingInputs) -> _Trained:
    """Train from `inputs` in all phases."""
    start = algorithm.start(inputs)
    local = place(start) if ctx.graphs else start.clone()
    memory = None if algorithm.optimiser_state == "reset" else _memory(algorithm, ctx)
    loss, samples, taken, lr_sum = torch.zeros((), dtype=torch.float64), 0, 0, 0.0
    own_steps = overrides(algorithm, "step")
    kept: Mapping[str, Tree] = {}
    phases = algorithm.phases_of(inputs, ctx.round, ctx.rounds)
    for index, phase in enumerate(phases):
        theta = _trained(ctx.module, local, phase)
        phase_start = start if theta is local and index == 0 else theta.clone()
        at = StepContext(
            **vars(inputs), phase=phase, start=phase_start, module=ctx.module, module_facts=ctx.module_facts
        )
        left = None if ctx.limit is None else ctx.limit - taken
        steps = LocalSteps(algorithm, ctx, phase=phase, index=index, at=at, limit=left)
        penalty = penalty_of(algorithm, at)
        if own_steps:
            kept = ClientSteps(steps, theta, local, penalty, len(phases)).take_all()
        else:
            _take_steps(steps, theta, local, penalty, memory)
        if unused := [name for name in ctx.module_facts.unused if name in theta]:  # weight decay moved them
            theta.copy_(phase_start, names=unused)
        if theta is not local:
            local.copy_(theta, names=theta)
        loss, samples, taken = loss + steps.loss_sum, samples + steps.samples, taken + steps.taken
        lr_sum += phase.lr_sum(steps.taken)
    if ctx.graphs:  # the next client uses the same memory
        local = local.clone()
    return _Trained(inputs, start, local, loss, samples, taken, lr_sum, at, kept, memory)


def _memory(algorithm: LocalTraining, ctx: ClientContext) -> OptimiserMemory:
    """Return the memory with which the client's optimisers start."""
    return OptimiserMemory(ctx.optimiser if algorithm.optimiser_state == "kept" else ctx.received.get(GROUP))


def _take_steps(
    steps: LocalSteps, theta: Params, local: Params, penalty: Penalty | None, memory: OptimiserMemory | None
) -> None:
    """Take all steps of a phase, in place on `theta`. `local` has the tensors that it does not train."""
    steps.bind(theta, local)
    phase, algorithm = steps.phase, steps.algorithm
    if takes_plain_steps(algorithm, phase, penalty) and memory is None:  # the same numbers, without a copy
        weights = [steps.views[name] for name in steps.names]
        for t, _ in enumerate(steps):
            torch._foreach_add_(weights, steps.bound_gradient(), alpha=-phase.rate(t))
        return
    grad, descent = gradient_buffer(theta).zero_(), Descent(phase, theta)
    if memory is not None:
        memory.restore(int(steps.index), descent)
    views, hooked = [grad[name] for name in steps.names], overrides(algorithm, "gradient")
    for _ in steps:
        torch._foreach_copy_(views, steps.bound_gradient())
        if penalty is not None:
            penalty.add_gradient(grad, theta)
        descent.step(algorithm.gradient(grad, theta, steps.at) if hooked else grad)
    if memory is not None:
        memory.save(int(steps.index), descent)


def _trained(module: torch.nn.Module, local: Params, phase: Phase) -> Params:
    """Return the parameters that a phase trains. The module itself updates averaged running statistics."""
    averaged = structure(module).averaged
    if not averaged:
        return local.select(phase.trains)
    names = match(local, phase.trains) if phase.trains else local
    return local.select([name for name in names if name not in averaged])


def mean_gradient(algorithm: LocalTraining, ctx: ClientContext, params: Params, at: StepContext) -> Params:
    """Return the mean gradient of the objective over the client's training data at `params`, without Dropout."""
    bind(ctx.module, params, ctx.initial, params)
    structure(ctx.module).set_training(ctx.module, False)
    total = zeros_like(params)
    trained = structure(ctx.module).trained
    views, leaves = [total[name] for name, _ in trained], [p for _, p in trained]
    for a in range(0, len(ctx.train), GRADIENT_BATCH):
        losses = losses_of(algorithm, ctx.module, ctx.train.take(slice(a, a + GRADIENT_BATCH)), at, ctx.task)
        torch._foreach_add_(views, gradients_of(losses.sum(), leaves))
    structure(ctx.module).set_training(ctx.module, True)
    return total.mul_(1.0 / max(len(ctx.train), 1))
