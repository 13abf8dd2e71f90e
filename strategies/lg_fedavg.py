"""LG-FedAvg: each client has its own body; the layers on top of it are averaged.

    (u_i, v) <- local steps from (u_i, v);    v <- v + sum_i p_i (v_i - v)

Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency 2020, arXiv:2001.01523.  Traffic per client and round:
|v| floats each way.
Differs from the paper: no rounds of FedAvg before (start from such a run with `model.init`), and no auxiliary losses on
the representation.
Equals FedAvg: shared=("*",), equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl import FedAvgEquivalent, Params, Plain, ServerContext, ServerOptimiser, head_names, match, register

from .partial import Partial, without


@register("strategy", "lg_fedavg")
@dataclass(frozen=True, kw_only=True)
class LGFedAvg(Partial):
    """Average the head of the model; the body is private.

    Args:
        shared: glob patterns of the tensors that are averaged. Default: the last linear layer. `["*"]` is FedAvg.
        weights: weights of the mean: `examples` (number of training samples) or `uniform`.
        server_optimiser: how the server moves the shared part along the mean update. `plain` is the paper's.
    """

    private: ClassVar[None] = None  # type: ignore[misc]  # derived from `shared`
    shared: tuple[str, ...] | None = None
    weights: Literal["examples", "uniform"] = "examples"
    server_optimiser: ServerOptimiser = Plain()

    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"shared": ("*",), "weights": "examples"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared == ():
            raise ValueError("shared: () shares nothing; use strategy local")

    def private_names(self, model: Params, ctx: ServerContext) -> list[str]:
        shared = head_names(ctx.module, model) if self.shared is None else match(model, self.shared)
        return without(list(model), shared)
