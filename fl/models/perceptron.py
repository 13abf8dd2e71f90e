"""A perceptron as plain tensors, for methods whose server and clients hold different parts of one model.

h <- relu(W_i h + b_i) for each layer i but the last, which has no activation
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, relu


def first_weights(sizes: Sequence[int], generator: torch.Generator, prefix: str = "") -> dict[str, Tensor]:
    """Draw weights and biases by name, `{prefix}{i}.weight` and `{prefix}{i}.bias`, as torch.nn.Linear does.

    >>> weights = first_weights([3, 5, 2], torch.Generator().manual_seed(0))
    >>> {name: tuple(tensor.shape) for name, tensor in weights.items()}
    {'0.weight': (5, 3), '0.bias': (5,), '1.weight': (2, 5), '1.bias': (2,)}

    Args:
        sizes: numbers of inputs, of hidden units, and of outputs.
        generator: source of the draws, uniform in +-1 / sqrt(inputs of the layer).
        prefix: start of the names.
    """
    weights: dict[str, Tensor] = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        bound = 1 / math.sqrt(inputs)
        for name, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            weights[f"{prefix}{i}.{name}"] = (2 * torch.rand(shape, generator=generator) - 1) * bound
    return weights


def outputs(weights: Mapping[str, Tensor], x: Tensor, prefix: str = "") -> Tensor:
    """Return the outputs (B, K) for inputs x (B, ...), which are flattened."""
    h, i = x.flatten(1).float(), 0
    while f"{prefix}{i}.weight" in weights:
        h = linear(relu(h) if i else h, weights[f"{prefix}{i}.weight"], weights[f"{prefix}{i}.bias"])
        i += 1
    return h
