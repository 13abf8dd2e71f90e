"""Random numbers of private releases. Each draw has an address, so the noise of a past release can be made again.

reproducible     numbers follow from the run's seed: whoever knows the seed knows the noise
cryptographic    numbers follow from a secret of the system: SHAKE-256(secret, address)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fl.tensors import random
from fl.tensors.params import Params
from fl.tensors.trees import Tree

Seeds = Literal["reproducible", "cryptographic"]
Draw = Callable[[int, torch.dtype, "tuple[int | str, ...]"], Tensor]


@dataclass(frozen=True)
class Streams:
    """The source of all random numbers of a run's private releases.

    Args:
        seed: seed of the run.
        secret: secret of a run with cryptographic seeds, in hexadecimal digits; "": numbers follow from the seed.
    """

    seed: int
    secret: str = ""

    def normal(self, like: Mapping[str, Tree], *address: int | str) -> dict[str, Tree]:
        """Return standard normal numbers in the form of some groups.

        >>> one = Streams(7).normal({"model": torch.zeros(3)}, "noise", 0)["model"]
        >>> torch.equal(one, Streams(7).normal({"model": torch.zeros(3)}, "noise", 0)["model"])
        True
        """
        return self._filled(self._normal, like, address)

    def laplace(self, like: Mapping[str, Tree], *address: int | str) -> dict[str, Tree]:
        """Return Laplace numbers of scale 1 (variance 2) in the form of some groups."""
        return self._filled(self._laplace, like, address)

    def number(self, *address: int | str) -> float:
        """Return one standard normal number in double precision."""
        return float(self._normal(1, torch.float64, address))

    def sampling_seed(self, round_: int) -> int:
        """Return the seed with which the cohort of a round is drawn."""
        if not self.secret:
            return self.seed
        return int.from_bytes(self._bytes(8, ("cohort", round_)), "little") >> 1

    def _filled(self, draw: Draw, like: Mapping[str, Tree], address: tuple[int | str, ...]) -> dict[str, Tree]:
        """Return groups of the form of `like`; each tensor, and each buffer of `Params`, has an address of its own."""
        out: dict[str, Tree] = {}
        for group, leaf in like.items():
            if not isinstance(leaf, Params):
                out[group] = draw(leaf.numel(), leaf.dtype, (*address, group)).reshape(leaf.shape)
                continue
            buffers = []
            for k, (length, dtype) in enumerate(zip(leaf.layout.lengths, leaf.layout.dtypes)):
                numbers = draw(length, dtype, (*address, group, k))
                for a, b in leaf.layout.gaps[k]:  # padding holds zeros
                    numbers[a:b] = 0
                buffers.append(numbers)
            out[group] = Params(leaf.layout, tuple(buffers))
        return out

    def _normal(self, count: int, dtype: torch.dtype, address: tuple[int | str, ...]) -> Tensor:
        if not self.secret:
            generator = random.torch_generator(self.seed, "privacy", *address)
            return torch.randn(count, generator=generator, dtype=dtype)
        radius = np.sqrt(-2 * np.log(self._uniform(count, (*address, "radius"))))  # Box, Muller 1958
        angle = 2 * math.pi * self._uniform(count, (*address, "angle"))
        return torch.from_numpy(radius * np.cos(angle)).to(dtype)

    def _laplace(self, count: int, dtype: torch.dtype, address: tuple[int | str, ...]) -> Tensor:
        magnitude = -np.log(self._uniform(count, (*address, "magnitude")))
        sign = np.where(self._uniform(count, (*address, "sign")) < 0.5, -1.0, 1.0)
        return torch.from_numpy(sign * magnitude).to(dtype)

    def _uniform(self, count: int, address: tuple[int | str, ...]) -> np.ndarray:
        """Return doubles in (0, 1), (count,)."""
        if self.secret:
            words = np.frombuffer(self._bytes(8 * count, address), "<u8")
        else:
            words = random.numpy_generator(self.seed, "privacy", *address).integers(0, 2**64, count, np.uint64)
        return ((words >> np.uint64(11)) + 0.5) * 2.0**-53

    def _bytes(self, count: int, address: tuple[int | str, ...]) -> bytes:
        return hashlib.shake_256(repr((self.secret, *address)).encode()).digest(count)
