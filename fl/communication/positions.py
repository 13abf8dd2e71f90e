"""Positions of sparse values, ascending, in the smaller of two packings, which both ends can tell from n and k:

k ceil(log2 n) bits   indices, each in as many bits as the last one needs, lowest bit first
n bits                a bitmap
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def position_bytes(n: int, k: int) -> int:
    """What k positions below n take."""
    return -(-min(k * _index_bits(n), n) // 8)


def _index_bits(n: int) -> int:
    """ceil(log2 n)"""
    return max(0, n - 1).bit_length()


def pack_positions(positions: Tensor, n: int) -> Tensor:
    """Ascending positions (*batch, k) below n -> bytes (*batch, B) uint8."""
    *batch, k = positions.shape
    bits = _index_bits(n)
    if k * bits > n:
        flags = torch.zeros(*batch, n, dtype=torch.uint8).scatter_(-1, positions, 1).numpy()
    else:
        assert bits <= 32
        words = positions.numpy().astype("<u4").view(np.uint8).reshape(*batch, k, 4)
        flags = np.unpackbits(words, axis=-1, bitorder="little")[..., :bits].reshape(*batch, k * bits)
    return torch.from_numpy(np.packbits(flags, axis=-1, bitorder="little"))


def unpack_positions(packed: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `pack_positions`: (*batch, k) int64."""
    batch, bits = packed.shape[:-1], _index_bits(n)
    if k * bits > n:
        flags = np.unpackbits(packed.numpy(), axis=-1, count=n, bitorder="little")
        return torch.from_numpy(flags.nonzero()[-1].reshape(*batch, k))
    flags = np.unpackbits(packed.numpy(), axis=-1, count=k * bits, bitorder="little").reshape(*batch, k, bits)
    words = np.zeros((*batch, k, 32), np.uint8)
    words[..., :bits] = flags
    indices = np.packbits(words, axis=-1, bitorder="little").view("<u4").reshape(*batch, k)
    return torch.from_numpy(indices.astype(np.int64))
