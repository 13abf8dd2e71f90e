"""Local training of one client at a time, for any model.

    theta <- start;  repeat: gather a batch, gradient into one flat buffer, hook, clip, optimiser step in place

No optimiser object, no `.item()`, no copy per step; module parameters are views of the flat buffer.
"""

from __future__ import annotations

import torch

from fl.execution.training.graph import place
from fl.execution.training.steps import Descent, LocalSteps, workspace
from fl.method.client import ClientAlgorithm, ClientContext, LocalTraining, Phase, Reply, StepContext, TrainingResult
from fl.method.messages import Update
from fl.method.optimiser import SGD
from fl.models.binding import bind
from fl.models.nn import statistics
from fl.tensors.params import Params, match, zeros_like

GRADIENT_BATCH = 256  # samples per forward pass of a full gradient


def train(algorithm: LocalTraining, ctx: ClientContext) -> Reply:
    """All phases of a client's local training, then what it sends and keeps."""
    given = algorithm.given(ctx)
    begun = algorithm.start(given)
    local = place(begun) if ctx.graphs else begun.clone()
    loss, seen, steps, lr_sum = torch.zeros((), dtype=torch.float64), 0, 0, 0.0
    for index, phase in enumerate(algorithm.phases_of(given, ctx.round, ctx.rounds)):
        theta = _trained(ctx.module, local, phase)
        start = begun if theta is local and index == 0 else theta.clone()
        at = StepContext(**vars(given), phase=phase, start=start)
        left = None if ctx.limit is None else ctx.limit - steps
        taking = LocalSteps(algorithm, ctx, phase=phase, index=index, at=at, limit=left)
        taking.bind(theta, local)
        _run_phase(taking, theta)
        if theta is not local:
            local.copy_(theta, names=theta)
        loss, seen, steps = loss + taking.loss_sum, seen + taking.samples, steps + taking.taken
        lr_sum += phase.lr_sum(taking.taken)
    if ctx.graphs:  # the place is the next client's
        local = local.clone()

    def full_gradient(params: Params) -> Params:
        return mean_gradient(algorithm, ctx, params, at)

    n = len(ctx.train)
    metrics = {"loss": float(loss) / max(seen, 1)}
    if not overrides(algorithm, "finish"):  # the default finish, without a copy
        return Reply(Update({"model": local.sub_(begun)}, n, metrics, owned=True))
    end = TrainingResult(
        **vars(given),
        start=begun,
        params=local,
        steps=steps,
        lr_sum=lr_sum,
        num_examples=n,
        full_gradient=full_gradient,
    )
    groups, state = algorithm.finish(end)
    return Reply(Update(groups, n, metrics), state)


def _trained(module: torch.nn.Module, local: Params, phase: Phase) -> Params:
    """What descends in a phase: running statistics that are averaged move by themselves, as the module runs."""
    still = set(statistics(module, "averaged"))
    if not still:
        return local.select(phase.trains)
    return local.select([name for name in (match(local, phase.trains) if phase.trains else local) if name not in still])


def _run_phase(steps: LocalSteps, theta: Params) -> None:
    """Take all steps of a phase, in place on `theta`, which the module is bound to."""
    algorithm, phase = steps.algorithm, steps.phase
    if descends_plainly(algorithm, phase):  # the same numbers as below, without gathering the gradient
        weights = [theta[name] for name in steps.names]
        for t, _ in enumerate(steps):
            torch._foreach_add_(weights, steps.bound_gradient(), alpha=-phase.rate(t))
        return
    grad, descent = workspace(theta), Descent(phase, theta)
    views, hooked = [grad[name] for name in steps.names], overrides(algorithm, "gradient")
    for _ in steps:
        torch._foreach_copy_(views, steps.bound_gradient())
        descent.step(algorithm.gradient(grad, theta, steps.at) if hooked else grad)


def mean_gradient(algorithm: LocalTraining, ctx: ClientContext, params: Params, at: StepContext) -> Params:
    """Mean gradient of the objective over the client's training data at `params`, without noise."""
    bind(ctx.module, params, ctx.initial, params)
    ctx.module.eval()
    total = zeros_like(params)
    trained = [(name, p) for name, p in ctx.module.named_parameters() if p.requires_grad]
    views, leaves = [total[name] for name, _ in trained], [p for _, p in trained]
    for a in range(0, len(ctx.train), GRADIENT_BATCH):
        losses = algorithm.objective(ctx.module, ctx.train.take(slice(a, a + GRADIENT_BATCH)), at, ctx.task)
        torch._foreach_add_(views, torch.autograd.grad(losses.sum(), leaves))
    ctx.module.train()
    return total.mul_(1.0 / max(len(ctx.train), 1))


def descends_plainly(algorithm: LocalTraining, phase: Phase) -> bool:
    """Whether a step is w <- w - lr g and nothing else."""
    return not overrides(algorithm, "gradient") and phase.clip is None and phase.optimiser == SGD()


def beyond_gradients(algorithm: ClientAlgorithm) -> str | None:
    """Why a client's work may be more than gradients of the task's own loss, or `None`."""
    if (
        isinstance(algorithm, LocalTraining)
        and not overrides(algorithm, "work")
        and not overrides(algorithm, "objective")
    ):
        return None
    return f"{type(algorithm).__name__} has work or an objective of its own"


def overrides(algorithm: LocalTraining, name: str) -> bool:
    """Whether the method defines its own hook."""
    return getattr(type(algorithm), name) is not getattr(LocalTraining, name)
