"""Stacks of linear layers: softmax regression and the multi-layer perceptron, as plain `nn.Sequential`s.

    softmax   flatten -> d x outputs                                    d is the size of a sample
    mlp       flatten -> (d x h_1, phi, dropout) -> ... -> h_n x outputs

The outputs are scores; the softmax is part of the task's loss. `normalise` adds layers to mlp (fl/models/normalise.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from fl.checks import one_of, within
from fl.models.dropout import Dropout
from fl.models.normalise import Normalise, check_normalise, normalised
from fl.registry import register

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


@register("model", "softmax")
@dataclass(frozen=True, kw_only=True)
class Softmax:
    """Multinomial logistic regression: (d + 1) * outputs parameters for d features."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs))


@register("model", "mlp")
@dataclass(frozen=True, kw_only=True)
class MLP:
    """Multi-layer perceptron.

    Args:
        hidden: width of each hidden layer.
        activation: relu, tanh or sigmoid, after each hidden layer.
        dropout: probability of Dropout after each hidden layer, in [0, 1); 0 leaves the layers out.
        bias: whether the layers have biases.
        normalise: normalisation without parameters, for clients with few classes: none, feature (FN: the last hidden
            layer's outputs are scaled to one norm) or layer (LN: after each activation). Set bias: false with it.
    """

    hidden: tuple[int, ...] = (200,)
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    dropout: float = 0.0
    bias: bool = True
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden: {self.hidden} has a width that is not positive")
        one_of(_ACTIVATIONS, activation=self.activation)
        within("[0, 1)", dropout=self.dropout)
        check_normalise(self.normalise, self.bias)
        if self.normalise != "none" and not self.hidden:
            raise ValueError(f"normalise: {self.normalise} needs a hidden layer; give `hidden` a width, or set none")

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(shape)
        for hidden in self.hidden:
            layers += [nn.Linear(width, hidden, bias=self.bias), _ACTIVATIONS[self.activation]()]
            layers += [Dropout(self.dropout)] if self.dropout else []
            width = hidden
        layers.append(nn.Linear(width, outputs, bias=self.bias))
        return nn.Sequential(*normalised(layers, self.normalise))
