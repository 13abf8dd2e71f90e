"""Count sketch: sums of numbers with random signs in random buckets.

    rows tables of w = max(1, floor(ratio n / rows)) buckets;   table[r, h_r(i)] += s_r(i) v_i;   decode: median_r s_r(i) table[r, h_r(i)]

Each row's estimate is unbiased with variance <= |v|^2 / w; with rows=1 (default) that is what arrives, the median of several is
biased where numbers collide, and keeps large ones closer.   |error| <= sqrt(n) |v|_1.   Bytes: 4 rows w; hashes take none.
Charikar, Chen, Farach-Colton 2002; for federated updates: Rothchild et al. 2020 (FetchSGD), arXiv:2007.07682.   Differs: each
client has hashes of its own, so that tables are not added up; the server takes no top-k.   Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

import numpy as np

from fl.communication.blocks import BLOCK, check_finite, rows_of, tensor, words
from fl.communication.codec import Codec, Encoded, keys_of
from fl.communication.positions import rows_of as numbers_of
from fl.registry import register
from fl.tensors.random import hash64


@register("codec", "count_sketch", "sketch")
@dataclass(frozen=True, kw_only=True)
class CountSketch(Codec):
    ratio: float
    rows: int = 1

    draws: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise ValueError(
                f"ratio: {self.ratio} is not in (0, 1]; it is the size of all tables, of that of the numbers"
            )
        if self.rows < 1 or self.rows % 2 == 0:
            raise ValueError(f"rows: {self.rows} is not odd and positive; of an odd number there is a median")

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        return self.rows == 1

    def width(self, n: int) -> int:
        return max(1, int(Decimal(str(self.ratio)) * n / self.rows)) if n else 0

    def encode(self, values, key=0):
        x = rows_of(values, self)
        check_finite(x, self)
        count, n = x.shape
        width, keys = self.width(n), keys_of(key, count)
        tables = np.zeros((count, self.rows, width))
        for c in range(count):
            for r in range(self.rows):
                for a in range(0, n, BLOCK):
                    buckets, signs = _hashed(hash64(keys[c : c + 1], r), a, min(a + BLOCK, n), width)
                    tables[c, r] += np.bincount(buckets, signs * x[c, a : a + BLOCK], width)
        return Encoded({"values": tensor(tables.reshape(count, -1).astype(np.float32), values)})

    def decode(self, encoded, n, key=0):
        sent = encoded.parts["values"].float()
        tables, width = numbers_of(sent), self.width(n)
        keys = keys_of(key, len(tables))
        out = np.empty((len(tables), n), np.float32)
        for c, table in enumerate(tables):
            for a in range(0, n, BLOCK):
                seen = []
                for r in range(self.rows):
                    buckets, signs = _hashed(hash64(keys[c : c + 1], r), a, min(a + BLOCK, n), width)
                    seen.append(signs * table[r * width : (r + 1) * width][buckets])
                out[c, a : a + BLOCK] = seen[0] if self.rows == 1 else np.median(seen, axis=0)
        return tensor(out, sent)

    def sizes(self, n, width=4):
        return 0, self.rows * self.width(n), 4

    def bound(self, values):
        return float(values.double().abs().sum()) * len(values) ** 0.5


def _hashed(key: np.ndarray, first: int, last: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(bucket, sign) of each position."""
    word = words(key, first, last)[0]
    buckets = ((word >> np.uint64(32)) * np.uint64(width) >> np.uint64(32)).astype(np.int64)
    return buckets, 1.0 - 2.0 * (word & np.uint64(1)).astype(np.float64)
