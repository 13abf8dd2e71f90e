"""What the adaptive server optimisers share (FedAdagrad, FedAdam, FedYogi); they differ in the second moment v alone.

    m <- beta1 m + (1 - beta1) d;   v <- second(v, d^2);   model <- model + lr * m / (sqrt(v) + tau)

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, arXiv:2003.00295, Algorithm 2.  d is the mean update
(local minus broadcast, so it is added), m starts at 0 and v at tau^2, and there is no bias correction, all as in the paper.
Differs from the paper: d is weighted by `num_examples` (Algorithm 2 averages uniformly, the experiments weigh).
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.method.strategy import Strategy
from fl.tensors.params import Params, sqrt, zeros_like


@dataclass(frozen=True)
class State:
    model: Params
    m: Params
    v: Params


@dataclass(frozen=True, kw_only=True)
class Adaptive(Strategy):
    lr: float = 0.1
    beta1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self):
        if not 0 <= self.beta1 < 1:
            raise ValueError(f"beta1: {self.beta1} is not in [0, 1); at 1 no update would ever enter")
        if self.tau <= 0:
            raise ValueError(f"tau: {self.tau} is not positive; it keeps the step finite where updates are zero")

    def second(self, v: Params, square: Params) -> Params:
        """The next v, from the last one and d^2."""
        raise NotImplementedError

    def init(self, model, ctx):
        return State(model, zeros_like(model), zeros_like(model) + self.tau**2)

    def step(self, state, mean, ctx):
        m = self.beta1 * state.m + (1 - self.beta1) * mean
        v = self.second(state.v, mean * mean)
        return State(state.model + self.lr * (m / (sqrt(v) + self.tau)), m, v), {}
