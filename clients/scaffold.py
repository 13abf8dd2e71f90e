"""SCAFFOLD: local steps corrected by control variates.    w <- w - lr * (g - c_i + c);    then a new c_i:

    option 1:  c_i+ = full gradient at the received model    option 2:  c_i+ = c_i - c + (received - w) / sum of the lrs

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, arXiv:1910.06378, Algorithm 1.  Sends dy_i = w - received and
dc_i = c_i+ - c_i, keeps c_i (zeros at first).  Option 2 (the paper's experiments) computes the average gradient from
the change of w, which is exact for plain SGD without clip.  A client that took no step keeps its c_i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from fl import LocalTraining, Params, StepContext, TrainingInputs, TrainingResult, Tree, checks, register, zeros_like


@register("client", "scaffold")
@dataclass(frozen=True, kw_only=True)
class Scaffold(LocalTraining):
    """Local training with control variates.

    Args:
        option: how the new control is made: 1 (full gradient at the received model) or 2 (from the local steps).
    """

    option: Literal[1, 2] = 2

    sends: ClassVar[tuple[str, ...]] = ("model", "control")
    receives: ClassVar[tuple[str, ...]] = ("model", "control")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of((1, 2), option=self.option, hint="1 takes a full gradient, 2 the local steps")

    def first_state(self, inputs: TrainingInputs) -> Tree:
        return zeros_like(inputs.received["control"])

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        return sizes if self.option == 1 else np.zeros_like(sizes)

    def gradient(self, grad: Params, params: Params, at: StepContext) -> Params:
        trains = at.phase.trains
        return grad - at.state.select(trains) + at.received["control"].select(trains)

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        if self.option == 1:
            change = end.full_gradient(end.received["model"]) - end.state
        else:
            lr_sum = torch.as_tensor(end.lr_sum)
            rate = torch.where(lr_sum > 0, 1 / lr_sum, 0.0)
            change = (-end.delta * rate - end.received["control"]) * (lr_sum > 0)
        return {"model": end.delta, "control": change}, end.state + change
