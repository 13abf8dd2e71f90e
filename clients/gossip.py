"""Gossip's clients: average the own model with the neighbours' models, and train.    m_i = x_i + sum_j W_ij (x_j - x_i)

    mix_train   x_i <- m_i after local training                 local training starts from the average
    together    x_i <- m_i + (x_i after local training - x_i)   local training starts from the own model

Lian, Zhang, Zhang, Hsieh, Zhang, Liu 2017, arXiv:1705.09056: `together` with one step is its Algorithm 1, the
gradient at x_i. With many local steps it overshoots if W has eigenvalues well below 0 (as on a torus), because
neighbours and training make the same correction twice.  Hence the default mix_train.  Training before averaging is
the same sequence as mix_train, observed between the two: m_i is its model. The client keeps its model and sends it to
each neighbour. It predicts with x_i; a client that has not trained yet (and the server) predicts with the mean of
all.  Loop only: clients have different neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from fl import ClientContext, LocalTraining, Params, Reply, TrainingInputs, TrainingResult, Tree, checks, register


def mixed(inputs: TrainingInputs) -> Params:
    """Return m_i. If all models are equal, m_i has their bits."""
    model, current = inputs.state.clone(), inputs.state
    for weight, other in zip(inputs.config["weights"], inputs.received["neighbours"]):
        model.add_(other - current, alpha=weight)
    return model


@register("client", "gossip")
@dataclass(frozen=True, kw_only=True)
class Gossip(LocalTraining):
    """Averaging with neighbours, and local training.

    Args:
        order: `mix_train` trains from the average; `together` adds the change of the own model to the average.
    """

    order: Literal["mix_train", "together"] = "mix_train"

    sends: ClassVar[tuple[str, ...]] = ("sent",)
    receives: ClassVar[tuple[str, ...]] = ("neighbours",)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(("mix_train", "together"), order=self.order)

    def first_state(self, inputs: TrainingInputs) -> Tree:
        return inputs.initial.trained

    def start(self, inputs: TrainingInputs) -> Params:
        return mixed(inputs) if self.order == "mix_train" else inputs.state

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        model = end.params if self.order == "mix_train" else mixed(end) + end.delta
        return {"sent": (model,) * len(end.received["neighbours"])}, model

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        return ctx.net(ctx.received["model"] if ctx.state is None else ctx.state)

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        return replace(ctx, state=reply.state)
