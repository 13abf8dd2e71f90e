"""FedAsync: models of clients are mixed into the server's as they come, late ones less.

    model <- (1 - alpha_t) model + alpha_t w_new,        alpha_t = alpha s(staleness)

Xie, Koyejo, Gupta 2019, arXiv:1903.03934, Algorithm 1; s is `strategies/staleness.py`'s.  The paper's server is
`server: {name: async}`, a step for each arrival: models are mixed in the order in which they come on the virtual clock, ties by
dispatch number.  Several in a step (`buffered`, or a synchronous server, where all have staleness 0) are mixed one after
another in the order of the cohort: most training samples first, then by id; it depends on nobody's speed.  As
x -> (1 - a) x + a w are maps x -> c x + v, they are put together in the tree of reductions: one model in memory.
Differs from the paper: concurrency in place of a scheduler that is told the largest staleness.
Usual settings: alpha=0.6 with the polynomial of a=0.5 (our defaults) or the hinge of a=10, b=4.
Neutral: none is FedAvg.  alpha=1 with one client under way is one chain of local training after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl.method.reduction import Meta, Reduction
from fl.method.strategy import Strategy
from fl.registry import register
from fl.tensors.params import Params
from strategies.staleness import Kind, check, damping


@dataclass(frozen=True)
class Mixing(Reduction):
    """x -> (1 - a) x + a w for each client in turn, a = alpha s(staleness); the value is (c, v) of their composition c x + v."""

    alpha: float
    staleness: Kind
    a: float
    b: int

    def lift(self, value: Params, meta: Meta) -> tuple[float, Params]:
        weight = self.alpha * damping(self.staleness, int(meta.staleness), self.a, self.b)
        return 1.0 - weight, weight * value

    def merge(self, a: tuple[float, Params], b: tuple[float, Params]) -> tuple[float, Params]:
        return b[0] * a[0], a[1].mul_(b[0]).add_(b[1])


@register("strategy", "fedasync")
@dataclass(frozen=True, kw_only=True)
class FedAsync(Strategy):
    alpha: float = 0.6
    staleness: Kind = "polynomial"
    a: float = 0.5
    b: int = 4

    client: ClassVar[str] = "fedasync"

    def __post_init__(self):
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: {self.alpha} is not in (0, 1]; it is the weight of a fresh model")
        check(self.staleness, self.a, self.b)

    def averages(self):
        return True

    def reduction(self, state, ctx):
        return {"trained": Mixing(self.alpha, self.staleness, self.a, self.b)}

    def step(self, state, reduced, ctx) -> tuple[Params, dict[str, Any]]:
        kept, mixed = reduced["trained"]
        return kept * state + mixed, {"kept": kept}
