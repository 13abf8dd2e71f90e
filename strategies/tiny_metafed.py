"""TinyMetaFed: TinyReptile on a part of the model, of whose change only the largest entries come up.

    global part   phi <- phi + alpha_t * mean_i top_P%(phi_i - phi),    alpha_t = alpha (1 - t / T)
    local part    never sent: each device rebuilds it from some of its samples (clients/tiny_metafed.py)

Ren, Li, Anicic, Runkler 2023, arXiv:2307.06822. `local`: patterns of the local part's names; `share`: P %, as a fraction, of which
floor(share * entries), at least one, go up with their positions; nothing of this holds back what goes down.
Written from the abstract: no program was released. A run's model is the global part beside the first, untrained, local part.
Neutral: none, as clients take single samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl.method.messages import Broadcast
from fl.method.reduction import SparseMean
from fl.registry import register
from fl.tensors.params import Params, match
from strategies.tiny_reptile import TinyReptile


@register("strategy", "tiny_metafed")
@dataclass(frozen=True, kw_only=True)
class TinyMetaFed(TinyReptile):
    local: tuple[str, ...]
    share: float = 0.5

    client: ClassVar[str] = "tiny_metafed"
    example_config: ClassVar[dict[str, Any]] = {**TinyReptile.example_config, "strategy.local": ["3.*"]}

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share: {self.share} is not in (0, 1]; 1 sends the whole change")

    def init(self, model, ctx):
        self.names(model)
        return model

    def names(self, model: Params) -> list[str]:
        """The global part's."""
        local = match(model, self.local)
        names = [name for name in model if name not in local]
        if not names:
            raise ValueError(
                f"local: {list(self.local)} match all of {list(model)}; some must be left to learn together"
            )
        return names

    def broadcast(self, state, ctx):
        names = self.names(state)
        return Broadcast(shared={"model": state.select(names)}, config={"learnt": tuple(names), "share": self.share})

    def reduction(self, state, ctx):
        return SparseMean("uniform")

    def step(self, state, mean, ctx):
        learnt = state.select(self.names(state))
        learnt, metrics = super().step(learnt, Params.expand(learnt.layout, mean), ctx)
        return state.replace(learnt), metrics
