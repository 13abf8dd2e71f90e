"""Products of a batch with a layer: forward pass, backward pass, and steps along the gradient.

Sums stay in registers until they are done: those of four rows and two wide vectors of columns, or of four outputs and
two or four samples. The number of registers changes how many are added up at once, but neither terms nor their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fl.execution.training.native.jit import inlined, part
from fl.execution.training.native.memory import ROWS, WEIGHTS, padded, weights_length
from fl.execution.training.native.vector import (
    AVX512,
    WIDE,
    WIDTH,
    fma,
    load,
    load_wide,
    splat,
    splat_wide,
    store,
    sums,
    zeros_wide,
)

IDENTITY, RELU, TANH, SIGMOID = 0, 1, 2, 3

_0, _1 = np.float32(0), np.float32(1)


class Layer(NamedTuple):
    """A layer in a backward pass.

    w: float32, all layers of a client; this one begins at `offset`.
    g: the gradient in its outputs, a batch.
    h: its inputs, a batch.
    trained: what is trained of it, see memory.py.
    count: samples of the batch.
    """

    w: np.ndarray
    offset: int
    n_in: int
    n_out: int
    trained: int
    g: np.ndarray
    h: np.ndarray
    count: int  # type: ignore[assignment]  # in place of tuple.count


class Following(NamedTuple):
    """The next batch, which passes through the rows of a layer that have just changed.

    h: inputs of the layer.
    z: h W^T + b, written.
    count: samples; 0 if the layer's inputs are not known yet.
    """

    h: np.ndarray
    z: np.ndarray
    count: int  # type: ignore[assignment]  # in place of tuple.count


def change_layer(begin: Callable[..., None], change_rows: Callable[..., None]) -> Any:
    """Return a function (how, layer, following) that changes a layer while each part of it is in the nearest cache.

    Args:
        begin: `begin(how, layer)` changes the bias if it is trained, and may change `layer.g`.
        change_rows: `change_rows(how, layer, o)` changes the rows o to o + 3 of the weights, if they are trained.
    """

    @part
    def change(how: Any, layer: Layer, following: Following) -> None:
        weight, bias = layer.w[layer.offset :], layer.w[layer.offset + weights_length(layer.n_in, layer.n_out) :]
        begin(how, layer)
        for o in range(0, layer.n_out, ROWS):
            if layer.trained & WEIGHTS:
                change_rows(how, layer, o)
            outputs_of_rows(weight, bias, following.h, following.z, following.count, o, layer.n_in, layer.n_out)

    return change


@part
def forward(
    weight: np.ndarray, bias: np.ndarray, h: np.ndarray, z: np.ndarray, count: int, n_in: int, n_out: int
) -> None:
    """z <- h W^T + b."""
    for o in range(0, n_out, ROWS):
        outputs_of_rows(weight, bias, h, z, count, o, n_in, n_out)


@inlined
def outputs_of_rows(
    weight: np.ndarray, bias: np.ndarray, h: np.ndarray, z: np.ndarray, count: int, o: int, n_in: int, n_out: int
) -> None:
    """z <- h W^T + b for the outputs o to o + 3."""
    wide, across, nothing, done = padded(n_in), padded(n_out), four_times(splat(_0)), 0
    if AVX512:
        done = (count + 1) // 4 * 4
        for b in range(0, done, 4):  # the number of samples may be one less
            s, t, u, v = nothing, nothing, nothing, nothing
            for i in range(0, wide, WIDTH):
                w, at = four_vectors(weight, o * wide + i, wide), b * wide + i
                s, t = add_products(load(h, at), w, s), add_products(load(h, at + wide), w, t)
                u, v = add_products(load(h, at + 2 * wide), w, u), add_products(load(h, at + 3 * wide), w, v)
            at = b * across + o
            sums(*s, bias, o, z, at)
            sums(*t, bias, o, z, at + across)
            sums(*u, bias, o, z, at + 2 * across)
            sums(*v, bias, o, z, at + 3 * across)
    for b in range(done, count, 2):  # eight products at once, for six vectors read
        s, t = nothing, nothing
        for i in range(0, wide, WIDTH):
            w, at = four_vectors(weight, o * wide + i, wide), b * wide + i
            s, t = add_products(load(h, at), w, s), add_products(load(h, at + wide), w, t)
        sums(*s, bias, o, z, b * across + o)
        sums(*t, bias, o, z, (b + 1) * across + o)


@inlined
def four_times(x: Any) -> Any:
    """Four equal vectors."""
    return x, x, x, x


@inlined
def four_vectors(array: np.ndarray, at: int, stride: int) -> Any:
    """Four vectors that begin `stride` numbers apart."""
    return load(array, at), load(array, at + stride), load(array, at + 2 * stride), load(array, at + 3 * stride)


@inlined
def add_products(x: Any, y: Any, s: Any) -> Any:
    """x y_r + s_r for four vectors."""
    return fma(x, y[0], s[0]), fma(x, y[1], s[1]), fma(x, y[2], s[2]), fma(x, y[3], s[3])


@inlined
def activate(z: np.ndarray, count: int, n_out: int, activation: int) -> None:
    """z <- phi(z)."""
    across = padded(n_out)
    if activation == RELU:
        for i in range(count * across):
            z[i] = _0 if z[i] < 0 else z[i]
    elif activation == TANH:
        for i in range(count * across):
            z[i] = np.tanh(z[i])
    elif activation == SIGMOID:
        for b in range(count):
            for i in range(b * across, b * across + n_out):
                z[i] = _1 / (_1 + np.exp(-z[i]))


@part
def backward(
    weight: np.ndarray,
    g: np.ndarray,
    h: np.ndarray,
    count: int,
    n_in: int,
    n_out: int,
    activation: int,
    below: np.ndarray,
) -> None:
    """below <- (g W) * phi'(h)."""
    wide, across = padded(n_in), padded(n_out)
    for b in range(0, count, ROWS):  # nothing uses the numbers after the last sample
        four_rows(below, b * wide, False, g, b * across, across, 1, n_out, weight, wide)
    times_slope(below, h, count * wide, activation)


@part
def outside_span(
    columns: np.ndarray, k: int, h: np.ndarray, count: int, n_in: int, shares: np.ndarray, out: np.ndarray
) -> None:
    """out <- h - (h U) U^T. `columns`: the k columns of U, stored as the weights of k outputs; `shares` <- h U."""
    forward(columns, columns[weights_length(n_in, k) :], h, shares, count, n_in, k)
    backward(columns, shares, h, count, n_in, k, IDENTITY, out)
    for i in range(0, count * padded(n_in), WIDTH):
        store(out, i, load(h, i) - load(out, i))


@inlined
def times_slope(below: np.ndarray, h: np.ndarray, n: int, activation: int) -> None:
    """below[:n] <- below[:n] * phi'(h[:n])."""
    for i in range(n):
        if activation == RELU:
            below[i] = _0 if h[i] <= 0 else below[i]  # NaN stays NaN
        elif activation == TANH:
            below[i] *= _1 - h[i] * h[i]
        elif activation == SIGMOID:
            below[i] *= h[i] * (_1 - h[i])


@inlined
def bias_step(bias: np.ndarray, g: np.ndarray, count: int, n_out: int, rate: np.float32) -> None:
    """b <- b - rate sum(g)."""
    for o in range(0, n_out, WIDTH):
        v = load(bias, o)
        for b in range(count):
            v = fma(splat(-rate), load(g, b * padded(n_out) + o), v)
        store(bias, o, v)


@inlined
def gradient_rows(out: np.ndarray, to: int, adds: bool, layer: Layer, o: int) -> None:
    """Write the rows o to o + 3 of g^T h from out[to] on, or add them to what is there."""
    wide, across = padded(layer.n_in), padded(layer.n_out)
    four_rows(out, to, adds, layer.g, o, 1, across, layer.count, layer.h, wide)


def rows_of_products(begin: Callable[..., Any]) -> Any:
    """Return a function that computes four rows of a product.

    Args:
        begin: `begin(how, out, at, wide)` returns what the sums begin with, four wide vectors: those that belong to
            out[at], out[at + wide], ...
    """

    @inlined
    def four_rows(
        out: np.ndarray,
        to: int,
        how: Any,
        f: np.ndarray,
        at: int,
        down: int,
        along: int,
        terms: int,
        lines: np.ndarray,
        wide: int,
    ) -> None:
        """row_r <- begin_r + sum_t f[at + r down + t along] lines[t], for r < 4. Rows and lines: `wide` numbers.

        The rows follow one another from out[to] on. A row is a multiple of 16 numbers.
        """
        for i in range(0, wide - WIDE, 2 * WIDE):  # eight products at once, for two vectors and four numbers read
            s, t = begin(how, out, to + i, wide), begin(how, out, to + i + WIDE, wide)
            for k in range(terms):
                x, y = load_wide(lines, k * wide + i), load_wide(lines, k * wide + i + WIDE)
                four = _four_numbers(f, at + k * along, down)
                s, t = add_products(x, four, s), add_products(y, four, t)
            _store_rows(out, to + i, s, wide)
            _store_rows(out, to + i + WIDE, t, wide)
        if wide % (2 * WIDE):
            i = wide - WIDE
            s = begin(how, out, to + i, wide)
            for k in range(terms):
                s = add_products(load_wide(lines, k * wide + i), _four_numbers(f, at + k * along, down), s)
            _store_rows(out, to + i, s, wide)

    return four_rows


@inlined
def rows_or_zeros(adds: bool, out: np.ndarray, at: int, wide: int) -> Any:
    """Four wide vectors of rows if `adds`, else zeros."""
    if adds:
        return (
            load_wide(out, at),
            load_wide(out, at + wide),
            load_wide(out, at + 2 * wide),
            load_wide(out, at + 3 * wide),
        )
    return four_times(zeros_wide())


@inlined
def _store_rows(out: np.ndarray, at: int, s: Any, wide: int) -> None:
    store(out, at, s[0])
    store(out, at + wide, s[1])
    store(out, at + 2 * wide, s[2])
    store(out, at + 3 * wide, s[3])


@inlined
def _four_numbers(f: np.ndarray, at: int, down: int) -> Any:
    """Four numbers, each in all places of a vector."""
    return splat_wide(f, at), splat_wide(f, at + down), splat_wide(f, at + 2 * down), splat_wide(f, at + 3 * down)


four_rows = rows_of_products(rows_or_zeros)
