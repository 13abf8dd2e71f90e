"""Images with 8 bits per value for messages, and as inputs of a model."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(x: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8, rounded.

    >>> to_bytes(torch.tensor([0.0, 0.2, 1.0])).tolist()
    [0, 51, 255]
    """
    return (255 * x).round().to(torch.uint8)


def from_bytes(images: Tensor, low: float, high: float) -> Tensor:
    """Return uint8 images as float32: 0 is `low`, 255 is `high`.

    >>> from_bytes(torch.tensor([0, 51, 255], dtype=torch.uint8), -1.0, 1.0).numpy().round(4).tolist()
    [-1.0, -0.6000000238418579, 1.0]
    """
    return low + images.float() * ((high - low) / 255)
