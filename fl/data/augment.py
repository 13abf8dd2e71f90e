"""Random changes of training samples, drawn anew for every batch: `data: {name: cifar10, augment: [crop, flip]}`.

    x (B, ...), words (B,) -> (B, ...)        a sample's change depends on its own word alone

Words are hashes of (seed, client, participation, phase, step, place in the batch): the same on every executor, in the loop
and when clients train together. Evaluation, and gradients over all of a client's data, see samples as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl.registry import register
from fl.tensors import random


class Augment:
    """Base of augmentations: frozen dataclasses of their parameters."""

    def check(self, shape: tuple[int, ...]) -> None:
        """A `ValueError` if samples of this shape cannot be changed so."""

    def apply(self, x: Tensor, words: np.ndarray) -> Tensor:
        """x (B, *shape) float32, words (B,) uint64 -> (B, *shape), x itself unchanged."""
        raise NotImplementedError


def augmented(changes: tuple[Augment, ...], x: Tensor, *address: int | np.ndarray) -> Tensor:
    """All changes, one after the other; the parts of the address broadcast to one word for each sample."""
    words = random.hash64(*address, "augment").reshape(-1)
    for k, change in enumerate(changes):
        x = change.apply(x, random.hash64(words, k))
    return x


@register("augment", "crop")
@dataclass(frozen=True, kw_only=True)
class Crop(Augment):
    """Images (channels, height, width) moved by up to `padding` pixels each way, zeros where they were not."""

    padding: int = 4

    def __post_init__(self):
        if self.padding < 1:
            raise ValueError(f"padding: {self.padding} is not at least 1")

    def check(self, shape):
        _images("crop", shape)
        if self.padding >= min(shape[1:]):
            raise ValueError(f"padding: {self.padding} is no less than the side of images {tuple(shape)}")

    def apply(self, x, words):
        height, width = x.shape[-2:]
        span = np.uint64(2 * self.padding + 1)
        down, right = (
            (part % span).astype(np.int64)[:, None] for part in (words >> np.uint64(32), words & np.uint64(2**32 - 1))
        )
        rows, columns = (torch.as_tensor(first + np.arange(n)) for first, n in ((down, height), (right, width)))
        padded = F.pad(x, (self.padding,) * 4).permute(0, 2, 3, 1)  # (B, H + 2p, W + 2p, C)
        whose = torch.arange(len(x))[:, None, None]
        return padded[whose, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2).contiguous()


@register("augment", "flip")
@dataclass(frozen=True, kw_only=True)
class Flip(Augment):
    """Images mirrored, left for right, with probability `p`."""

    p: float = 0.5

    def __post_init__(self):
        if not 0 <= self.p <= 1:
            raise ValueError(f"p: {self.p} is not in [0, 1]")

    def check(self, shape):
        _images("flip", shape)

    def apply(self, x, words):
        mirrored = torch.as_tensor(random.uniform(words) < self.p).view(-1, 1, 1, 1)
        return torch.where(mirrored, x.flip(-1), x)


def _images(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise ValueError(f"augment: {name} takes images (channels, height, width), a sample is {tuple(shape)}")
