"""Convolutional networks without normalisation layers, as `nn.Sequential`s: two of ours, four from the literature.

    cnn_small    conv 32, conv 32, pool, conv 64, conv 64, pool, dense 128, dense outputs      3 x 3, no padding
    cnn_tiny     conv 16, pool, conv 32, pool, dense outputs                                   3 x 3, padding 1
    cnn_fedavg   conv 32, pool, conv 64, pool, dense 512, dense outputs                        5 x 5, padding 2
    cnn_leaf     conv 32, pool, conv 64, pool, dense 2048, dense outputs                       5 x 5, padding 2
    cnn_pfllib   conv 32, pool, conv 64, pool, dense 512, dense outputs                        5 x 5, no padding
    cnn_pfl      conv 32, conv 64, pool, dropout 1/4, dense 128, dropout 1/2, dense outputs    3 x 3, no padding

A ReLU follows every layer except the last; pools are maxima over 2 x 2. `normalise: layer` adds a normalisation after
each ReLU, `feature` adds one before the last layer (fl/models/normalise.py). Numbers of parameters: cnn_small 271,786
on 3 x 32 x 32 with 10 outputs, cnn_tiny 6,090 on 1 x 8 x 8 with 10, cnn_fedavg 1,663,370 and cnn_pfllib 582,026 on
1 x 28 x 28 with 10, cnn_leaf 6,603,710 on 1 x 28 x 28 with 62, cnn_pfl 1,626,442 on 3 x 32 x 32 with 10.

cnn_fedavg is the MNIST network of McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, arXiv:1602.05629. cnn_leaf is
the network of LEAF's FEMNIST program (Caldas et al. 2018, arXiv:1812.01097). cnn_pfllib is the FedAvgCNN of PFLlib
(Zhang et al. 2023, arXiv:2312.04992). cnn_pfl is the simple_cnn of pfl-research (Granqvist et al. 2024,
arXiv:2404.06430), with its Glorot uniform initial weights. The others have torch's initial weights, which differ from
those of the TensorFlow originals.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fl.models.dropout import Dropout
from fl.models.normalise import Normalise, check_normalise, normalised
from fl.registry import register


@dataclass(frozen=True, kw_only=True)
class CNN:
    """Base of the convolutional networks.

    Args:
        bias: whether the layers have biases.
        normalise: normalisation without parameters, for clients with few classes: none, feature (FN: the inputs of the
            last layer are scaled to one norm) or layer (LN: after each ReLU). Set bias: false with it.
    """

    bias: bool = True
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        check_normalise(self.normalise, self.bias)

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(*normalised(self.layers(shape, outputs), self.normalise))

    def layers(self, shape: tuple[int, ...], outputs: int) -> list[nn.Module]:
        """Return the layers, without those of `normalise`, for images of this shape (channels, height, width)."""
        raise NotImplementedError

    def conv(self, inputs: int, outputs: int, kernel: int, padding: int = 0) -> list[nn.Module]:
        """Return a convolution and its ReLU."""
        return [nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=self.bias), nn.ReLU()]

    def dense(self, inputs: int, hidden: int, outputs: int) -> list[nn.Module]:
        """Return a dense layer, its ReLU and the last layer, for feature maps of `inputs` numbers."""
        return [
            *(nn.Flatten(), nn.Linear(inputs, hidden, bias=self.bias), nn.ReLU()),
            nn.Linear(hidden, outputs, bias=self.bias),
        ]


@register("model", "cnn_small")
@dataclass(frozen=True, kw_only=True)
class CNNSmall(CNN):
    """Four convolutions and a dense layer, for images of at least 16 x 16 pixels."""

    def layers(self, shape: tuple[int, ...], outputs: int) -> list[nn.Module]:
        channels, height, width = image("cnn_small", shape, 16)
        flat = 64 * _twice_conv_pool(height) * _twice_conv_pool(width)
        return [
            *(*self.conv(channels, 32, 3), *self.conv(32, 32, 3), nn.MaxPool2d(2)),
            *(*self.conv(32, 64, 3), *self.conv(64, 64, 3), nn.MaxPool2d(2)),
            *self.dense(flat, 128, outputs),
        ]


@register("model", "cnn_tiny")
@dataclass(frozen=True, kw_only=True)
class CNNTiny(CNN):
    """Two convolutions, for images of at least 4 x 4 pixels, such as the digits."""

    def layers(self, shape: tuple[int, ...], outputs: int) -> list[nn.Module]:
        channels, height, width = image("cnn_tiny", shape, 4)
        return [
            *(*self.conv(channels, 16, 3, padding=1), nn.MaxPool2d(2)),
            *(*self.conv(16, 32, 3, padding=1), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), outputs, bias=self.bias)),
        ]


@register("model", "cnn_fedavg")
@dataclass(frozen=True, kw_only=True)
class CNNFedAvg(CNN):
    """The MNIST network of McMahan et al., for images of at least 4 x 4 pixels."""

    def layers(self, shape: tuple[int, ...], outputs: int) -> list[nn.Module]:
        return _two_wide_convolutions(self, image("cnn_fedavg", shape, 4), 512, outputs)


@register("model", "cnn_leaf")
@dataclass(frozen=True, kw_only=True)
class CNNLeaf(CNN):
    """LEAF's FEMNIST network, for images of at least 4 x 4 pixels: cnn_fedavg with a wider dense layer."""

    def layers(self, shape: tuple[int, ...], outputs: int) -> list[nn.Module]:
        return _two_wide_convolutions(self, image("cnn_leaf", shape, 4), 2048, outputs)


@register("model", "cnn_pfllib")
@dataclass(frozen=True, kw_only=True)
class CNNPFLlib(CNN):
    """PFLlib's FedAvgCNN, for images of at least 16 x 16 pixels."""

    def layers(self, shape: tuple[int, ...], outputs: int) -> list[nn.Module]:
        channels, height, width = image("cnn_pfllib", shape, 16)
        flat = 64 * _twice_conv_pool(height) * _twice_conv_pool(width)
        return [
            *(*self.conv(channels, 32, 5), nn.MaxPool2d(2)),
            *(*self.conv(32, 64, 5), nn.MaxPool2d(2)),
            *self.dense(flat, 512, outputs),
        ]


@register("model", "cnn_pfl")
@dataclass(frozen=True, kw_only=True)
class CNNPfl(CNN):
    """pfl-research's CIFAR-10 network, for images of at least 6 x 6 pixels.

    Args:
        dropout: whether the network has its two Dropout layers.
    """

    dropout: bool = True

    def layers(self, shape: tuple[int, ...], outputs: int) -> list[nn.Module]:
        channels, height, width = image("cnn_pfl", shape, 6)
        after_pool, after_dense = ([Dropout(p)] if self.dropout else [] for p in (0.25, 0.5))
        layers = [
            *(*self.conv(channels, 32, 3), *self.conv(32, 64, 3), nn.MaxPool2d(2), *after_pool),
            *self.dense(64 * ((height - 4) // 2) * ((width - 4) // 2), 128, outputs),
        ]
        layers[-1:-1] = after_dense
        for layer in layers:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(layer.weight)
        return layers


def _two_wide_convolutions(model: CNN, shape: tuple[int, ...], dense: int, outputs: int) -> list[nn.Module]:
    channels, height, width = shape
    return [
        *(*model.conv(channels, 32, 5, padding=2), nn.MaxPool2d(2)),
        *(*model.conv(32, 64, 5, padding=2), nn.MaxPool2d(2)),
        *model.dense(64 * (height // 4) * (width // 4), dense, outputs),
    ]


def _twice_conv_pool(side: int) -> int:
    """Side of a feature map after two times (two convolutions 3 x 3 or one 5 x 5, pool)."""
    return ((side - 4) // 2 - 4) // 2


def image(model: str, shape: tuple[int, ...], least: int) -> tuple[int, ...]:
    """(channels, height, width) of a sample; ValueError unless it is an image with sides of at least `least` pixels."""
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ValueError(
            f"model: {model} takes images (channels, {least} or more, {least} or more), a sample is {tuple(shape)}"
        )
    return tuple(shape)
