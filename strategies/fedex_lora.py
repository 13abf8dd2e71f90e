"""FedEx-LoRA: FedIT, and its averaging error goes into the frozen weights.

    A <- Abar,  B <- Bbar,  W <- W + s E,    E = sum_i p_i B_i A_i - Bbar Abar = sum_i p_i (B_i - Bbar) A_i

Singhal, Ponkshe, Vepakomma 2024, arXiv:2410.09432.  Exact: W + s B A is then W + s sum_i p_i B_i A_i.  Up: r (in +
out) per layer.  Down: the same, and E as factors, K r (in + out) for K clients, or dense, in * out, whichever is
smaller.  The sum of all E is a static group (`lora_math.Base`): a client receives each E that it lacks, or the dense
sum if that is smaller.
Differs from the authors' program: that adds E transposed, which suits weights stored (in, out) only.
Equals FedAvg: no setting; with a cohort of one it is FedIT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl import Broadcast, Metrics, Params, Reduction, ServerContext, Strategy, WeightedMean, adapter, register

from . import lora_math as lora


@dataclass(frozen=True)
class State:
    """The trained tensors, and the frozen weights with their increments."""

    model: Params
    base: lora.Base


@register("strategy", "fedex_lora")
@dataclass(frozen=True, kw_only=True)
class FedExLoRA(Strategy):
    """Average adapters exactly, with increments of the frozen weights.

    Args:
        weights: weights of the mean: `examples` (number of training samples) or `uniform`.
    """

    weights: lora.Weights = "examples"

    client: ClassVar[str] = "fedex_lora"
    example_config: ClassVar[dict[str, Any]] = {
        "model.adapter": {"name": "lora", "rank": 2, "targets": ["1"], "trains": ["3.*"]}
    }

    def __post_init__(self) -> None:
        lora.check_weights(self.weights)

    def init(self, model: Params, ctx: ServerContext) -> State:
        lora.check_adapted(model, products=True)
        return State(model, lora.Base.of(model, ctx.frozen))

    def model(self, state: State) -> Params:
        return lora.with_base(state.model, state.base)

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        return Broadcast(shared=lora.groups(state.model), static=state.base.static)

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        sent = lora.groups(state.model)
        means: dict[str, Reduction] = {group: WeightedMean(self.weights) for group in sent}
        return means | {"model": lora.Products(sent["model"], self.weights, mean=True)}

    def step(self, state: State, reduced: dict[str, Any], ctx: ServerContext) -> tuple[State, Metrics]:
        pooled, model = reduced["model"], state.model
        missed = {
            layer: lora.residual(pooled.pieces[layer], pooled.mean[a], pooled.mean[b])
            for layer, (a, b) in adapter.layers(model).items()
        }
        model = model.replace(pooled.mean)
        if "head" in reduced:
            model = model.added(reduced["head"])
        change = lora.increment(missed, lora.scales(ctx.module, model))
        return State(model, state.base.plus(change, ctx.round)), {}
