"""Conv4, the encoder of few-shot learning: four blocks of convolution, normalisation, ReLU and pooling.

    C x H x W  ->  D = width * (H // 16) * (W // 16)            28 x 28 -> 64, 84 x 84 -> 1600 at width 64

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv:1606.04080; Snell, Swersky, Zemel 2017,
arXiv:1703.05175. At width 64 it has 111,936 parameters for one channel and 113,088 for three, and 512 running
statistics.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fl.checks import one_of, positive
from fl.models.architectures.cnn import image
from fl.models.section import fill, stored
from fl.registry import register

BLOCKS = ("block1", "block2", "block3", "block4")
GROUPS = 8


@register("model", "conv4")
@dataclass(frozen=True, kw_only=True)
class Conv4:
    """Conv4, for images of at least 16 x 16 pixels. The outputs are the embedding, or with `head` the classes.

    Args:
        width: channels of each block.
        norm: batch (running statistics), group (8 groups) or none.
        head: whether a linear classifier follows the embedding.
        encoder: safetensors file of a trained conv4 without head, or the directory of the run that made it. With
            `norm: none`, its batch normalisation is folded into the convolutions; `model.freeze: [block*]` then trains
            the head only.
    """

    width: int = 64
    norm: Literal["batch", "group", "none"] = "batch"
    head: bool = False
    encoder: str | None = None

    def __post_init__(self) -> None:
        positive(width=self.width)
        one_of(("batch", "group", "none"), norm=self.norm)
        if self.norm == "group" and self.width % GROUPS:
            raise ValueError(f"width: {self.width} is not a multiple of {GROUPS}, the number of groups of norm: group")

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        channels, height, width = image("conv4", shape, 16)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name in BLOCKS:
            layers[name] = self._block(channels)
            channels = self.width
        layers["flatten"] = nn.Flatten()
        if self.head:
            layers["head"] = nn.Linear(self.width * (height // 16) * (width // 16), outputs)
        module = nn.Sequential(layers)
        if self.encoder:
            _fill(module, Path(self.encoder), self.norm)
        return module

    def _block(self, channels: int) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(channels, self.width, 3, padding=1))
        if self.norm != "none":
            layers["norm"] = nn.BatchNorm2d(self.width) if self.norm == "batch" else nn.GroupNorm(GROUPS, self.width)
        return nn.Sequential(OrderedDict(layers, relu=nn.ReLU(), pool=nn.MaxPool2d(2)))


def fold(tensors: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Fold a conv4's batch normalisation (with running statistics) into its convolutions; predictions stay the same.

    s = gamma / sqrt(var + eps);    W <- s W,    b <- s (b - mean) + beta            per output channel
    """
    folded: dict[str, Tensor] = {}
    for block in BLOCKS:
        own = {n.removeprefix(f"{block}."): t.double() for n, t in tensors.items() if n.startswith(f"{block}.")}
        scale = own["norm.weight"] / torch.sqrt(own["norm.running_var"] + eps)
        weight = own["conv.weight"] * scale.view(-1, 1, 1, 1)
        bias = scale * (own["conv.bias"] - own["norm.running_mean"]) + own["norm.bias"]
        folded |= {f"{block}.conv.weight": weight, f"{block}.conv.bias": bias}
    return {name: tensor.to(tensors[name].dtype) for name, tensor in folded.items()}


def _fill(module: nn.Module, path: Path, norm: str) -> None:
    """Copy the blocks' tensors from a file."""
    tensors = stored(path, "encoder")
    if norm == "none" and "block1.norm.running_var" in tensors:
        tensors = fold(tensors)
    named = (*module.named_parameters(), *module.named_buffers())
    own = {n: t for n, t in named if n.startswith("block") and t.is_floating_point()}
    fill(own, tensors, f"encoder: {path}", "set the same width, and norm: none to fold")
