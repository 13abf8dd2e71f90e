"""Stacks of linear layers: softmax regression and the multi-layer perceptron, as plain `nn.Sequential`s.

    softmax   flatten -> d x outputs                                    d is the size of a sample
    mlp       flatten -> (d x h_1, phi, dropout) -> ... -> h_n x outputs

`outputs` are scores; the softmax itself belongs to the task's loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from fl.models.nn import Dropout
from fl.registry import register

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


@register("model", "softmax")
@dataclass(frozen=True, kw_only=True)
class Softmax:
    """Multinomial logistic regression: (d + 1) * outputs parameters."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs))


@register("model", "mlp")
@dataclass(frozen=True, kw_only=True)
class MLP:
    """Hidden layers of the widths `hidden`, each followed by the activation and, if `dropout` > 0, by dropout."""

    hidden: tuple[int, ...] = (200,)
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    dropout: float = 0.0

    def __post_init__(self):
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden: {self.hidden} has a width that is not positive")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation: {self.activation!r} is not one of {list(_ACTIVATIONS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(shape)
        for hidden in self.hidden:
            layers += [nn.Linear(width, hidden), _ACTIVATIONS[self.activation]()]
            layers += [Dropout(self.dropout)] if self.dropout else []
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, outputs))
