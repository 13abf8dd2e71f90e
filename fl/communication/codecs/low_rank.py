"""Matrices of low rank (PowerSGD).

    M (a, b) the tensor, its first axis by all others;   Q0 (b, rank) standard normal, drawn from the key
    P = orthonormal columns of M Q0,   Q = M^T P;   decode: P Q^T

Biased: what arrives is M projected to the columns of P, |error| <= |M|, and as close as one power step from a random start
gets to the best matrix of that rank.   Bytes: 4 rank (a + b) for each tensor that this makes smaller; the others as they are.
Vogels, Karimireddy, Jaggi 2019, arXiv:1905.13727.   Differs: the paper begins with the Q of the round before, which clients that
take turns do not have; Q0 is fresh, and error feedback is a codec of its own. A vector without tensors around it is laid out as a
matrix as square as can be.   Neutral: rank at least that of every tensor, up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fl.communication.blocks import check_finite, normals, rows_of
from fl.communication.codec import Encoded, OneByOne, Shapes
from fl.registry import register
from fl.tensors.random import hash64


@register("codec", "low_rank", "powersgd")
@dataclass(frozen=True, kw_only=True)
class LowRank(OneByOne):
    rank: int = 4

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank: {self.rank} is not at least 1")

    def matrices(self, n: int) -> list[tuple[int, int]]:
        """(a, b) of the matrices that n numbers are, one after another; the last may have a last row that is not full."""
        a = max(1, math.isqrt(n))
        return [(a, -(-n // a))] if n else []

    def pack(self, values, key):
        check_finite(rows_of(values, self), self)
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

    def unpack(self, encoded, n, key):
        flat, parts = encoded.parts["values"].float(), []
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

    def sizes(self, n, width=4):
        return 0, sum(self.rank * (a + b) if self._factored(a, b) else a * b for a, b in self.matrices(n)), 4

    def bound(self, values):
        return float(values.double().norm()) * 1.00001

    def fitted(self, shapes):
        return Fitted(rank=self.rank, shapes=shapes)


@dataclass(frozen=True, kw_only=True)
class Fitted(LowRank):
    """For tensors of these shapes, one after another."""

    shapes: Shapes

    def matrices(self, n: int) -> list[tuple[int, int]]:
        return [(shape[0], math.prod(shape[1:])) if shape else (1, 1) for shape in self.shapes if math.prod(shape)]
