"""Feature shift: each client's images are rotated by its own angle.    x -> rotation of x by theta_c, filled with zeros

    with `angles`   distributed evenly among the clients, in random order   (Rotated MNIST clusters: [0, 90, 180, 270])
    otherwise       theta_c ~ U(-degrees, degrees)

Ghosh, Chung, Yin, Ramchandran 2020 (IFCA), arXiv:2006.04088, section 6. The rotation is counter-clockwise about the
centre, with bilinear interpolation. A shift changes the training rows once, after partitioning; the server's test set
is not rotated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Dataset
from fl.data.partition import Partition, owners
from fl.data.shift import Shift, map_features
from fl.registry import register
from fl.tensors import random


def client_angles(clients: int, degrees: float = 45.0, angles: Sequence[float] = (), seed: int = 0) -> np.ndarray:
    """Return the angles (clients,) in degrees."""
    if len(angles):
        return np.asarray(angles, float)[random.permutation(clients, seed, "rotate") % len(angles)]
    return degrees * (2 * random.uniform(seed, "rotate", np.arange(clients)) - 1)


def rotated(images: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Rotate `images` (B, C, H, W) by `degrees` (B,), counter-clockwise.

    >>> rotated(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), np.array([90.0])).tolist()
    [[[[2.0, 4.0], [1.0, 3.0]]]]
    """
    batch, channels, height, width = images.shape
    theta = np.deg2rad(degrees)[:, None]
    y, x = (g.ravel() for g in np.mgrid[:height, :width] - np.array([height - 1, width - 1]).reshape(2, 1, 1) / 2)
    cos, sin = np.cos(theta), np.sin(theta)
    rows = cos * y + sin * x + (height - 1) / 2  # source of each pixel of the result; y points down
    columns = cos * x - sin * y + (width - 1) / 2
    rows, columns = np.round(rows, 9), np.round(columns, 9)  # so that quarter turns move pixels without blending
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    flat, out = images.reshape(batch, channels, -1), np.zeros((batch, channels, height * width), np.float32)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        r, c = top + down, left + right
        weight = (1 - np.abs(rows - r)) * (1 - np.abs(columns - c)) * ((r >= 0) & (r < height) & (c >= 0) & (c < width))
        place = np.clip(r, 0, height - 1) * width + np.clip(c, 0, width - 1)
        out += np.take_along_axis(flat, place[:, None], axis=2) * weight[:, None].astype(np.float32)
    return out.reshape(images.shape)


@register("shift", "rotate")
@dataclass(frozen=True, kw_only=True)
class Rotate(Shift):
    """One rotation angle per client: one of `angles`, or uniform in [-degrees, degrees].

    Args:
        degrees: Maximum angle in degrees, if `angles` is empty.
        angles: Angles in degrees that are distributed among the clients.
        seed: Seed of the angles.
    """

    degrees: float = 45.0
    angles: tuple[float, ...] = ()
    seed: int = 0

    def apply(self, dataset: Dataset, partition: Partition) -> Dataset:
        if dataset.train["x"].ndim not in (3, 4):
            raise ValueError(f"rotate: samples of shape {dataset.train['x'].shape[1:]} are not images")
        theta = client_angles(partition.num_clients, self.degrees, self.angles, self.seed)[owners(partition)]

        def turn(x: np.ndarray, at: slice) -> np.ndarray:
            return rotated(x[:, None] if x.ndim == 3 else x, theta[at]).reshape(x.shape)

        return map_features(dataset, partition, turn)
