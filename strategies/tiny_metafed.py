"""TinyMetaFed: TinyReptile on a part of the model; only the largest changes come up.

    global part   phi <- phi + alpha_t * mean_i top_P%(phi_i - phi),    alpha_t = alpha (1 - t / T)
    local part    never sent: each device rebuilds it from some of its samples (clients/tiny_metafed.py)

Ren, Li, Anicic, Runkler 2023, arXiv:2307.06822.  floor(share * entries) changes, at least one, go up with their
positions; the whole global part goes down.  The run's model is the global part beside the initial local part. Written
from the abstract: no program was released.
Equals FedAvg: no setting, as clients take single samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fl import Broadcast, Metrics, Params, ServerContext, SparseMean, checks, match, register

from .tiny_reptile import TinyReptile


@register("strategy", "tiny_metafed")
@dataclass(frozen=True, kw_only=True)
class TinyMetaFed(TinyReptile):
    """TinyReptile on the global part of the model.

    Args:
        local: glob patterns of the local part's tensors.
        share: share of the entries of the change that each client sends, in (0, 1]. 1 sends all.
    """

    local: tuple[str, ...]
    share: float = 0.5

    client: ClassVar[str] = "tiny_metafed"
    example_config: ClassVar[dict[str, Any]] = {**TinyReptile.example_config, "strategy.local": ["3.*"]}

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.within("(0, 1]", share=self.share, hint="1 sends the whole change")

    def init(self, model: Params, ctx: ServerContext) -> Params:
        self.names(model)
        return model

    def names(self, model: Params) -> list[str]:
        """Return the names of the global part's tensors."""
        local = match(model, self.local)
        names = [name for name in model if name not in local]
        if not names:
            raise ValueError(
                f"local: {list(self.local)} match all of {list(model)}; leave some tensors to learn together"
            )
        return names

    def broadcast(self, state: Params, ctx: ServerContext) -> Broadcast:
        names = self.names(state)
        return Broadcast(shared={"model": state.select(names)}, config={"learnt": tuple(names), "share": self.share})

    def reduction(self, state: Params, ctx: ServerContext) -> SparseMean:
        return SparseMean("uniform")

    def step(self, state: Params, reduced: Tensor, ctx: ServerContext) -> tuple[Params, Metrics]:
        learnt = state.select(self.names(state))
        learnt, metrics = super().step(learnt, Params.expand(learnt.layout, reduced), ctx)
        return state.replace(learnt), metrics
