"""Residual networks for small images: a 3 x 3 stem without pooling, stages of basic blocks, mean pooling, linear head.

    block    x -> relu(n2(conv2(relu(n1(conv1 x)))) + s(x)),  3 x 3; s: identity, or n(conv 1 x 1) if the shape changes
    resnet8  stem w, one block each of w, 2w, 4w channels        w = 16:  78,042 parameters (3 x 32 x 32, 10 outputs)
    resnet18 stem w, two blocks each of w, 2w, 4w, 8w channels   w = 64:  11,173,962

Each stage except the first halves the sides. He, Zhang, Ren, Sun 2016, arXiv:1512.03385: resnet8 is their CIFAR network
of depth 6n + 2 with n = 1, in the form of FedDF's program (Lin, Kong, Stich, Jaggi 2020, arXiv:2006.07242): its
shortcuts are convolutions, the paper pads with zeros. The wider ResNet-8 with 64, 128, 256 channels is `width: 64`.
resnet18 is the ImageNet network with a stem for 32 x 32. Convolutions have no biases; their initial weights are normal
with variance 2 / (positions of the kernel * output channels). The head has torch's initial weights.

Running statistics of batch normalisation are not part of a gradient step, so federated learning uses GroupNorm instead
(Hsieh, Phanishayee, Mutlu, Gibbons 2020, arXiv:1910.00189), with two groups (Reddi et al. 2021, arXiv:2003.00295, on
CIFAR-100).

`normalise` replaces n, n1 and n2 by normalisation without parameters (fl/models/normalise.py): FN in front of the head,
or LN after each ReLU.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from fl.checks import one_of, positive
from fl.models.architectures.cnn import image
from fl.models.normalise import FeatureNorm, Normalise, check_normalise, normalised
from fl.registry import register


class Block(nn.Module):
    """Two convolutions and a shortcut.

    Args:
        inputs: number of channels before the block.
        outputs: number of channels after it.
        stride: stride of the first convolution.
        norm: returns the normalisation for a number of channels.
        activation: returns the ReLU, with what follows it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        norm: Callable[[int], nn.Module],
        activation: Callable[[], nn.Module],
    ):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        self.relu, self.shortcut, self.stride = activation(), nn.Sequential(), stride
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu(self.norm1(self.conv1(x)))
        # positions are skipped here, not by the convolution: oneDNN's backward pass of a strided 1 x 1 convolution
        # corrupts memory in channels-last format with fewer than 16 channels (uxlfoundation/oneDNN issue 6035)
        kept = x[..., :: self.stride, :: self.stride]
        return self.relu(self.norm2(self.conv2(inner)) + self.shortcut(kept))


@dataclass(frozen=True, kw_only=True)
class ResNet:
    """Base of the residual networks.

    Args:
        norm: normalisation with a scale and a shift of each channel: group (`groups` groups), layer (one group), batch
            (running statistics) or none. Default: group, with `normalise` none.
        groups: number of groups; it divides the width.
        width: channels of the first stage.
        bias: whether the last layer has a bias. The convolutions have none.
        normalise: normalisation without parameters in place of `norm`, for clients with few classes: none, feature
            (FN: the inputs of the last layer are scaled to one norm) or layer (LN: after each ReLU). Set bias: false
            with it.
    """

    norm: Literal["group", "layer", "batch", "none"] | None = None
    groups: int = 2
    width: int = 16
    bias: bool = True
    normalise: Normalise = "none"

    blocks: ClassVar[tuple[int, ...]]  # per stage
    registered_as: ClassVar[str]

    def __post_init__(self) -> None:
        one_of(("group", "layer", "batch", "none"), norm=self.norm)
        check_normalise(self.normalise, self.bias)
        if self.normalise != "none" and self.norm not in (None, "none"):
            raise ValueError(f"norm: {self.norm} beside normalise: {self.normalise}, which replaces it; leave norm out")
        positive(width=self.width)
        if self.groups < 1 or (self.kind_of_norm == "group" and self.width % self.groups):
            raise ValueError(f"groups: {self.groups} does not divide the {self.width} channels of the first stage")

    @property
    def kind_of_norm(self) -> str:
        """The argument `norm`, or its default."""
        return self.norm or ("group" if self.normalise == "none" else "none")

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        image(self.registered_as, shape, 1 << (len(self.blocks) - 1))
        stem = nn.Conv2d(shape[0], self.width, 3, 1, 1, bias=False)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            stem=nn.Sequential(stem, self._norm(self.width), self._relu())
        )
        channels = self.width
        for stage, count in enumerate(self.blocks):
            wide, stride = self.width << stage, 1 if stage == 0 else 2
            first, rest = (
                Block(channels, wide, stride, self._norm, self._relu),
                [Block(wide, wide, 1, self._norm, self._relu) for _ in range(count - 1)],
            )
            layers[f"stage{stage + 1}"] = nn.Sequential(first, *rest)
            channels = wide
        layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
        layers |= {"feature_norm": FeatureNorm()} if self.normalise == "feature" else {}
        layers["head"] = nn.Linear(channels, outputs, bias=self.bias)
        module = nn.Sequential(layers)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=math.sqrt(2 / (math.prod(layer.kernel_size) * layer.out_channels)))
        return module

    def _norm(self, channels: int) -> nn.Module:
        if self.kind_of_norm == "none":
            return nn.Identity()
        if self.kind_of_norm == "batch":
            return nn.BatchNorm2d(channels)
        return nn.GroupNorm(self.groups if self.kind_of_norm == "group" else 1, channels)

    def _relu(self) -> nn.Module:
        return nn.Sequential(*normalised([nn.ReLU()], "layer")) if self.normalise == "layer" else nn.ReLU()


@register("model", "resnet8")
@dataclass(frozen=True, kw_only=True)
class ResNet8(ResNet):
    """Three stages of one block, 16, 32 and 64 channels wide, for images of at least 4 x 4 pixels."""

    blocks: ClassVar[tuple[int, ...]] = (1, 1, 1)


@register("model", "resnet18")
@dataclass(frozen=True, kw_only=True)
class ResNet18(ResNet):
    """Four stages of two blocks, 64, 128, 256 and 512 channels wide, for images of at least 8 x 8 pixels."""

    width: int = 64

    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)
