"""FedAsync: the server mixes each client's model into its own when it arrives; late models count less.

    model <- (1 - alpha_t) model + alpha_t w_new,       alpha_t = alpha s(staleness)        s: `strategies/staleness.py`

Xie, Koyejo, Gupta 2019, arXiv:1903.03934, Algorithm 1.  The paper's server is `server: {name: async}`, with a step
for each arrival: models are mixed in the order in which they arrive on the virtual clock, ties by dispatch number.
Several models in one step (`buffered`, or a synchronous server, where all have staleness 0) are mixed one after
another in the order of the cohort: most training samples first, then by id. This order does not depend on the
clients' speed. The maps x -> (1 - a) x + a w have the form x -> c x + v, so they are composed in the reduction tree:
one model in memory.
Differs from the paper: a fixed concurrency in place of a scheduler with a largest staleness.
Usual settings: alpha=0.6 with the polynomial of a=0.5 (the defaults) or the hinge of a=10, b=4.
Equals FedAvg: no setting.  alpha=1 with one client at a time is one chain of local training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl import Meta, Metrics, Params, Reduction, ServerContext, Strategy, checks, register

from .staleness import Kind, check, damping


@dataclass(frozen=True)
class Mixing(Reduction):
    """x -> (1 - a) x + a w for each client in turn, a = alpha s(staleness).

    The value is (c, v) of the composed map c x + v.
    """

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
    """Mix models of clients into the server's model.

    Args:
        alpha: weight of a model without staleness, in (0, 1].
        staleness: how the weight falls with the staleness: `constant`, `polynomial` or `hinge`.
        a: exponent of `polynomial`, slope of `hinge`; at least 0.
        b: staleness up to which `hinge` counts a model in full, in server steps; at least 0.
    """

    alpha: float = 0.6
    staleness: Kind = "polynomial"
    a: float = 0.5
    b: int = 4

    client: ClassVar[str] = "fedasync"

    def __post_init__(self) -> None:
        checks.within("(0, 1]", alpha=self.alpha, hint="it is the weight of a fresh model")
        check(self.staleness, self.a, self.b)

    def averages(self) -> bool:
        return True

    def reduction(self, state: Params, ctx: ServerContext) -> dict[str, Reduction]:
        return {"trained": Mixing(self.alpha, self.staleness, self.a, self.b)}

    def step(self, state: Params, reduced: dict[str, Any], ctx: ServerContext) -> tuple[Params, Metrics]:
        kept, mixed = reduced["trained"]
        return kept * state + mixed, {"kept": kept}
