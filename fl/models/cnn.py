"""Small convolutional networks without normalisation layers, as plain `nn.Sequential`s.

    cnn_small   conv 32, conv 32, pool, conv 64, conv 64, pool, dense 128, dense outputs     3 x 3, no padding
    cnn_tiny    conv 16, pool, conv 32, pool, dense outputs                                  3 x 3, padding 1

ReLU after every layer but the last; pools are 2 x 2 maxima. cnn_small has 271,786 parameters on 3 x 32 x 32 with 10 outputs,
cnn_tiny 6,090 on 1 x 8 x 8.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fl.registry import register


@register("model", "cnn_small")
@dataclass(frozen=True, kw_only=True)
class CNNSmall:
    """Four convolutions and a dense layer, for images of 16 x 16 and larger."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        channels, height, width = _image("cnn_small", shape, 16)
        flat = 64 * _twice_conv_pool(height) * _twice_conv_pool(width)
        return nn.Sequential(
            *(nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(flat, 128), nn.ReLU(), nn.Linear(128, outputs)),
        )


@register("model", "cnn_tiny")
@dataclass(frozen=True, kw_only=True)
class CNNTiny:
    """Two convolutions, for images of 4 x 4 and larger, such as the digits."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        channels, height, width = _image("cnn_tiny", shape, 4)
        return nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), outputs)),
        )


def _twice_conv_pool(side: int) -> int:
    """The side of a map after two rounds of (conv, conv, pool)."""
    return ((side - 4) // 2 - 4) // 2


def _image(model: str, shape: tuple[int, ...], least: int) -> tuple[int, ...]:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ValueError(
            f"model: {model} takes images (channels, {least} or more, {least} or more), a sample is {tuple(shape)}"
        )
    return tuple(shape)
