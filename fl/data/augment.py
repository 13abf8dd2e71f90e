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

from fl.checks import at_least, positive, within
from fl.registry import register
from fl.tensors import random


class Augment:
    """Base of augmentations: frozen dataclasses of their hyper-parameters."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a `ValueError` if samples of this shape cannot be augmented."""

    def apply(self, x: Tensor, words: np.ndarray) -> Tensor:
        """Return changed copies (B, *shape) of `x` (B, *shape) float32, one `words` (B,) uint64 per sample."""
        raise NotImplementedError


def augmented(changes: tuple[Augment, ...], x: Tensor, *address: int | str | np.ndarray) -> Tensor:
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
        require_images("crop", shape)
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
        require_images("flip", shape)

    def apply(self, x: Tensor, words: np.ndarray) -> Tensor:
        mirrored = torch.as_tensor(random.uniform(words) < self.p).view(-1, 1, 1, 1)
        return torch.where(mirrored, x.flip(-1), x)


@register("augment", "cutout")
@dataclass(frozen=True, kw_only=True)
class Cutout(Augment):
    """A square of zeros at a random place, cut off at the border. DeVries, Taylor 2017, arXiv:1708.04552.

    Args:
        share: Side of the square as a fraction of the shorter side of the image, in (0, 1]; rounded, at least 1 pixel.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        within("(0, 1]", share=self.share)

    def check(self, shape: tuple[int, ...]) -> None:
        require_images("cutout", shape)

    def apply(self, x: Tensor, words: np.ndarray) -> Tensor:
        side = max(1, int(self.share * min(x.shape[-2:]) + 0.5))
        inside = []
        for axis, length in enumerate(x.shape[-2:]):
            first = (random.uniform(words, axis) * length).astype(np.int64)[:, None] - side // 2
            place = np.arange(length)
            inside.append((place >= first) & (place < first + side))
        cut = torch.as_tensor(inside[0][:, None, :, None] & inside[1][:, None, None, :])
        return x.masked_fill(cut, 0.0)


@register("augment", "noise")
@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Augment):
    """Gaussian noise on every number of a sample of any shape: x <- x + N(0, std^2).

    Args:
        std: Standard deviation, positive, in the units of x.
    """

    std: float = 0.1

    def __post_init__(self) -> None:
        positive(std=self.std)

    def apply(self, x: Tensor, words: np.ndarray) -> Tensor:
        pairs = (x[0].numel() + 1) // 2 if len(x) else 0
        bits = random.random_words(words, 0, 2 * pairs)  # the method of Box and Muller takes pairs of uniform numbers
        u, v = ((bits[:, part::2] >> np.uint64(11)) * 2.0**-53 for part in (0, 1))
        radius = np.sqrt(-2 * np.log1p(-u))
        normal = np.concatenate([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], axis=1)
        noise = normal[:, : x[0].numel() if len(x) else 0].astype(np.float32) * np.float32(self.std)
        return x + torch.as_tensor(noise).view_as(x)


@register("augment", "rotate")
@dataclass(frozen=True, kw_only=True)
class RandomRotation(Augment):
    """Rotation about the centre by a uniform angle, bilinear, filled with zeros.

    Args:
        degrees: Largest angle in each direction, in (0, 180].
    """

    degrees: float = 15.0

    def __post_init__(self) -> None:
        within("(0, 180]", degrees=self.degrees)

    def check(self, shape: tuple[int, ...]) -> None:
        require_images("rotate", shape)

    def apply(self, x: Tensor, words: np.ndarray) -> Tensor:
        return rotated(x, np.deg2rad(self.degrees) * (2 * random.uniform(words, 0) - 1))


def rotated(x: Tensor, angles: np.ndarray) -> Tensor:
    """Return images (B, C, H, W) rotated counter-clockwise about their centres by `angles` (B,), in radians.

    >>> x = torch.arange(9.0).view(1, 1, 3, 3)
    >>> torch.allclose(rotated(x, np.array([np.pi / 2])), x.rot90(1, (2, 3)), atol=1e-5)
    True
    """
    cos, sin = np.cos(angles), np.sin(angles)
    return mapped_pixels(x, np.stack([cos, -sin, np.zeros_like(cos), sin, cos, np.zeros_like(cos)], axis=1))


def mapped_pixels(x: Tensor, maps: np.ndarray) -> Tensor:
    """Return images (B, C, H, W) whose pixel at (u, v) is that of `x` at (a u + b v + c, d u + e v + f), bilinear.

    u counts pixels to the right and v pixels down, from the centre. Pixels from outside are 0.

    Args:
        x: Images.
        maps: (B, 6), a to f of each image.
    """
    height, width = x.shape[-2:]
    a, b, c, d, e, f = torch.as_tensor(maps.astype(np.float32)).t()[..., None, None].unbind()
    u = (torch.arange(width) - (width - 1) / 2).to(torch.float32)
    v = (torch.arange(height) - (height - 1) / 2).to(torch.float32)[:, None]
    right, down = a * u + b * v + c, d * u + e * v + f
    grid = torch.stack([right * (2 / width), down * (2 / height)], -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def require_images(name: str, shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless a sample has the shape (channels, height, width)."""
    if len(shape) != 3:
        raise ValueError(f"augment: {name} needs images (channels, height, width); a sample has shape {tuple(shape)}")
