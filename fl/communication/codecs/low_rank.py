"""Approximate matrices by matrices of low rank (PowerSGD).

    M (a, b) the tensor, its first axis by all others;   Q0 (b, rank) standard normal, drawn from the key
    P = orthonormal columns of M Q0,   Q = M^T P;   decode: P Q^T

Biased: what arrives is M projected to the columns of P, |error| <= |M|. It is as close to the best matrix of that rank
as one power step from a random start can be.   Bytes: 4 rank (a + b) per tensor that this makes smaller; other tensors
are sent in full.
Vogels, Karimireddy, Jaggi 2019, arXiv:1905.13727.   Differs: the paper starts from the Q of the last round, but clients
that take turns have none, so Q0 is drawn in each round; error feedback is a separate codec. A vector of unknown shapes
is laid out as a nearly square matrix.   Neutral: rank at least that of every tensor, up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fl.checks import at_least
from fl.communication.blocks import check_finite, float_rows
from fl.communication.codec import Encoded, PerClientCodec, Shapes
from fl.communication.draws import normals
from fl.registry import register
from fl.tensors.random import hash64


@register("codec", "low_rank", "powersgd")
@dataclass(frozen=True, kw_only=True)
class LowRank(PerClientCodec):
    """Send two thin factors instead of each matrix.

    Args:
        rank: Columns of each factor, at least 1.
    """

    rank: int = 4

    def __post_init__(self) -> None:
        at_least(1, rank=self.rank)

    def matrices(self, n: int) -> list[tuple[int, int]]:
        """Return the shapes (a, b) of the matrices that n numbers form, in order; the last row may be incomplete."""
        a = max(1, math.isqrt(n))
        return [(a, -(-n // a))] if n else []

    def encode_one(self, values: Tensor, key: int) -> Encoded:
        check_finite(float_rows(values, self), self)
        flat, parts = torch.cat([values.float(), values.new_zeros(self._missing(len(values)), dtype=torch.float32)]), []
        for i, (a, b) in enumerate(self.matrices(len(values))):
            matrix, flat = flat[: a * b].clone().view(a, b), flat[a * b :]
            if self._factored(a, b):
                start = torch.from_numpy(normals(int(hash64(key, i)), b * self.rank)).view(b, self.rank)
                p, _ = torch.linalg.qr(matrix @ start)
                parts += [p.reshape(-1), (matrix.t() @ p).reshape(-1)]
            else:
                parts.append(matrix.reshape(-1))
        return Encoded({"values": torch.cat(parts) if parts else flat})

    def decode_one(self, encoded: Encoded, n: int, key: int) -> Tensor:
        flat, parts = encoded.tensor("values").float(), []
        for a, b in self.matrices(n):
            if self._factored(a, b):
                p, flat = flat[: a * self.rank].clone().view(a, self.rank), flat[a * self.rank :]
                q, flat = flat[: b * self.rank].clone().view(b, self.rank), flat[b * self.rank :]
                parts.append((p @ q.t()).reshape(-1))
            else:
                parts.append(flat[: a * b])
                flat = flat[a * b :]
        return torch.cat(parts)[:n] if parts else flat

    def _factored(self, a: int, b: int) -> bool:
        return self.rank * (a + b) < a * b

    def _missing(self, n: int) -> int:
        return sum(a * b for a, b in self.matrices(n)) - n

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        return 0, sum(self.rank * (a + b) if self._factored(a, b) else a * b for a, b in self.matrices(n)), 4

    def bound(self, values: Tensor) -> float:
        return float(values.double().norm()) * 1.00001

    def for_shapes(self, shapes: Shapes) -> LowRank:
        return ShapedLowRank(rank=self.rank, shapes=shapes)


@dataclass(frozen=True, kw_only=True)
class ShapedLowRank(LowRank):
    """LowRank for vectors that hold tensors of known shapes, one after another."""

    shapes: Shapes

    def matrices(self, n: int) -> list[tuple[int, int]]:
        return [(shape[0], math.prod(shape[1:])) if shape else (1, 1) for shape in self.shapes if math.prod(shape)]
