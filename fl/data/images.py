"""Readers of image files, resizing, and selection of rows.

    idx      two zero bytes, type (1 byte), number of axes (1 byte), each length (4 bytes, big-endian), values
    CIFAR    records: label bytes (one, or coarse and fine), then 32 x 32 red, green and blue values row by row

http://yann.lecun.com/exdb/mnist, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fl.data.archives import open_gzip
from fl.tensors import random

if TYPE_CHECKING:
    from PIL import Image

IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an idx file, compressed (.gz) or not."""
    if path.suffix == ".gz":
        with open_gzip(path) as file:
            raw = file.read()
    else:
        raw = path.read_bytes()
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(
            f"data: {path} is not an idx file: it begins with {raw[:4].hex(' ')!r} "
            "instead of 00 00, a type and a number of axes"
        )
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3]))
    dtype, start = np.dtype(IDX_TYPES[raw[2]]), 4 + 4 * raw[3]
    if len(raw) - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"data: {path} has {len(raw) - start} bytes of values, which does not fit {shape} of {dtype.name}"
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def read_cifar(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels uint8 (N, 3, 32, 32) and labels uint8 (N, label_bytes) of a file of CIFAR's binary version."""
    raw, record = np.fromfile(path, np.uint8), label_bytes + 3072
    if not len(raw) or len(raw) % record:
        raise ValueError(
            f"data: {path} has {len(raw)} bytes, not a multiple of {record}; get CIFAR's binary version again"
        )
    raw = raw.reshape(-1, record)
    return raw[:, label_bytes:].reshape(-1, 3, 32, 32), raw[:, :label_bytes]


def unit(pixels: np.ndarray) -> np.ndarray:
    """Scale uint8 pixels to float32 in [0, 1]."""
    out = np.empty(pixels.shape, np.float32)  # in one pass, because CIFAR takes 0.7 GB
    return np.divide(pixels, np.float32(255), out=out)


def from_pil(image: Image.Image) -> np.ndarray:
    """Convert an image of Pillow with 8 bits per channel to float32 (C, H, W) in [0, 1]."""
    if image.mode in ("1", "P"):  # one bit; numbers of colours in a palette
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise ValueError(f"an image has {pixels.dtype} pixels (mode {image.mode}), not 8 bits; convert it to numbers")
    return unit(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def resized(x: np.ndarray, channels: int, side: int) -> np.ndarray:
    """Resize images (N, C, H, W) to (N, channels, side, side). If C differs, each channel is the mean over C."""
    import torch
    import torch.nn.functional as F

    images = torch.from_numpy(x)
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if images.shape[2:] != (side, side):
        images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
    return images.contiguous().numpy()


def some_rows(part: str, wanted: int | None, available: int, seed: int, name: str) -> np.ndarray:
    """Return `wanted` of `available` rows, the first of an addressed shuffle; all rows in order if `wanted` is None.

    >>> some_rows("train", None, 3, seed=0, name="mnist").tolist()
    [0, 1, 2]
    """
    if wanted is None:
        return np.arange(available)
    if not 1 <= wanted <= available:
        raise ValueError(f"{part}: {wanted} is not in 1..{available}, the number of samples; leave it out to use all")
    return random.permutation(available, seed, name, part)[:wanted]
