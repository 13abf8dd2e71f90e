"""Linear combinations of a client's vectors, in one pass over its layers.

    combination = factor_0 (trained - start) + factor_1 trained + sum_k factor_(2 + k) source_k

A source is a row of `Params` in memory of its own, such as the client's state or a group of the broadcast. BLOCK
numbers are worked on at once, which stay in the nearest cache. A factor of 0 costs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fl.execution.training.native.jit import inlined, part
from fl.execution.training.native.memory import BLOCK, PAD, merge_totals, padded, unpad_layers, weights_length
from fl.execution.training.native.vector import WIDTH, fma, load, load_at, one_at, splat, store

DELTA, TRAINED, OWN = 0, 1, 2  # columns of factors: trained - start, trained, and the first source

_0 = np.float32(0)


class Combined(NamedTuple):
    """Combinations that training writes beside its other results.

    sources: int64 (S, 2), address of the first client's row, and bytes from one row to the next (0: one row for all).
    row_factors: float32 (R, C, 2 + S), factors of combinations that are written for each client.
    rows: float32 (R, C, P), these combinations.
    sum_factors: float32 (U, C, 2 + S), factors of combinations that are added up in the order of `fold.Fold`.
    weights: float32 (U, C), which these combinations are multiplied by. A sum has the same bits if a client's
        combination is written first, and multiplied and added later.
    sums: float32 (U, P), these sums.
    """

    sources: np.ndarray
    row_factors: np.ndarray
    rows: np.ndarray
    sum_factors: np.ndarray
    weights: np.ndarray
    sums: np.ndarray


@inlined
def _add_source(
    sources: np.ndarray, s: int, c: int, factor: np.float32, place: int, count: int, out: np.ndarray, at: int
) -> None:
    """out[at : at + count] <- out + factor source_s, from number `place` of client c on."""
    by, address, whole = splat(factor), sources[s, 0] + c * sources[s, 1], count - count % WIDTH
    if factor != _0:
        for i in range(0, whole, WIDTH):
            store(out, at + i, fma(by, load_at(address, place + i), load(out, at + i)))
        for i in range(whole, count):
            out[at + i] += factor * one_at(address, place + i)


@inlined
def _block(
    client: np.ndarray,
    initial: np.ndarray,
    at: int,
    sources: np.ndarray,
    c: int,
    place: int,
    count: int,
    factors: np.ndarray,
    out: np.ndarray,
) -> None:
    """out[:count] <- the combination of numbers `place`... of rows, which lie at `at`... of padded layers."""
    delta, trained = factors[DELTA], factors[TRAINED]
    by, nothing = splat(delta), splat(_0)
    if delta != _0:  # pads follow a tail in padded layers
        for i in range(0, count, WIDTH):
            store(out, i, by * (load(client, at + i) - load(initial, at + i)))
    else:
        for i in range(0, count, WIDTH):
            store(out, i, nothing)
    if trained != _0:
        by = splat(trained)
        for i in range(0, count, WIDTH):
            store(out, i, fma(by, load(client, at + i), load(out, i)))
    for s in range(len(sources)):
        _add_source(sources, s, c, factors[OWN + s], place, count, out, 0)


@inlined
def _pieces(n_in: int, n_out: int) -> tuple[int, int]:
    """Number of pieces of a layer's weights that follow one another without pads, and their length."""
    return (1, n_in * n_out) if n_in % PAD == 0 else (n_out, n_in)


@inlined
def _piece(layers: np.ndarray, k: int, piece: int, pieces: int, n: int) -> tuple[int, int, int]:
    """Where a piece of layer k begins in padded layers and in a row of `Params`, and its length; the bias is last."""
    n_in, n_out, weight, bias, _, offset, _ = layers[k]
    if piece == pieces:
        return offset + weights_length(n_in, n_out), bias, n_out
    return offset + piece * padded(n_in), weight + piece * n, n


@inlined
def _put(some: np.ndarray, count: int, row: np.ndarray, place: int) -> None:
    """row[place : place + count] <- some"""
    for i in range(0, count - WIDTH + 1, WIDTH):
        store(row, place + i, load(some, i))
    for i in range(count - count % WIDTH, count):
        row[place + i] = some[i]


@inlined
def _add(
    some: np.ndarray, count: int, weight: np.float32, totals: np.ndarray, at: int, length: int, depth: int, merges: int
) -> None:
    """totals[depth - merges] <- weight some + the last `merges` of `depth` totals, the last one first."""
    by = splat(weight)
    for i in range(0, count, WIDTH):
        v = by * load(some, i)
        for level in range(depth - 1, depth - 1 - merges, -1):
            v = load(totals, level * length + at + i) + v
        store(totals, (depth - merges) * length + at + i, v)


@part
def combine(
    client: np.ndarray,
    initial: np.ndarray,
    layers: np.ndarray,
    combined: Combined,
    c: int,
    totals: np.ndarray,
    depth: int,
    merges: int,
    some: np.ndarray,
) -> None:
    """Write the combinations of client c, and add those that are summed to `totals`, (U, levels * padded length)."""
    for k in range(len(layers)):
        n_in, n_out, weight, bias = layers[k, 0], layers[k, 1], layers[k, 2], layers[k, 3]
        pieces, own = _pieces(n_in, n_out)
        for piece in range(pieces + (bias >= 0)):
            at, place, n = _piece(layers, k, piece, pieces, own)
            for first in range(0, n, BLOCK):
                count = min(BLOCK, n - first)
                a, b = at + first, place + first
                for r in range(len(combined.rows)):
                    _block(client, initial, a, combined.sources, c, b, count, combined.row_factors[r, c], some)
                    _put(some, count, combined.rows[r, c], b)
                for u in range(len(combined.sums)):
                    _block(client, initial, a, combined.sources, c, b, count, combined.sum_factors[u, c], some)
                    _add(some, count, combined.weights[u, c], totals[u], a, len(client), depth, merges)
        for r in range(len(combined.rows)):  # gaps of `Params` hold zeros
            combined.rows[r, c, weight + n_out * n_in : weight + padded(n_out * n_in)] = _0
            if bias >= 0:
                combined.rows[r, c, bias + n_out : bias + padded(n_out)] = _0


@part
def finish_sums(layers: np.ndarray, combined: Combined, totals: np.ndarray, depth: int, length: int) -> None:
    """Write the sums over all clients from `depth` partial ones."""
    for u in range(len(combined.sums)):
        merge_totals(totals[u], depth, length)
        unpad_layers(totals[u], layers, combined.sums[u])


@part
def combine_sources(sources: np.ndarray, c: int, layers: np.ndarray, factors: np.ndarray, out: np.ndarray) -> None:
    """out <- sum_k factors_k source_k of client c, as padded layers. It writes no pads and no missing bias."""
    for k in range(len(layers)):
        pieces, own = _pieces(layers[k, 0], layers[k, 1])
        for piece in range(pieces + (layers[k, 3] >= 0)):
            at, place, n = _piece(layers, k, piece, pieces, own)
            for first in range(0, n, BLOCK):
                count = min(BLOCK, n - first)
                begin = at + first
                out[begin : begin + count] = _0
                for s in range(len(factors)):
                    _add_source(sources, s, c, factors[s], place + first, count, out, begin)
