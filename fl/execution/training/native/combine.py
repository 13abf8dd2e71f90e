"""Linear combinations of a client's vectors, in one pass over its layers.

    combination = factor_0 (trained - start) + factor_1 trained + sum_k factor_(2 + k) source_k

A source is a row of `Params` in memory of its own, such as the client's state or a group of the broadcast. All
combinations of GROUP numbers are computed, one after another, before the next numbers are read: then each array is
read once, from its beginning to its end, and no sum leaves the registers. A factor of 0 costs nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fl.execution.training.native.jit import inlined, part
from fl.execution.training.native.memory import (
    PAD,
    add_update,
    merge_totals,
    padded,
    unpad_layers,
    weights_length,
)
from fl.execution.training.native.products import add_products, four_times
from fl.execution.training.native.vector import (
    WIDE,
    WIDTH,
    fill_wide,
    fma,
    load,
    load_at,
    load_wide,
    load_wide_at,
    one_at,
    splat,
    store,
    zeros_wide,
)

GROUP = 4 * WIDE  # numbers that are combined at once
DELTA, TRAINED, OWN = 0, 1, 2  # columns of factors: trained - start, trained, and the first source

_0 = np.float32(0)


class Combined(NamedTuple):
    """Combinations that training writes beside its other results.

    sources: int64 (S, C), address of each client's row.
    row_factors: float32 (R, C, 2 + S), factors of combinations that are written for each client.
    rows: float32 (R, C, P), these combinations. If there is one (R = 1), it may take the place of a source: of each
        number, the sums are computed first.
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


# -- four wide vectors that follow one another -------------------------------------------------------------------------
@inlined
def _load_four(x: np.ndarray, i: int) -> Any:
    return load_wide(x, i), load_wide(x, i + WIDE), load_wide(x, i + 2 * WIDE), load_wide(x, i + 3 * WIDE)


@inlined
def _store_four(x: np.ndarray, i: int, v: Any) -> None:
    store(x, i, v[0])
    store(x, i + WIDE, v[1])
    store(x, i + 2 * WIDE, v[2])
    store(x, i + 3 * WIDE, v[3])


@inlined
def _minus(x: Any, y: Any) -> Any:
    return x[0] - y[0], x[1] - y[1], x[2] - y[2], x[3] - y[3]


@inlined
def _times(factor: np.float32, x: Any) -> Any:
    by = fill_wide(factor)
    return by * x[0], by * x[1], by * x[2], by * x[3]


@inlined
def _with_sources(sources: np.ndarray, factors: np.ndarray, c: int, place: int, v: Any) -> Any:
    """v + sum_k factors_k source_k of client c, from number `place` on."""
    for s in range(len(factors)):
        factor, address = factors[s], sources[s, c]
        if factor != _0:
            x, y = load_wide_at(address, place), load_wide_at(address, place + WIDE)
            z, w = load_wide_at(address, place + 2 * WIDE), load_wide_at(address, place + 3 * WIDE)
            v = add_products(fill_wide(factor), (x, y, z, w), v)
    return v


@inlined
def _group(trained: Any, delta: Any, sources: np.ndarray, factors: np.ndarray, c: int, place: int) -> Any:
    """The combination, of the trained parameters and their changes from number `place` of client c on."""
    v = four_times(zeros_wide())
    if factors[DELTA] != _0:
        v = _times(factors[DELTA], delta)
    if factors[TRAINED] != _0:
        v = add_products(fill_wide(factors[TRAINED]), trained, v)
    return _with_sources(sources, factors[OWN:], c, place, v)


@inlined
def _add_group(
    some: Any, weight: np.float32, totals: np.ndarray, at: int, length: int, depth: int, merges: int
) -> None:
    """totals[depth - merges] <- weight some + the last `merges` of `depth` totals, the last one first."""
    v = _times(weight, some)
    for level in range(depth - 1, depth - 1 - merges, -1):
        w = _load_four(totals, level * length + at)
        v = w[0] + v[0], w[1] + v[1], w[2] + v[2], w[3] + v[3]
    _store_four(totals, (depth - merges) * length + at, v)


# -- fewer numbers than GROUP ------------------------------------------------------------------------------------------
@inlined
def _add_source(
    sources: np.ndarray, s: int, c: int, factor: np.float32, place: int, count: int, out: np.ndarray, at: int
) -> None:
    """out[at : at + count] <- out + factor source_s, from number `place` of client c on."""
    by, address, whole = splat(factor), sources[s, c], count - count % WIDTH
    if factor != _0:
        for i in range(0, whole, WIDTH):
            store(out, at + i, fma(by, load_at(address, place + i), load(out, at + i)))
        for i in range(whole, count):
            out[at + i] += factor * one_at(address, place + i)


@inlined
def _rest(
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
    n_in, n_out, weight, bias, offset = layers[k, 0], layers[k, 1], layers[k, 2], layers[k, 3], layers[k, 5]
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
    factors: np.ndarray,
    changes: np.ndarray,
    depth: int,
    merges: int,
    some: np.ndarray,
) -> None:
    """Write the combinations of client c, and add those that are summed to `totals`, (U, levels * padded length).

    If there are `factors` (C,), the change of the parameters is added to `changes`, see `memory.add_update`.
    """
    length, sources, weights = len(client), combined.sources, combined.weights
    for k in range(len(layers)):
        n_in, n_out, weight, bias = layers[k, 0], layers[k, 1], layers[k, 2], layers[k, 3]
        pieces, own = _pieces(n_in, n_out)
        for piece in range(0 if weight >= 0 else pieces, pieces + (bias >= 0)):
            at, place, n = _piece(layers, k, piece, pieces, own)
            rest = n % GROUP
            for i in range(0, n - rest, GROUP):
                a, b = at + i, place + i
                trained = _load_four(client, a)
                delta = _minus(trained, _load_four(initial, a))
                for u in range(len(combined.sums)):
                    v = _group(trained, delta, sources, combined.sum_factors[u, c], c, b)
                    _add_group(v, weights[u, c], totals[u], a, length, depth, merges)
                for r in range(len(combined.rows)):
                    v = _group(trained, delta, sources, combined.row_factors[r, c], c, b)
                    _store_four(combined.rows[r, c], b, v)
                if len(factors):
                    _add_group(delta, factors[c], changes, a, length, depth, merges)
            a, b = at + n - rest, place + n - rest
            if rest:
                for u in range(len(combined.sums)):
                    _rest(client, initial, a, sources, c, b, rest, combined.sum_factors[u, c], some)
                    _add(some, rest, weights[u, c], totals[u], a, length, depth, merges)
                for r in range(len(combined.rows)):
                    _rest(client, initial, a, sources, c, b, rest, combined.row_factors[r, c], some)
                    _put(some, rest, combined.rows[r, c], b)
                if len(factors):
                    add_update(client, initial, factors[c], changes, a, rest, depth, merges)
        for r in range(len(combined.rows)):  # gaps of `Params` hold zeros
            if weight >= 0:
                combined.rows[r, c, weight + n_out * n_in : weight + padded(n_out * n_in)] = _0
            if bias >= 0:
                combined.rows[r, c, bias + n_out : bias + padded(n_out)] = _0


@inlined
def write_client(
    client: np.ndarray,
    initial: np.ndarray,
    layers: np.ndarray,
    combined: Combined,
    params: np.ndarray,
    minus_start: bool,
    factors: np.ndarray,
    c: int,
    totals: np.ndarray,
    changes: np.ndarray,
    depth: int,
    merges: int,
    some: np.ndarray,
) -> None:
    """Write all results of client c, or add them to `totals` and `changes`, see `combine`. It may change `client`.

    `params`, `minus_start` and `factors` are those of `clients.Results`.
    """
    if len(combined.rows) or len(combined.sums):
        combine(client, initial, layers, combined, c, totals, factors, changes, depth, merges, some)
    elif len(factors):
        add_update(client, initial, factors[c], changes, 0, len(client), depth, merges)
    if len(params) and not len(factors):
        if minus_start:
            for i in range(len(client)):
                client[i] -= initial[i]
        unpad_layers(client, layers, params[c])


@part
def write_sums(
    layers: np.ndarray,
    combined: Combined,
    params: np.ndarray,
    factors: np.ndarray,
    totals: np.ndarray,
    changes: np.ndarray,
    depth: int,
    length: int,
) -> None:
    """Write the sums over all clients from `depth` partial ones of `length` numbers."""
    for u in range(len(combined.sums)):
        merge_totals(totals[u], depth, length)
        unpad_layers(totals[u], layers, combined.sums[u])
    if len(factors):
        merge_totals(changes, depth, length)
        unpad_layers(changes, layers, params[0])


@part
def combine_sources(sources: np.ndarray, c: int, layers: np.ndarray, factors: np.ndarray, out: np.ndarray) -> None:
    """out <- sum_k factors_k source_k of client c, as padded layers. It writes no pads and no missing tensor."""
    for k in range(len(layers)):
        pieces, own = _pieces(layers[k, 0], layers[k, 1])
        for piece in range(0 if layers[k, 2] >= 0 else pieces, pieces + (layers[k, 3] >= 0)):
            at, place, n = _piece(layers, k, piece, pieces, own)
            rest = n % GROUP
            for i in range(0, n - rest, GROUP):
                v = _with_sources(sources, factors, c, place + i, four_times(zeros_wide()))
                _store_four(out, at + i, v)
            begin = at + n - rest
            out[begin : begin + rest] = _0
            for s in range(len(factors)):
                _add_source(sources, s, c, factors[s], place + n - rest, rest, out, begin)
