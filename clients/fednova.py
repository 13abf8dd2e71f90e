"""FedNova's clients: local SGD, sent per effective step.    send (w - received) / |a|  and  |a|

    |a|: how far the steps would have gone along a constant gradient of one, in learning rates
    plain  |a| = tau          momentum rho  |a| = (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)
    proximal  |a| = (1 - (1 - lr mu)^tau) / (lr mu)          Nesterov, and momentum with mu: by the same recursion

Wang, Liu, Liang, Joshi, Poor 2020, arXiv:2007.07481, section 4.  Exact for SGD with one learning rate in a round; clipping
is taken as part of the gradient.  Optimisers that rescale the gradient have no such |a| and are refused.
mu > 0 adds FedProx's term to the gradient, in front of the momentum (in the authors' program behind it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from clients.fedprox import FedProx
from fl.method.optimiser import SGD, LRSchedule
from fl.registry import register


def effective_steps(steps: int, momentum: float = 0.0, nesterov: bool = False, shrink: float = 0.0) -> list[float]:
    """[|a| after 0, 1, ..., steps steps]; `shrink` is learning rate times mu."""
    way, velocity, ways = 0.0, 0.0, [0.0]
    for _ in range(steps):
        gradient = 1.0 - shrink * way
        velocity = momentum * velocity + gradient
        way += gradient + momentum * velocity if nesterov else velocity
        ways.append(way)
    return ways


@register("client", "fednova")
@dataclass(frozen=True, kw_only=True)
class FedNova(FedProx):
    mu: float = 0.0

    sends: ClassVar[tuple[str, ...]] = ("model", "steps")

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.optimiser, SGD):
            name = type(self.optimiser).registered_as
            raise ValueError(f"optimiser: {name!r} rescales gradients, so that steps cannot be normalised; use 'sgd'")
        if isinstance(self.lr, LRSchedule) and self.lr.by == "step":
            raise ValueError("lr: a schedule by step has no one rate to normalise steps by; schedule it by round")

    def finish(self, end):
        steps = torch.as_tensor(end.steps)
        most = int(steps.max())
        lr = float(torch.as_tensor(end.lr_sum).max()) / most if most else 0.0
        sgd = self.optimiser
        ways = effective_steps(most, sgd.momentum, sgd.nesterov, lr * self.mu)
        own = torch.tensor(ways, dtype=torch.float64)[steps].float()
        return {"model": end.delta / own.clamp(min=1.0), "steps": own}, None

    def context_after_training(self, ctx, reply):
        groups = reply.update.groups
        moved = groups["model"] * groups["steps"]
        return super().context_after_training(
            ctx, replace(reply, update=replace(reply.update, groups={"model": moved}))
        )
