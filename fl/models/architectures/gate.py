"""A gate over features: a small adapter on top of a frozen encoder.

    v' = v * softmax(W_2 tanh(W_1 v + b_1) + b_2),    divided by its norm        2 (D^2 + D) parameters

The model of Fed-MP (arXiv:2404.01232): v' is compared with features of class descriptions, so there is no head. The
softmax is 1 / D on average, so only directions mean something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fl.registry import register


class GatedFeatures(nn.Module):
    """The module of `Gate`, for `width` features."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.first.weight.dtype)
        return F.normalize(x * self.second(self.first(x).tanh()).softmax(-1), dim=-1)


@register("model", "gate")
@dataclass(frozen=True, kw_only=True)
class Gate:
    """A softmax gate over features; it returns gated features of unit length, and no scores."""

    head: ClassVar[bool] = False  # the outputs are features

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        if len(shape) != 1:
            raise ValueError(f"model: gate takes features (D,), a sample is {tuple(shape)}")
        return GatedFeatures(shape[0])
