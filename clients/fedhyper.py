"""FedHyper's client: local steps at a rate that the server scales (sl), or that each step adapts (cl).

    sl    rate = clip(lr beta, lr_low, lr_high)                     beta comes with the broadcast
    cl    w <- w + s_k,    s_k = -lr b_{k-1} g,    b_{-1} = b_0 = 1
          b_k = clip(b_{k-1} min(1.1, 1 + <s_k, s_{k-1}> + epsilon <s_k, v>), 0.1, 10)              for k >= 1

b starts at 1 in each round.  v is the server's last direction, zeros in round 0.  Inner products are over all trained
tensors, in float64.  Wang, Wang, Li 2024 (ICLR), arXiv:2310.03156; the factor is that of the authors' program, which
skips the first batch of each epoch.  If the server sends neither beta nor v (mode: g), this is local SGD.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from fl import LocalTraining, Optimiser, Params, Phase, TrainingInputs, checks, dot, register, zeros_like

GROWTH, LEAST, MOST = 1.1, 0.1, 10.0  # largest factor of b in a step, and bounds of b


@dataclass(frozen=True, eq=False)
class HypergradientSGD(Optimiser):
    """SGD with a rate that grows where successive steps agree.

    >>> w, grad, v = (Params.of({"w": torch.tensor([value])}) for value in (0.0, -2.0, 0.0))
    >>> rule = HypergradientSGD(v, epsilon=0.01)
    >>> memory = rule.state(w)
    >>> rule.step(w, grad, memory, lr=0.1, t=0)
    >>> rule.step(w, 1.5 * grad, memory, lr=0.1, t=1)
    >>> round(float(memory["factor"]), 6)
    1.06

    Args:
        direction: the server's last direction v, of the trained tensors.
        epsilon: weight of <s, v>.
    """

    direction: Params
    epsilon: float

    def state(self, params: Params) -> dict[str, Any]:
        return {"last": zeros_like(params), "factor": torch.ones(params.batch, dtype=torch.float64)}

    def step(self, params: Params, grad: Params, state: dict[str, Any], lr: float, t: int) -> None:
        factor, last = state["factor"], state["last"]
        change = grad * (-lr * factor).float()
        params.add_(change)
        if t:
            inner = dot(change, last, torch.float64) + self.epsilon * dot(change, self.direction, torch.float64)
            factor.mul_((1 + inner).clamp(max=GROWTH)).clamp_(LEAST, MOST)
        last.copy_(change)


@register("client", "fedhyper")
@dataclass(frozen=True, kw_only=True)
class FedHyper(LocalTraining):
    """Local steps at the rate that FedHyper's mode asks for.

    Args:
        lr_low: smallest learning rate in mode sl, above 0.
        lr_high: largest learning rate in mode sl, at least `lr_low`.
    """

    lr_low: float = 0.001
    lr_high: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(lr_low=self.lr_low)
        checks.at_least(self.lr_low, lr_high=self.lr_high, hint="it is the largest rate, `lr_low` the smallest")

    def phases_of(self, inputs: TrainingInputs, round_: int, rounds: int) -> tuple[Phase, ...]:
        (phase,) = self.phases(round_, rounds)
        if "beta" in inputs.config:
            rate = min(max(phase.lr * inputs.config["beta"], self.lr_low), self.lr_high)
            phase = replace(phase, lr=rate)
        if "direction" in inputs.received:
            direction = inputs.received["direction"].select(self.trains)
            phase = replace(phase, optimiser=HypergradientSGD(direction, inputs.config["epsilon"]))
        return (phase,)
