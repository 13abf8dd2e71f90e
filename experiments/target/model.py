"""Two small networks with BatchNorm, whose running moments the inversion matches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class MLPNorm:
    """A perceptron with BatchNorm before each ReLU.

    Args:
        hidden: width of each hidden layer.
    """

    hidden: tuple[int, ...] = (100, 100)

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(shape)
        for hidden in self.hidden:
            layers += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, outputs))


@dataclass(frozen=True, kw_only=True)
class CNNTinyNorm:
    """cnn_tiny with BatchNorm after each convolution, for images of at least 4 x 4 pixels."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        channels, height, width = shape
        return nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), outputs)),
        )
