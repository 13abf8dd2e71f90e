"""FedDyn: local training on a tilted and regularised loss, whose optimum agrees with the global one.

    min_w  L_k(w) - <g_k, w> + alpha/2 ||w - received||^2;    then    g_k <- g_k - alpha (w - received)

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama 2021, arXiv:2111.04263, Algorithm 1.  The terms enter as their
gradients; `alpha` comes with the broadcast; the client keeps g_k, which starts at zero.
Differs from the paper: a budget of epochs or steps in place of the exact minimum (as in its experiments).
Equals FedAvg: no setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fl import LocalTraining, Penalty, StepContext, TrainingInputs, TrainingResult, Tree, register, zeros_like


@register("client", "feddyn")
@dataclass(frozen=True, kw_only=True)
class FedDyn(LocalTraining):
    """Local training with dynamic regularisation."""

    receives: ClassVar[tuple[str, ...]] = ("model", "alpha")

    def first_state(self, inputs: TrainingInputs) -> Tree:
        return zeros_like(inputs.received["model"])

    def penalty(self, at: StepContext) -> Penalty | None:
        return Penalty(at.config["alpha"], at.start, -at.state.select(at.phase.trains))

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        delta = end.delta
        return {"model": delta}, end.state - end.config["alpha"] * delta
