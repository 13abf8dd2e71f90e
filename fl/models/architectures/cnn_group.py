"""Two convolutions with GroupNorm, as an encoder or a classifier, and an autoencoder on top of it.

    cnn_group      conv w, GroupNorm, ReLU, pool, conv 2w, GroupNorm, ReLU, pool, dense outputs        3 x 3, padding 1
    autoencoder    x minus the reconstruction dense, ReLU, dense(cnn_group(x)), flattened

Statistics of GroupNorm are those of one sample, so nothing of a client's data is in the model's tensors beside its
parameters (Hsieh, Phanishayee, Mutlu, Gibbons 2020, arXiv:1910.00189). cnn_group has 14,144 parameters on 1 x 14 x 14
with 32 outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fl.checks import positive
from fl.models.architectures.cnn import image
from fl.registry import register


@register("model", "cnn_group")
@dataclass(frozen=True, kw_only=True)
class CNNGroup:
    """Two convolutions with GroupNorm, for images of at least 4 x 4 pixels.

    Args:
        width: channels of the first convolution, positive; the second has twice as many.
        groups: groups of GroupNorm; it divides the width.
    """

    width: int = 16
    groups: int = 4

    def __post_init__(self) -> None:
        positive(width=self.width, groups=self.groups)
        if self.width % self.groups:
            raise ValueError(f"groups: {self.groups} does not divide the {self.width} channels of the first layer")

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        channels, height, width = image("cnn_group", shape, 4)
        flat = 2 * self.width * (height // 4) * (width // 4)
        first, second = self._block(channels, self.width), self._block(self.width, 2 * self.width)
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(flat, outputs))

    def _block(self, inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        return [conv, nn.GroupNorm(self.groups, outputs), nn.ReLU(), nn.MaxPool2d(2)]


class Residuals(nn.Module):
    """The module of `Autoencoder`: what it cannot reconstruct.

    Args:
        encoder: x (B, ...) -> features (B, D).
        decoder: features -> x, flattened.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) - self.decoder(self.encoder(x))


@register("model", "autoencoder")
@dataclass(frozen=True, kw_only=True)
class Autoencoder(CNNGroup):
    """An autoencoder of images that returns x minus its reconstruction, for `task: one_class`.

    Args:
        hidden: hidden units of the decoder, positive.
    """

    hidden: int = 128

    head: ClassVar[bool] = False  # the outputs are pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(hidden=self.hidden)

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        encoder = super().build(shape, outputs)
        decoder = nn.Sequential(nn.Linear(outputs, self.hidden), nn.ReLU(), nn.Linear(self.hidden, math.prod(shape)))
        return Residuals(encoder, decoder)
