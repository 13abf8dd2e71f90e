"""Augmentation: random changes of training samples, drawn per batch: `data: {name: cifar10, augment: [crop, flip]}`.

    x (B, ...), words (B,) -> (B, ...)        the change of a sample depends on its own word only

Words are hashes of (seed, client, participation, phase, step, position in the batch), so they are the same on every
executor, in the loop and when clients train together. Evaluation, and gradients over all data of a client, use the
original samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl.checks import at_least, within
from fl.registry import register
from fl.tensors import random


class Augment:
    """Base of augmentations: frozen dataclasses of their hyper-parameters."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a `ValueError` if samples of this shape cannot be augmented."""

    def apply(self, x: Tensor, words: np.ndarray) -> Tensor:
        """Return changed copies (B, *shape) of `x` (B, *shape) float32, one `words` (B,) uint64 per sample."""
        raise NotImplementedError


def augmented(changes: tuple[Augment, ...], x: Tensor, *address: int | np.ndarray) -> Tensor:
    """Apply all changes in order. The parts of `address` broadcast to one word per sample."""
    words = random.hash64(*address, "augment").reshape(-1)
    for k, change in enumerate(changes):
        x = change.apply(x, random.hash64(words, k))
    return x


@register("augment", "crop")
@dataclass(frozen=True, kw_only=True)
class Crop(Augment):
    """Random crop: shift an image (channels, height, width) in both directions and fill with zeros.

    Args:
        padding: Maximum shift in pixels; at least 1 and smaller than the sides of the image.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        at_least(1, padding=self.padding)

    def check(self, shape: tuple[int, ...]) -> None:
        _images("crop", shape)
        if self.padding >= min(shape[1:]):
            raise ValueError(f"padding: {self.padding} is not smaller than the sides of images {tuple(shape)}")

    def apply(self, x: Tensor, words: np.ndarray) -> Tensor:
        height, width = x.shape[-2:]
        span = np.uint64(2 * self.padding + 1)
        down, right = (
            (part % span).astype(np.int64)[:, None] for part in (words >> np.uint64(32), words & np.uint64(2**32 - 1))
        )
        rows, columns = (torch.as_tensor(first + np.arange(n)) for first, n in ((down, height), (right, width)))
        padded = F.pad(x, (self.padding,) * 4).permute(0, 2, 3, 1)  # (B, H + 2p, W + 2p, C)
        sample = torch.arange(len(x))[:, None, None]
        return padded[sample, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2).contiguous()


@register("augment", "flip")
@dataclass(frozen=True, kw_only=True)
class Flip(Augment):
    """Random horizontal flip.

    Args:
        p: Probability of a flip, in [0, 1].
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        within("[0, 1]", p=self.p)

    def check(self, shape: tuple[int, ...]) -> None:
        _images("flip", shape)

    def apply(self, x: Tensor, words: np.ndarray) -> Tensor:
        mirrored = torch.as_tensor(random.uniform(words) < self.p).view(-1, 1, 1, 1)
        return torch.where(mirrored, x.flip(-1), x)


def _images(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise ValueError(f"augment: {name} needs images (channels, height, width); a sample has shape {tuple(shape)}")
