"""Normalised networks for clients with few classes: FN (feature normalisation) and LN (layer normalisation).

    FN    z <- sqrt(h) z / max(|z|_2, 1e-12)                        z: the h features in front of the last layer
    LN    a <- (a - mean a) / sqrt(var a + 1e-5)                    after the activation of each hidden layer

Mean and variance (with 1/m) are over all m activations of a sample in the layer: over channels and positions of a map.
Neither has parameters. So a client sends what it sends in FedAvg, and `normalise: none` is FedAvg.

Local steps on one or two classes make features and last layer grow until the clients' models disagree. Normalisation
prevents it: the outputs do not depend on the scale of the layer below. This needs layers without biases (`bias: false`)
and ReLU.

Zhang, Beitollahi, Bie, Chen 2024 (TMLR), arXiv:2308.09565. Another method has the name FedFN (arXiv:2311.13267).
Differs from the paper's program: FN always has the factor sqrt(h), and LN always follows the activation.
Equals FedAvg: normalise=none, equal bits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl.checks import one_of

Normalise: TypeAlias = Literal["none", "feature", "layer"]
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid)
FEATURE_EPS, LAYER_EPS = 1e-12, 1e-5


class FeatureNorm(nn.Module):
    """Scale the features of each sample, (..., h), to the Euclidean norm sqrt(h). Zeros stay zeros.

    >>> [round(number, 6) for number in FeatureNorm()(torch.tensor([[3.0, 4.0]]))[0].tolist()]
    [0.848528, 1.131371]
    """

    def forward(self, z: Tensor) -> Tensor:
        """Return the scaled features."""
        norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return z * (math.sqrt(z.shape[-1]) / norm.clamp_min(FEATURE_EPS))


class SampleNorm(nn.Module):
    """Give all activations of each sample, (B, ...), the mean 0 and the variance 1. Equal activations become zeros.

    >>> [round(number, 4) for number in SampleNorm()(torch.tensor([[1.0, 3.0]]))[0].tolist()]
    [-1.0, 1.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised activations."""
        return F.layer_norm(x, x.shape[1:], eps=LAYER_EPS)


def normalised(layers: Sequence[nn.Module], normalise: Normalise) -> list[nn.Module]:
    """Return a stack of layers with those of FN or LN added.

    >>> [type(layer).__name__ for layer in normalised([nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)], "layer")]
    ['Linear', 'ReLU', 'SampleNorm', 'Linear']

    Args:
        layers: the layers of a network; the last one makes the outputs.
        normalise: "feature" adds a FeatureNorm before the last layer, "layer" a SampleNorm after each activation.
    """
    if normalise == "feature":
        return [*layers[:-1], FeatureNorm(), layers[-1]]
    if normalise == "layer":
        return [new for layer in layers for new in _with_norm(layer)]
    return list(layers)


def _with_norm(layer: nn.Module) -> tuple[nn.Module, ...]:
    return (layer, SampleNorm()) if isinstance(layer, ACTIVATIONS) else (layer,)


def check_normalise(normalise: str, bias: bool) -> None:
    """Check the option of an architecture; log a warning if its layers have biases, which the method does not have."""
    one_of(get_args(Normalise), normalise=normalise)
    if normalise != "none" and bias:
        logging.getLogger(__name__).warning(
            "normalise: %s is published for layers without biases; set bias: false", normalise
        )
