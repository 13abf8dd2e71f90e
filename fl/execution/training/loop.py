"""Local training of one client at a time, for any model.

    for each training:  theta <- start;  for each batch: gradient, penalty, gradient hook, clip, optimiser step in place

The module's parameters are views of the flat buffer `theta`. A step copies no parameters and does not wait for the
device (no `.item()`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from fl.execution.training.client_batches import view_of
from fl.execution.training.customised import (
    changes_gradients,
    ends_plainly,
    overrides,
    penalty_of,
    takes_plain_steps,
)
from fl.execution.training.fisher import fisher
from fl.execution.training.graph import place
from fl.execution.training.objective import losses_of
from fl.execution.training.own_steps import ClientSteps
from fl.execution.training.steps import Descent, LocalSteps, gradient_buffer, gradients_of
from fl.execution.training.trainings import Trainings
from fl.method.context import ClientContext, Reply
from fl.method.local_training import LocalTraining
from fl.method.messages import Update
from fl.method.optimiser_memory import GROUP, OptimiserMemory
from fl.method.penalty import Penalty
from fl.method.phase import Phase
from fl.method.training_values import StepContext, TrainingResult
from fl.models.binding import bind
from fl.models.structure import structure
from fl.tensors.params import Params, match, zeros_like
from fl.tensors.trees import Tree

GRADIENT_BATCH = 256  # samples per forward pass of a full gradient


def train(algorithm: LocalTraining, ctx: ClientContext) -> Reply:
    """Train one client in all trainings and phases; return its update and its new state."""
    if overrides(algorithm, "samples"):
        ctx = replace(ctx, train=algorithm.samples(ctx))
    n = len(ctx.train if algorithm.weight_view == "train" else view_of(ctx, algorithm.weight_view))
    given, memory = algorithm.inputs(ctx), None
    trainings = Trainings(algorithm, given)
    for inputs in trainings:  # in one function, so that tracebacks of runs are short
        here = ctx
        if inputs is not given:
            here = replace(ctx, received=inputs.received, config=inputs.config, initial=inputs.initial)
        start = algorithm.start(inputs)
        local = place(start) if ctx.graphs else start.clone()
        memory = None if algorithm.optimiser_state == "reset" else _memory(algorithm, here)
        loss, samples, taken, lr_sum = torch.zeros((), dtype=torch.float64), 0, 0, 0.0
        kept: Mapping[str, Tree] = {}
        phases = algorithm.phases_of(inputs, ctx.round, ctx.rounds)
        for index, phase in enumerate(phases):
            theta = _trained(ctx.module, local, phase)
            phase_start = start if theta is local and index == 0 else theta.clone()
            at = StepContext(**vars(inputs), phase=phase, start=phase_start, module_facts=ctx.module_facts)
            left = None if ctx.limit is None else ctx.limit - taken
            steps = LocalSteps(algorithm, here, phase=phase, index=index, at=at, limit=left)
            penalty = penalty_of(algorithm, at)
            if overrides(algorithm, "step"):
                kept = ClientSteps(steps, theta, local, penalty, len(phases)).take_all()
            elif takes_plain_steps(algorithm, phase, penalty) and memory is None:
                steps.bind(theta, local)  # the numbers of _take_steps, without copying the gradient
                weights = [steps.views[name] for name in steps.names]
                for t, _ in enumerate(steps):
                    torch._foreach_add_(weights, steps.bound_gradient(), alpha=-phase.rate(t))
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
        mean_loss = float(loss) / max(samples, 1)
        if memory is None and ends_plainly(algorithm):
            # the default, without a copy
            return Reply(Update({"model": local.sub_(start)}, n, {"loss": mean_loss}, owned=True))
        trainings.ended(
            TrainingResult(
                **vars(inputs),
                start=start,
                params=local,
                steps=taken,
                lr_sum=lr_sum,
                num_examples=n,
                full_gradient=partial(mean_gradient, algorithm, here, at=at),
                fisher=partial(fisher, here),
                memory=kept,
            ),
            mean_loss,
        )
    groups, metrics, optimiser = trainings.groups, trainings.metrics(), None
    if memory is not None and algorithm.optimiser_state == "kept":
        optimiser = memory.now
    elif memory is not None:
        groups = {**groups, GROUP: memory.now}
    return Reply(Update(groups, n, metrics), trainings.state, trainings.carry(), optimiser)


def _memory(algorithm: LocalTraining, ctx: ClientContext) -> OptimiserMemory:
    """Return the memory with which the client's optimisers start."""
    return OptimiserMemory(ctx.optimiser if algorithm.optimiser_state == "kept" else ctx.received.get(GROUP))


def _take_steps(
    steps: LocalSteps, theta: Params, local: Params, penalty: Penalty | None, memory: OptimiserMemory | None
) -> None:
    """Take all steps of a phase, in place on `theta`. `local` has the tensors that it does not train."""
    steps.bind(theta, local)
    algorithm = steps.algorithm
    grad, descent = gradient_buffer(theta).zero_(), Descent(steps.phase, theta)
    if memory is not None:
        memory.restore(int(steps.index), descent)
    views, hooked = [grad[name] for name in steps.names], changes_gradients(algorithm)
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
