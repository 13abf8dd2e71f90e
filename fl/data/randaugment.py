"""RandAugment: a few operations per sample, drawn from a list.  Cubuk, Zoph, Shlens, Le 2020, arXiv:1909.13719

    x -> op_n(... op_1(x))        each op drawn uniformly, with a strength drawn uniformly from [-magnitude, magnitude]

Operations (strength s): identity; autocontrast; brightness x (1 + 0.9 s); contrast mean + (x - mean) (1 + 0.9 s);
posterize to 8 - 4 |s| bits; solarize above 1 - |s|; rotate by 30 s degrees; shear by 0.3 s and translate by 0.3 s of a
side, along x or y. They work on pixels scaled from the sample's smallest and largest value to [0, 1], and the result is
scaled back, so normalised images can be augmented, too. Pixels from outside are zeros of the original scale.
Differs from the paper: strengths are drawn, as in FixMatch (arXiv:2001.07685), and colour, sharpness and equalize are
left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fl.checks import positive, within
from fl.data.augment import Augment, mapped_pixels, require_images, rotated
from fl.registry import register
from fl.tensors import random


def _strengths(s: np.ndarray) -> Tensor:
    return torch.as_tensor(s.astype(np.float32)).view(-1, 1, 1, 1)


def _autocontrast(x: Tensor, s: np.ndarray) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-6), x)


def _brightness(x: Tensor, s: np.ndarray) -> Tensor:
    return (x * (1 + 0.9 * _strengths(s))).clamp(0, 1)


def _contrast(x: Tensor, s: np.ndarray) -> Tensor:
    mean = x.flatten(1).mean(1).view(-1, 1, 1, 1)
    return (mean + (x - mean) * (1 + 0.9 * _strengths(s))).clamp(0, 1)


def _posterize(x: Tensor, s: np.ndarray) -> Tensor:
    levels = 2.0 ** torch.round(8 - 4 * _strengths(s).abs())
    return (x * levels).floor().minimum(levels - 1) / (levels - 1)


def _solarize(x: Tensor, s: np.ndarray) -> Tensor:
    return torch.where(x > 1 - _strengths(s).abs(), 1 - x, x)


def _shifted(a: float, b: float, c: float, d: float, e: float, f: float) -> Callable[[Tensor, np.ndarray], Tensor]:
    """An operation that maps pixels by the identity plus strength times (a .. f); c and f are fractions of sides."""

    def apply(x: Tensor, s: np.ndarray) -> Tensor:
        height, width = x.shape[-2:]
        change = np.array([a, b, c * width, d, e, f * height])
        return mapped_pixels(x, np.array([1.0, 0, 0, 0, 1.0, 0]) + s[:, None] * change)

    return apply


COLOURS: tuple[Callable[[Tensor, np.ndarray], Tensor], ...] = (
    lambda x, s: x, _autocontrast, _brightness, _contrast, _posterize, _solarize,
)  # fmt: skip
MOVES: tuple[Callable[[Tensor, np.ndarray], Tensor], ...] = (
    lambda x, s: rotated(x, np.deg2rad(30.0) * s),
    _shifted(0, 0.3, 0, 0, 0, 0),
    _shifted(0, 0, 0, 0.3, 0, 0),
    _shifted(0, 0, 0.3, 0, 0, 0),
    _shifted(0, 0, 0, 0, 0, 0.3),
)


@register("augment", "randaugment")
@dataclass(frozen=True, kw_only=True)
class RandAugment(Augment):
    """A few random operations per image.

    Args:
        operations: Operations per sample, one after another; positive.
        magnitude: Largest strength, in (0, 1].
    """

    operations: int = 2
    magnitude: float = 0.5

    def __post_init__(self) -> None:
        positive(operations=self.operations)
        within("(0, 1]", magnitude=self.magnitude)

    def check(self, shape: tuple[int, ...]) -> None:
        require_images("randaugment", shape)

    def apply(self, x: Tensor, words: np.ndarray) -> Tensor:
        if not len(x):
            return x
        low = x.amin((1, 2, 3), keepdim=True)
        width = x.amax((1, 2, 3), keepdim=True) - low
        width = torch.where(width > 0, width, 1.0)
        count = len(COLOURS) + len(MOVES)
        for k in range(self.operations):
            which = (random.uniform(words, k, "operation") * count).astype(np.int64)
            strength = self.magnitude * (2 * random.uniform(words, k, "strength") - 1)
            parts = []
            for number, operation in enumerate((*COLOURS, *MOVES)):
                if len(rows := np.flatnonzero(which == number)):
                    at = torch.as_tensor(rows)
                    if number >= len(COLOURS):
                        parts.append((at, operation(x[at], strength[rows])))
                    else:
                        scaled = (x[at] - low[at]) / width[at]
                        parts.append((at, operation(scaled, strength[rows]) * width[at] + low[at]))
            x = torch.cat([part for _, part in parts])[torch.cat([at for at, _ in parts]).argsort()]
        return x
