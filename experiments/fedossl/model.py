"""cnn_tiny with GroupNorm after each convolution."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class CNNTinyNorm:
    """Two convolutions with group normalisation (4 groups), for images whose sides are multiples of 4."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        channels, height, width = shape
        return nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), outputs)),
        )
