"""Round each number to the nearest of k centroids, which are found by k-means and sent along.

    start: k numbers at equal distances in the sorted distinct numbers;   assign each number to the nearest centroid;
    centroid <- mean of its numbers;   `iterations` times, or until nothing changes

|error| <= |v - mean(v)|; exact if v has at most k distinct numbers. Biased.   Bytes: 4 k + ceil(n ceil(log2 k) / 8).
Behind `top_k` it is the sparse pipeline SKC of OpenFL (Reina et al. 2021, arXiv:2105.06413), and alone KC. Lloyd 1957.
Differs: starts that follow from the numbers, so nothing is drawn.   Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from fl.checks import at_least, within
from fl.communication.bits import pack_bits, packed_bytes, unpack_bits
from fl.communication.blocks import as_rows, as_tensor, check_finite, float_rows, pieces
from fl.communication.codec import Codec, Encoded, Output
from fl.registry import register


@register("codec", "k_means", "kmeans")
@dataclass(frozen=True, kw_only=True)
class KMeans(Codec):
    """Send the centroids of the numbers, and the index of a centroid for each number.

    Args:
        levels: Number of centroids of a vector, 2 to 256. An index takes ceil(log2 levels) bits.
        iterations: Maximum number of updates of the centroids, 1 or more.
    """

    levels: int = 16
    iterations: int = 10

    gives: ClassVar[Output] = "bytes"

    def __post_init__(self) -> None:
        within("[2, 256]", levels=self.levels, hint="an index has at most 8 bits; for more precision use fp16")
        at_least(1, iterations=self.iterations)

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return (self.levels - 1).bit_length()

    def encode(self, values: Tensor) -> Encoded:
        x = float_rows(values, self)
        check_finite(x, self)
        count, n = x.shape
        found = np.stack([centroids(row, self.levels, self.iterations) for row in x]) if count else x[:, :0]
        packed = np.empty((count, packed_bytes(n, self.bits)), np.uint8)
        for client in range(count):
            edges = _edges(found[client])
            for _, columns in pieces(1, n):
                index = np.searchsorted(edges, x[client, columns], side="right").astype(np.uint8)
                end = packed_bytes(columns.stop, self.bits)
                packed[client, columns.start * self.bits // 8 : end] = pack_bits(index[None], self.bits)[0]
        return Encoded({"centroids": as_tensor(found, values), "values": as_tensor(packed, values)})

    def decode(self, encoded: Encoded, n: int) -> Tensor:
        packed, found = as_rows(encoded.tensor("values")), as_rows(encoded.tensor("centroids"))
        out = np.empty((len(packed), n), np.float32)
        for client in range(len(packed)):
            for _, columns in pieces(1, n):
                part = packed[client, columns.start * self.bits // 8 : packed_bytes(columns.stop, self.bits)]
                index = unpack_bits(np.ascontiguousarray(part)[None], columns.stop - columns.start, self.bits)[0]
                out[client, columns] = found[client].take(index)
        return as_tensor(out, encoded.tensor("values"))

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        return 4 * self.levels, packed_bytes(n, self.bits), 1

    def bound(self, values: Tensor) -> float:
        v = values.double()
        return float((v - v.mean()).norm()) * 1.001 + 1e-6 * float(v.norm()) if len(v) else 0.0


def centroids(x: np.ndarray, levels: int, iterations: int) -> np.ndarray:
    """Return the centroids of x (n,) by Lloyd's algorithm: float32 (levels,), ascending.

    A number half way between two centroids goes to the larger one. If x has fewer distinct numbers than `levels`, the
    last centroids are equal.

    >>> centroids(np.array([0, 1, 10, 12], np.float32), levels=2, iterations=10).tolist()
    [0.5, 11.0]
    """
    distinct, counts = np.unique(x, return_counts=True)
    if len(distinct) <= levels:
        return np.pad(distinct, (0, levels - len(distinct)), mode="edge" if len(distinct) else "constant")
    numbers = distinct.astype(np.float64)
    count, total = (np.append(0.0, np.cumsum(column)) for column in (counts, counts * numbers))
    found = numbers[((np.arange(levels) + 0.5) * len(numbers) / levels).astype(np.int64)]
    for _ in range(iterations):
        ends = np.concatenate([[0], np.searchsorted(numbers, _edges(found)), [len(numbers)]])
        size, sums = np.diff(count[ends]), np.diff(total[ends])
        new = np.where(size > 0, sums / np.maximum(size, 1), found)
        if np.array_equal(new, found):
            break
        found = new
    return found.astype(np.float32)


def _edges(found: np.ndarray) -> np.ndarray:
    """Return the borders between neighbouring centroids, float64 (levels - 1,)."""
    wide = found.astype(np.float64)
    return (wide[1:] + wide[:-1]) / 2
