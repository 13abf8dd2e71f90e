"""Local training of one client at a time, for any model.

    theta <- start;  repeat: gather a batch, gradient into one flat buffer, hook, clip, optimiser step in place

No optimiser object, no `.item()`, no copy per step; module parameters are views of the flat buffer.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fl.data.augment import augmented
from fl.execution.training.graph import place, recorded
from fl.method.client import ClientAlgorithm, ClientContext, LocalTraining, Phase, Reply, StepContext, TrainingResult
from fl.method.messages import Update
from fl.method.optimiser import SGD
from fl.models.binding import bind
from fl.models.nn import DropoutMasks, statistics
from fl.tasks.task import Batch
from fl.tensors import random
from fl.tensors.params import Layout, Params, match, norm, zeros_like
from fl.tracking.profile import each

GRADIENT_BATCH = 256  # samples per forward pass of a full gradient


def train(algorithm: LocalTraining, ctx: ClientContext) -> Reply:
    """All phases of a client's local training, then what it sends and keeps."""
    given = algorithm.given(ctx)
    begun = algorithm.start(given)
    local = place(begun) if ctx.graphs else begun.clone()
    loss, seen, steps, lr_sum = torch.zeros((), dtype=torch.float64), 0, 0, 0.0
    ctx.module.train()
    for index, phase in enumerate(algorithm.phases_of(given, ctx.round, ctx.rounds)):
        theta = _trained(ctx.module, local, phase)
        bind(ctx.module, local, ctx.initial, theta)
        start = begun if theta is local and index == 0 else theta.clone()
        at = StepContext(**vars(given), phase=phase, start=start)
        left = None if ctx.limit is None else ctx.limit - steps
        phase_loss, phase_seen, phase_steps = _run_phase(algorithm, ctx, phase, index, theta, at, left)
        if theta is not local:
            local.copy_(theta, names=theta)
        loss, seen, steps = loss + phase_loss, seen + phase_seen, steps + phase_steps
        lr_sum += phase.lr_sum(phase_steps)
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


def _run_phase(
    algorithm, ctx: ClientContext, phase: Phase, index: int, theta: Params, at: StepContext, limit: int | None
):
    """At most `limit` steps; returns (sum of losses, samples seen, steps)."""
    leaves = [p for p in ctx.module.parameters() if p.requires_grad]
    names = [name for name, p in ctx.module.named_parameters() if p.requires_grad]
    plain, grad = descends_plainly(algorithm, phase), workspace(theta)
    weights, views = [theta[name] for name in names], [grad[name] for name in names]
    memory = phase.optimiser.state(theta)
    hooked = overrides(algorithm, "gradient")
    noise = DropoutMasks(ctx.module, lambda: ctx.train.take(slice(0, 1))["x"]) if len(ctx.train) else None
    source = [ctx.generator(f"dropout/{index}")] if noise and noise.layers else []
    gradients = partial(_gradients, algorithm, ctx, noise, leaves, at)
    if ctx.graphs:
        gradients = recorded(ctx.module, gradients)
    loss, seen, t = torch.zeros((), dtype=torch.float64), 0, 0
    for t, batch in enumerate(islice(mini_batches(ctx, phase, index), limit), 1):
        count = len(batch["x"])
        masks = [m[0] for m in noise.draw(source, [count])] if source else []
        losses, grads = gradients(batch, masks)
        if plain:  # the same numbers as below, without gathering the gradient
            torch._foreach_add_(weights, grads, alpha=-phase.rate(t - 1))
        else:
            torch._foreach_copy_(views, grads)
            step = algorithm.gradient(grad, theta, at) if hooked else grad
            if phase.clip is not None:
                step = clipped(step, phase.clip)
            phase.optimiser.step(theta, step, memory, phase.rate(t - 1), t - 1)
        loss += losses
        seen += count
    return loss, seen, t


def _gradients(
    algorithm,
    ctx: ClientContext,
    noise: DropoutMasks | None,
    leaves,
    at: StepContext,
    batch: Batch,
    masks: list[Tensor],
):
    """(the sum of the losses, the gradient of their mean), `ctx.micro_batch` samples at a time."""
    count = len(batch["x"])
    piece = ctx.micro_batch or count
    if piece >= count:
        if masks:
            noise.set(masks)
        losses = algorithm.objective(ctx.module, batch, at, ctx.task)
        return losses.detach().sum(), torch.autograd.grad(losses.mean(), leaves)
    total, grads = torch.zeros(()), [torch.zeros_like(leaf) for leaf in leaves]
    for a in range(0, count, piece):
        if masks:
            noise.set([mask[a : a + piece] for mask in masks])
        part = {name: array[a : a + piece] for name, array in batch.items()}
        losses = algorithm.objective(ctx.module, part, at, ctx.task)
        torch._foreach_add_(grads, torch.autograd.grad(losses.sum() / count, leaves))
        total += losses.detach().sum()
    return total, grads


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


def mini_batches(ctx: ClientContext, phase: Phase, index: int) -> Iterable[dict[str, torch.Tensor]]:
    """The samples of each step, augmented."""
    return each("data", "batch", _mini_batches(ctx, phase, index))


def _mini_batches(ctx: ClientContext, phase: Phase, index: int) -> Iterator[dict[str, torch.Tensor]]:
    address = (ctx.seed, ctx.client, ctx.participation, index)
    for step, positions in enumerate(batches(phase, len(ctx.train), *address)):
        batch = ctx.train.take(positions)
        if ctx.augment:
            batch["x"] = augmented(ctx.augment, batch["x"], *address, step, np.arange(len(positions)))
        yield batch


def batches(phase: Phase, n: int, seed: int, client: int, participation: int, index: int) -> Iterator[np.ndarray]:
    """The positions of each step's batch: a fresh shuffle per epoch, the last batch of an epoch may be short."""
    size = n if phase.batch == "full" else phase.batch
    steps = int(phase.num_steps(np.array(n)))
    per_epoch = -(-n // size) if n else 0
    for step in range(steps):
        epoch, k = divmod(step, per_epoch)
        if k == 0:
            order = random.permutation(n, seed, client, participation, "shuffle", index, epoch)
        yield order[k * size : (k + 1) * size]


def clipped(grad: Params, bound: float) -> Params:
    """The gradient scaled down to norm at most `bound`, per client."""
    return grad * (bound / norm(grad).clamp(min=bound))


def workspace(theta: Params) -> Params:
    """Memory for gradients, the same at every call of a thread: they are written anew in each step."""
    return _workspace(theta.layout, theta.batch, theta.device, threading.get_ident())


@functools.lru_cache(maxsize=4)
def _workspace(layout: Layout, batch: tuple[int, ...], device: torch.device, thread: int) -> Params:
    return layout.zeros(*batch).to(device)


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
