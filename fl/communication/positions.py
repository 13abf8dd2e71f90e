"""Positions: code the positions of sparse values, k ascending numbers below n.

    packed        k ceil(log2 n) bits, each position in as many bits as n - 1 needs, lowest bit first; or a bitmap of
                  n bits if that is smaller
    elias_fano    the lower l bits of each position, then k + ((n - 1) >> l) bits: before the 1 of each position there
                  are as many 0 as the upper part has grown (Elias 1974, Fano 1971). l minimises the size
    golomb        gaps g = position - last position - 1: the k numbers g >> b in unary, then the lower b bits of each,
                  b = 1 + floor(log2(log(0.618...) / log(1 - k/n))) as in Sattler et al. 2019, arXiv:1903.02891 (eq. 17)
    elias_gamma   g + 1 = 2^N + r: the k numbers N in unary, then the N bits of each r (Elias 1975)
    auto          packed or elias_fano, whichever is smaller

The sizes of packed, elias_fano and auto follow from n and k. The sizes of golomb and elias_gamma depend on the
positions.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fl.communication.blocks import as_rows

Coding = Literal["packed", "elias_fano", "golomb", "elias_gamma", "auto"]
BITMAP_BLOCK = 1 << 20  # positions per pass over a bitmap


def position_bytes(n: int, k: int) -> int:
    """Return the bytes of k packed positions below n.

    >>> position_bytes(1_000_000, 10_000)
    25000
    """
    return -(-min(k * _index_bits(n), n) // 8)


def coded_bytes(coding: Coding, n: int, k: int) -> int | None:
    """Return the bytes of k positions below n; None if they depend on the positions.

    >>> coded_bytes("elias_fano", 1_000_000, 10_000)
    10703
    """
    if coding in ("golomb", "elias_gamma"):
        return None
    fano = -(-_elias_fano(n, k)[0] // 8)
    return {"packed": position_bytes(n, k), "elias_fano": fano, "auto": min(position_bytes(n, k), fano)}[coding]


def code_positions(coding: Coding, positions: Tensor, n: int) -> list[Tensor] | Tensor:
    """Code ascending positions (*batch, k) below n as bytes uint8 (*batch, B).

    The codings golomb and elias_gamma return a list of C rows, whose lengths differ.
    """
    k = positions.shape[-1]
    coding = _resolve(coding, n, k)
    if coding == "packed":
        return pack_positions(positions, n)
    if coding == "elias_fano":
        return _pack_elias_fano(positions, n)
    pack = {"golomb": _pack_golomb, "elias_gamma": _pack_gamma}[coding]
    rows = pack(as_rows(positions), n)
    return rows if positions.ndim > 1 else rows[0]


def decode_positions(coding: Coding, packed: Tensor, n: int, k: int) -> Tensor:
    """Undo `code_positions`: int64 (*batch, k). For golomb and elias_gamma, `packed` is one client's row."""
    coding = _resolve(coding, n, k)
    if coding == "packed":
        return unpack_positions(packed, n, k)
    if coding == "elias_fano":
        return _unpack_elias_fano(packed, n, k)
    return {"golomb": _unpack_golomb, "elias_gamma": _unpack_gamma}[coding](packed, n, k)


def _resolve(coding: Coding, n: int, k: int) -> Coding:
    if coding != "auto":
        return coding
    return "packed" if position_bytes(n, k) <= -(-_elias_fano(n, k)[0] // 8) else "elias_fano"


# -- packed -----------------------------------------------------------------------------------------------------------
def _index_bits(n: int) -> int:
    """ceil(log2 n)"""
    return max(0, n - 1).bit_length()


def pack_positions(positions: Tensor, n: int) -> Tensor:
    """Pack ascending positions (*batch, k) below n to bytes uint8 (*batch, B).

    >>> pack_positions(torch.tensor([1, 6]), 8).tolist()  # 3 bits each: 1 | 6 << 3
    [49]
    """
    *batch, k = positions.shape
    bits = _index_bits(n)
    if k * bits > n:
        return torch.from_numpy(_bitmap(as_rows(positions), n)).reshape(*batch, -(-n // 8))
    return torch.from_numpy(np.packbits(_to_bits(positions.numpy(), bits), axis=-1, bitorder="little"))


def unpack_positions(packed: Tensor, n: int, k: int) -> Tensor:
    """Undo `pack_positions`: int64 (*batch, k)."""
    batch, bits = packed.shape[:-1], _index_bits(n)
    if k * bits > n:
        rows = [np.flatnonzero(np.unpackbits(row, count=n, bitorder="little")) for row in as_rows(packed)]
        return torch.from_numpy(np.stack(rows)).reshape(*batch, k)
    flags = np.unpackbits(packed.numpy(), axis=-1, count=k * bits, bitorder="little")
    return torch.from_numpy(_from_bits(flags, k, bits))


def _bitmap(positions: np.ndarray, n: int) -> np.ndarray:
    """Return bitmaps (C, ceil(n / 8)): bit i of a row is set if i is one of its positions (C, k)."""
    out = np.empty((len(positions), -(-n // 8)), np.uint8)
    if n <= BITMAP_BLOCK:
        step = max(1, BITMAP_BLOCK // max(n, 1))
        for c in range(0, len(positions), step):
            flags = np.zeros((len(positions[c : c + step]), n), np.uint8)
            np.put_along_axis(flags, positions[c : c + step], 1, -1)
            out[c : c + step] = np.packbits(flags, axis=-1, bitorder="little")
        return out
    for row, packed in zip(positions, out):
        for a in range(0, n, BITMAP_BLOCK):
            piece = np.zeros(min(BITMAP_BLOCK, n - a), np.uint8)
            piece[row[slice(*np.searchsorted(row, (a, a + BITMAP_BLOCK)))] - a] = 1
            packed[a // 8 : -(-(a + len(piece)) // 8)] = np.packbits(piece, bitorder="little")
    return out


def _to_bits(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Split numbers (*batch, k) below 2^bits into single bits (*batch, k bits), lowest first."""
    assert bits <= 32
    *batch, k = numbers.shape
    words = np.ascontiguousarray(numbers).astype("<u4").view(np.uint8).reshape(*batch, k, 4)[..., : -(-bits // 8)]
    return np.unpackbits(words, axis=-1, bitorder="little", count=bits).reshape(*batch, k * bits)


def _from_bits(flags: np.ndarray, k: int, bits: int) -> np.ndarray:
    """Undo `_to_bits`: int64 (*batch, k)."""
    batch = flags.shape[:-1]
    words = np.zeros((*batch, k, 4), np.uint8)
    if bits:
        words[..., : -(-bits // 8)] = np.packbits(flags.reshape(*batch, k, bits), axis=-1, bitorder="little")
    return words.view("<u4").reshape(*batch, k).astype(np.int64)


# -- Elias-Fano -------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=1024)
def _elias_fano(n: int, k: int) -> tuple[int, int]:
    """(total bits, l)."""
    if k == 0:
        return 0, 0
    return min((k * low + k + ((n - 1) >> low), low) for low in range(_index_bits(n) + 1))


def _pack_elias_fano(positions: Tensor, n: int) -> Tensor:
    *batch, k = positions.shape
    total, low = _elias_fano(n, k)
    rows = as_rows(positions)
    flags = np.zeros((len(rows), total), np.uint8)
    flags[:, : k * low] = _to_bits(rows & ((1 << low) - 1), low)
    np.put_along_axis(flags, k * low + (rows >> low) + np.arange(k), 1, -1)
    return torch.from_numpy(np.packbits(flags, axis=-1, bitorder="little")).reshape(*batch, -(-total // 8))


def _unpack_elias_fano(packed: Tensor, n: int, k: int) -> Tensor:
    batch = packed.shape[:-1]
    total, low = _elias_fano(n, k)
    rows = as_rows(packed)
    flags = np.unpackbits(rows, axis=-1, count=total, bitorder="little")
    upper = flags[:, k * low :].nonzero()[1].reshape(len(rows), k) - np.arange(k)
    return torch.from_numpy(upper << low | _from_bits(flags[:, : k * low], k, low)).reshape(*batch, k)


# -- gaps -------------------------------------------------------------------------------------------------------------
def golomb_bits(n: int, k: int) -> int:
    """Return b, the number of lower bits of a gap that are sent without unary coding, for a share k/n of positions.

    >>> golomb_bits(1_000_000, 10_000)
    6
    """
    share = k / n if n else 1.0
    if share in (0, 1):
        return 0
    return max(0, 1 + math.floor(math.log2(math.log((math.sqrt(5) - 1) / 2) / math.log1p(-share))))


def _gaps(positions: np.ndarray) -> np.ndarray:
    return np.diff(positions, prepend=-1, axis=-1) - 1


def _positions(gaps: np.ndarray) -> Tensor:
    return torch.from_numpy(np.cumsum(gaps + 1) - 1)


def _pack_unary(numbers: np.ndarray, tails: np.ndarray, lengths: np.ndarray) -> list[Tensor]:
    """Pack rows of numbers (C, k) in unary, followed by other bits.

    A row starts with its numbers: each is written as that many 0 and a 1. Then come its `lengths[c]` bits of `tails`,
    and 0 up to a whole byte.
    """
    ends = np.cumsum(numbers + 1, axis=-1)
    unary = ends[:, -1] if ends.shape[1] else np.zeros(len(numbers), np.int64)
    sizes = -(-(unary + lengths) // 8)
    starts = 8 * (np.cumsum(sizes) - sizes)
    flags = np.zeros(8 * int(sizes.sum()), np.uint8)
    flags[(starts[:, None] + ends - 1).reshape(-1)] = 1
    rows, places = _owners_and_places(lengths)
    flags[(starts + unary)[rows] + places] = tails
    return list(torch.from_numpy(np.packbits(flags, bitorder="little")).split(sizes.tolist()))


def _from_unary(flags: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(the first k numbers, the remaining bits)."""
    ends = np.flatnonzero(flags)[:k]
    return np.diff(ends, prepend=-1) - 1, flags[ends[-1] + 1 :] if k else flags


def _pack_golomb(positions: np.ndarray, n: int) -> list[Tensor]:
    (count, k), gaps = positions.shape, _gaps(positions)
    b = golomb_bits(n, k)
    return _pack_unary(gaps >> b, _to_bits(gaps & ((1 << b) - 1), b).reshape(-1), np.full(count, k * b))


def _unpack_golomb(packed: Tensor, n: int, k: int) -> Tensor:
    b = golomb_bits(n, k)
    upper, rest = _from_unary(np.unpackbits(packed.numpy(), bitorder="little"), k)
    return _positions(upper << b | _from_bits(rest[: k * b], k, b))


def _pack_gamma(positions: np.ndarray, n: int) -> list[Tensor]:
    numbers = _gaps(positions) + 1
    exponents = np.frexp(numbers)[1].astype(np.int64) - 1
    owners, places = _owners_and_places(exponents.reshape(-1))
    tails = (numbers.reshape(-1)[owners] >> places & 1).astype(np.uint8)
    return _pack_unary(exponents, tails, exponents.sum(-1))


def _unpack_gamma(packed: Tensor, n: int, k: int) -> Tensor:
    exponents, rest = _from_unary(np.unpackbits(packed.numpy(), bitorder="little"), k)
    owners, places = _owners_and_places(exponents)
    lower = np.bincount(owners, rest[: len(owners)] * 2.0**places, k).astype(np.int64)  # exact below 2^53
    return _positions((1 << exponents) + lower - 1)


def _owners_and_places(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For the bits of numbers with these lengths, in order: (index of the bit's number, place of the bit in it)."""
    owners = np.repeat(np.arange(len(lengths)), lengths)
    return owners, np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
