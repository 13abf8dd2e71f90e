"""SCAFFOLD: local steps corrected by control variates.    w <- w - lr * (g - c_i + c);    then a new c_i:

    option 1:  c_i+ = full gradient at the received model    option 2:  c_i+ = c_i - c + (received - w) / way

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, arXiv:1910.06378, Algorithm 1.  Sends dy_i = w - received and
dc_i = c_i+ - c_i, keeps c_i (zeros at first).  Option 2 (the paper's experiments) computes the average gradient from
the change of w.  `way` is the length of the way along a constant gradient of one: the sum of the learning rates, as in
the paper, for plain SGD; with momentum FedNova's effective steps times the rate.  Then c_i+ is a weighted mean of the
gradients of all steps, weight decay included; clip makes it smaller.  Option 2 refuses optimisers that rescale
gradients.  A client that took no step keeps its c_i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fl import (
    SGD,
    LocalTraining,
    LRSchedule,
    Penalty,
    StepContext,
    TrainingInputs,
    TrainingResult,
    Tree,
    checks,
    register,
    zeros_like,
)

from .fednova import effective_steps


@register("client", "scaffold")
@dataclass(frozen=True, kw_only=True)
class Scaffold(LocalTraining):
    """Local training with control variates.

    Args:
        option: how the new control is made: 1 (full gradient at the received model, with any optimiser) or 2 (from the
            local steps, with the optimiser `sgd`).
    """

    option: Literal[1, 2] = 2

    sends: ClassVar[tuple[str, ...]] = ("model", "control")
    receives: ClassVar[tuple[str, ...]] = ("model", "control")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of((1, 2), option=self.option, hint="1 takes a full gradient, 2 the local steps")
        if self.option == 2 and not isinstance(self.optimiser, SGD):
            name = getattr(type(self.optimiser), "registered_as", type(self.optimiser).__name__)
            raise ValueError(
                f"optimiser: {name!r} rescales gradients, so the control cannot be made from the local steps; "
                "use `option: 1` or the optimiser 'sgd'"
            )
        if self.option == 2 and self.rates:
            raise ValueError("rates: the control is made from local steps of one learning rate; use `option: 1`")

    def first_state(self, inputs: TrainingInputs) -> Tree:
        return zeros_like(inputs.received["control"])

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        return sizes if self.option == 1 else np.zeros_like(sizes)

    def penalty(self, at: StepContext) -> Penalty | None:
        trains = at.phase.trains
        return Penalty(slope=at.received["control"].select(trains) - at.state.select(trains))

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        delta = end.delta
        if self.option == 1:
            change = end.full_gradient(end.received["model"]) - end.state
        else:
            way = self.way(end)
            change = (delta * -torch.where(way > 0, 1 / way, 0.0)).sub_(end.received["control"])
            if not (way > 0).all():
                change.mul_(way > 0)
        return {"model": delta, "control": change}, end.state + change

    def way(self, end: TrainingResult) -> Tensor:
        """Return the length of the way along a constant gradient of one, () or (C,)."""
        sgd, lr_sum = self.optimiser, torch.as_tensor(end.lr_sum)
        assert isinstance(sgd, SGD)
        if not sgd.momentum:
            return lr_sum
        steps = torch.as_tensor(end.steps)
        most = int(steps.max())
        if isinstance(self.lr, LRSchedule) and self.lr.by == "step":
            return torch.tensor(effective_steps(most, sgd.momentum, sgd.nesterov, rate=self.lr.at)).to(lr_sum)[steps]
        effective = torch.tensor(effective_steps(most, sgd.momentum, sgd.nesterov)).to(lr_sum)[steps]
        return effective * (lr_sum / steps.clamp(min=1))
