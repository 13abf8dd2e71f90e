"""Count sketch: add numbers with random signs into random buckets.

    `rows` tables of w = max(1, floor(ratio n / rows)) buckets;   table[r, h_r(i)] += s_r(i) v_i
    decode: median over r of s_r(i) table[r, h_r(i)]

The estimate of each row is unbiased with variance <= |v|^2 / w. With rows=1 (default) it is what arrives. The median of
several rows is biased where numbers collide, but keeps large numbers closer.   |error| <= sqrt(n) |v|_1.
Bytes: 4 rows w; hashes need none.
Charikar, Chen, Farach-Colton 2002; for federated updates: Rothchild et al. 2020 (FetchSGD), arXiv:2007.07682.
Differs: each client has its own hashes, so tables are not added up; the server takes no top-k.   Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

import numpy as np
from torch import Tensor

from fl.checks import within
from fl.communication.blocks import BLOCK, as_rows, as_tensor, check_finite, float_rows
from fl.communication.codec import Codec, Encoded
from fl.communication.keys import Key, keys_of
from fl.registry import register
from fl.tensors.random import hash64, random_words


@register("codec", "count_sketch", "sketch")
@dataclass(frozen=True, kw_only=True)
class CountSketch(Codec):
    """Compress to tables of sums.

    Args:
        ratio: Size of all tables as a share of the numbers, in (0, 1].
        rows: Number of tables, odd, so that there is a median.
    """

    ratio: float
    rows: int = 1

    draws: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within("(0, 1]", ratio=self.ratio, hint="it is the size of all tables as a share of the numbers")
        if self.rows < 1 or self.rows % 2 == 0:
            raise ValueError(f"rows: {self.rows} is not odd and positive; only an odd number of rows has a median")

    @property
    def unbiased(self) -> bool:
        return self.rows == 1

    def width(self, n: int) -> int:
        """Return w, the buckets per table for n numbers."""
        return max(1, int(Decimal(str(self.ratio)) * n / self.rows)) if n else 0

    def encode(self, values: Tensor, key: Key = 0) -> Encoded:
        x = float_rows(values, self)
        check_finite(x, self)
        count, n = x.shape
        width, keys = self.width(n), keys_of(key, count)
        tables = np.zeros((count, self.rows, width))
        for c in range(count):
            for r in range(self.rows):
                for a in range(0, n, BLOCK):
                    buckets, signs = _hashed(hash64(keys[c : c + 1], r), a, min(a + BLOCK, n), width)
                    tables[c, r] += np.bincount(buckets, signs * x[c, a : a + BLOCK], width)
        return Encoded({"values": as_tensor(tables.reshape(count, -1).astype(np.float32), values)})

    def decode(self, encoded: Encoded, n: int, key: Key = 0) -> Tensor:
        sent = encoded.tensor("values").float()
        tables, width = as_rows(sent), self.width(n)
        keys = keys_of(key, len(tables))
        out = np.empty((len(tables), n), np.float32)
        for c, table in enumerate(tables):
            for a in range(0, n, BLOCK):
                seen = []
                for r in range(self.rows):
                    buckets, signs = _hashed(hash64(keys[c : c + 1], r), a, min(a + BLOCK, n), width)
                    seen.append(signs * table[r * width : (r + 1) * width][buckets])
                out[c, a : a + BLOCK] = seen[0] if self.rows == 1 else np.median(seen, axis=0)
        return as_tensor(out, sent)

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        return 0, self.rows * self.width(n), 4

    def bound(self, values: Tensor) -> float:
        return float(values.double().abs().sum()) * len(values) ** 0.5


def _hashed(key: np.ndarray, first: int, last: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(bucket, sign) of positions first .. last - 1."""
    word = random_words(key, first, last)[0]
    buckets = ((word >> np.uint64(32)) * np.uint64(width) >> np.uint64(32)).astype(np.int64)
    return buckets, 1.0 - 2.0 * (word & np.uint64(1)).astype(np.float64)
