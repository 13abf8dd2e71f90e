"""Gossip's clients: average one's own model with the neighbours', and train.    m_i = x_i + sum_j W_ij (x_j - x_i)

    mix_train   x_i <- m_i after local training                 what is trained is the average
    together    x_i <- m_i + (x_i after local training - x_i)   what is trained is one's own

Lian, Zhang, Zhang, Hsieh, Zhang, Liu 2017, arXiv:1705.09056: `together` with one step is its Algorithm 1, the gradient at x_i.
With many local steps it overshoots where W has eigenvalues well below 0 (a torus has): what neighbours and training both
correct is corrected twice.  Hence mix_train is our default.  To train first and average then is mix_train looked at in between:
m_i is what that one would have.
The model is kept in the client's state and sent to each neighbour; a client predicts with its own x_i, one who has
not trained yet (and the server) with the mean of all.
Loop only: clients have different neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fl.method.local_training import LocalTraining, TrainingInputs
from fl.registry import register
from fl.tensors.params import Params


def mixed(given: TrainingInputs) -> Params:
    """m_i: of models that are all alike the same to the bit."""
    model, own = given.state.clone(), given.state
    for weight, other in zip(given.config["weights"], given.received["neighbours"]):
        model.add_(other - own, alpha=weight)
    return model


@register("client", "gossip")
@dataclass(frozen=True, kw_only=True)
class Gossip(LocalTraining):
    order: Literal["mix_train", "together"] = "mix_train"

    sends: ClassVar[tuple[str, ...]] = ("sent",)
    receives: ClassVar[tuple[str, ...]] = ("neighbours",)

    def __post_init__(self):
        super().__post_init__()
        if self.order not in ("mix_train", "together"):
            raise ValueError(f"order: {self.order!r} is not one of ['mix_train', 'together']")

    def first_state(self, given):
        return given.initial.trained

    def start(self, given):
        return mixed(given) if self.order == "mix_train" else given.state

    def finish(self, end):
        model = end.params if self.order == "mix_train" else mixed(end) + end.delta
        return {"sent": (model,) * len(end.received["neighbours"])}, model

    def predictor(self, ctx):
        return ctx.net(ctx.received["model"] if ctx.state is None else ctx.state)

    def context_after_training(self, ctx, reply):
        return replace(ctx, state=reply.state)
