"""DP-SGD inside a client.    w <- w - lr * (sum_{j in batch} clip(g_j) + z * bound * n) / (rate * samples)

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang 2016, arXiv:1607.00133.  Each step draws each training example
with probability `rate`, so a batch may be empty; noise is added all the same.  g_j is the gradient of example j, n is
standard normal.  `privacy: {unit: example}` sets bound and z.  The client's number of samples is taken as public.
Differs from the paper: Dropout is off; the divisor is the expected size of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from fl import (
    Batch,
    ClientContext,
    ExampleLevel,
    LRSchedule,
    Params,
    Reply,
    Tree,
    Update,
    checks,
    random,
    rate_at,
    register,
)

ELEMENTS = 1 << 24  # gradients of single examples that are held at once, in numbers


@register("client", "dp_sgd")
@dataclass(frozen=True, kw_only=True)
class DPSGD(ExampleLevel):
    """Local training by DP-SGD, with `privacy: {unit: example}`.

    Args:
        steps: number of local steps per round, positive.
        rate: probability with which a step draws a training example, in (0, 1].
        lr: learning rate, at least 0, or a schedule over rounds (`by: round`).
        bound: set by `privacy.clipping`; leave it out.
        noise_multiplier: set by `privacy`; leave it out.
    """

    steps: int = 10
    rate: float = 0.1
    lr: float | LRSchedule = 0.1
    bound: float | None = None
    noise_multiplier: float | None = None

    one_at_a_time: ClassVar[bool] = True
    example_config: ClassVar[Mapping[str, Any]] = {
        "privacy": {
            "unit": "example",
            "clipping": {"name": "fixed", "bound": 1.0},
            "noise_multiplier": 1.0,
            "delta": 1e-5,
        },
    }

    def __post_init__(self) -> None:
        checks.positive(steps=self.steps)
        checks.within("(0, 1]", rate=self.rate)
        if not isinstance(self.lr, LRSchedule):
            checks.not_negative(lr=self.lr)
        elif self.lr.by != "round":
            raise ValueError("lr: a schedule over steps is not for dp_sgd; use by: round")

    def step_sampling(self) -> tuple[float, int]:
        return self.rate, self.steps

    def with_noise(self, bound: float, noise_multiplier: float) -> Self:
        return replace(self, bound=bound, noise_multiplier=noise_multiplier)

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        return np.full_like(sizes, self.steps), np.round(self.steps * self.rate * sizes).astype(sizes.dtype)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        if name != "train":
            raise ValueError(f"dp_sgd: the strategy asks for the work {name!r}, and only training is private")
        if self.bound is None or self.noise_multiplier is None:
            raise ValueError("dp_sgd: clip bound and noise are missing; set privacy: {unit: example, ...}")
        received: Params = ctx.received["model"]
        params, gradients = received.clone(), example_gradients(ctx)
        lr, _ = rate_at(self.lr, ctx.round, ctx.rounds)
        n, losses = len(ctx.train), []
        steps = self.steps if ctx.limit is None else min(self.steps, ctx.limit)
        for step in range(steps):
            address = (ctx.seed, ctx.client, ctx.participation, "dp_sgd", step)
            drawn = np.flatnonzero(random.uniform(*address, np.arange(n)) < self.rate)
            total = params.layout.zeros()
            for part in np.array_split(drawn, max(1, -(-len(drawn) * params.numel // ELEMENTS))):
                if len(part):
                    grads, loss = gradients(params, ctx.train.take(part))
                    add_clipped(total, grads, self.bound)
                    losses.append(loss)
            noise = ctx.generator(f"dp_sgd noise {step}")
            std = self.bound * self.noise_multiplier
            drawn_noise = Params.of({key: torch.randn(t.shape, generator=noise) for key, t in total.items()})
            params = params - (total + drawn_noise * std) * (lr / max(self.rate * n, 1.0))
        metrics = {"loss": float(torch.cat(losses).mean())} if losses else {}
        return Reply(Update({"model": params - received}, n, metrics))


def example_gradients(ctx: ClientContext) -> Callable[[Params, Batch], tuple[dict[str, Tensor], Tensor]]:
    """Return a function (params, batch of B samples) -> (gradients of each sample (B, ...) by name, losses (B,))."""
    module = ctx.net(ctx.received["model"])  # in evaluation mode
    fixed = {**ctx.initial.frozen, **ctx.initial.trained}

    def loss(tensors: Mapping[str, Tensor], sample: Batch) -> Tensor:
        one = {name: array[None] for name, array in sample.items()}
        return ctx.task.loss(functional_call(module, {**fixed, **tensors}, (one["x"],)), one).sum()

    each = vmap(grad_and_value(loss), in_dims=(None, 0))
    return lambda params, batch: each(dict(params), dict(batch))


def add_clipped(total: Params, grads: Mapping[str, Tensor], bound: float) -> None:
    """Add gradients (B, ...), each clipped to the Euclidean norm `bound` over all tensors, to `total` in place.

    >>> total = Params.of({"w": torch.zeros(2)})
    >>> add_clipped(total, {"w": torch.tensor([[3.0, 4.0], [0.0, 0.5]])}, bound=1.0)
    >>> total["w"].tolist()
    [0.6000000238418579, 1.2999999523162842]
    """
    norms = torch.stack([g.flatten(1).double().square().sum(1) for g in grads.values()]).sum(0).sqrt()
    factors = (bound / norms.clamp(min=bound)).float()
    for name, g in grads.items():
        total[name].add_((factors @ g.flatten(1)).reshape(total[name].shape))
