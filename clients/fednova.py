"""FedNova's clients: local SGD; the change is sent per effective step.    send (w - received) / |a|  and  |a|

    |a|: length of the way along a constant gradient of one, in learning rates
    plain  |a| = tau          momentum rho  |a| = (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)
    proximal  |a| = (1 - (1 - lr mu)^tau) / (lr mu)          Nesterov, and momentum with mu: by the same recursion

Wang, Liu, Liang, Joshi, Poor 2020, arXiv:2007.07481, section 4.  Exact for SGD with one learning rate in a round;
clipping counts as part of the gradient.  Optimisers that rescale the gradient have no such |a| and are refused.
Differs from the authors' program: mu > 0 adds FedProx's term to the gradient before the momentum, not after it.
Equals FedAvg: see `strategies/fednova.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fl import SGD, ClientContext, LRSchedule, Reply, TrainingResult, Tree, register

from .fedprox import FedProx


def effective_steps(
    steps: int,
    momentum: float = 0.0,
    nesterov: bool = False,
    shrink: float = 0.0,
    rate: Callable[[int], float] = lambda t: 1.0,
) -> list[float]:
    """Return [|a| after 0, 1, ..., steps steps].

    >>> effective_steps(3), effective_steps(2, momentum=0.5)
    ([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.5])

    Args:
        steps: number of steps.
        momentum: SGD's momentum.
        nesterov: whether it is Nesterov's.
        shrink: the learning rate times mu.
        rate: relative learning rate of step t, from 0.
    """
    way, velocity, ways = 0.0, 0.0, [0.0]
    for t in range(steps):
        gradient = 1.0 - shrink * way
        velocity = momentum * velocity + gradient
        way += rate(t) * (gradient + momentum * velocity if nesterov else velocity)
        ways.append(way)
    return ways


@register("client", "fednova")
@dataclass(frozen=True, kw_only=True)
class FedNova(FedProx):
    """Local SGD that sends its change per effective step.

    Args:
        mu: weight of FedProx's proximal term, at least 0. 0 is plain SGD.
    """

    mu: float = 0.0

    sends: ClassVar[tuple[str, ...]] = ("model", "steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.optimiser, SGD):
            name = getattr(type(self.optimiser), "registered_as", type(self.optimiser).__name__)
            raise ValueError(f"optimiser: {name!r} rescales gradients, so steps cannot be normalised; use 'sgd'")
        if isinstance(self.lr, LRSchedule) and self.lr.by == "step":
            raise ValueError("lr: a schedule by step has no single rate to normalise steps by; schedule it by round")
        if self.mu and self.rates:
            raise ValueError("rates: with mu > 0 the number of effective steps depends on one learning rate; set mu: 0")

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        steps = torch.as_tensor(end.steps)
        most = int(steps.max())
        lr = float(torch.as_tensor(end.lr_sum).max()) / most if most else 0.0
        sgd = self.optimiser
        assert isinstance(sgd, SGD)
        ways = effective_steps(most, sgd.momentum, sgd.nesterov, lr * self.mu)
        effective = torch.tensor(ways, dtype=torch.float64)[steps].float()
        return {"model": end.delta / effective.clamp(min=1.0), "steps": effective}, None

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        groups = reply.update.groups
        delta = groups["model"] * groups["steps"]
        return super().context_after_training(
            ctx, replace(reply, update=replace(reply.update, groups={"model": delta}))
        )
