"""FedDyn: local training on a loss tilted and regularised so that its optimum is the global one's.

    min_w  L_k(w) - <g_k, w> + alpha/2 ||w - received||^2;    then    g_k <- g_k - alpha (w - received)

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama 2021, arXiv:2111.04263, Algorithm 1.  The terms enter as their gradient;
`alpha` comes with the broadcast; g_k is kept, zeros at first.  Differs from the paper: a budget of epochs or steps in place
of the exact minimum (as its experiments do).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.local_training import LocalTraining
from fl.registry import register
from fl.tensors.params import zeros_like


@register("client", "feddyn")
@dataclass(frozen=True, kw_only=True)
class FedDyn(LocalTraining):
    receives: ClassVar[tuple[str, ...]] = ("model", "alpha")

    def first_state(self, given):
        return zeros_like(given.received["model"])

    def gradient(self, grad, params, at):
        return grad - at.state.select(at.phase.trains) + at.config["alpha"] * (params - at.start)

    def finish(self, end):
        return {"model": end.delta}, end.state - end.config["alpha"] * end.delta
