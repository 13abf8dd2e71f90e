"""Products of a batch with a layer: forward pass, backward pass, gradient step.

Eight products run at once, each on a vector of eight numbers, so that few numbers are read for each product.
"""

from __future__ import annotations

import numpy as np

from fl.execution.training.native.jit import inlined, part
from fl.execution.training.native.memory import ROWS, padded
from fl.execution.training.native.vector import WIDTH, fma, load, splat, store, sums

COLUMNS = (
    256  # columns of a matrix that are worked on at once; for the samples of a batch they stay in the nearest cache
)
IDENTITY, RELU, TANH, SIGMOID = 0, 1, 2, 3

_0, _1 = np.float32(0), np.float32(1)


@inlined
def forward(
    weight: np.ndarray,
    bias: np.ndarray,
    h: np.ndarray,
    z: np.ndarray,
    count: int,
    n_in: int,
    n_out: int,
    activation: int,
) -> None:
    """z <- phi(h W^T + b)."""
    wide, across, nothing = padded(n_in), padded(n_out), splat(_0)
    for o in range(0, n_out, ROWS):
        for b in range(0, count, 2):  # eight products at once, for six vectors read
            s0, s1, s2, s3 = nothing, nothing, nothing, nothing
            t0, t1, t2, t3 = nothing, nothing, nothing, nothing
            for i in range(0, wide, WIDTH):
                x, y, at = load(h, b * wide + i), load(h, (b + 1) * wide + i), o * wide + i
                w0, w1 = load(weight, at), load(weight, at + wide)
                w2, w3 = load(weight, at + 2 * wide), load(weight, at + 3 * wide)
                s0, s1, s2, s3 = fma(x, w0, s0), fma(x, w1, s1), fma(x, w2, s2), fma(x, w3, s3)
                t0, t1, t2, t3 = fma(y, w0, t0), fma(y, w1, t1), fma(y, w2, t2), fma(y, w3, t3)
            sums(s0, s1, s2, s3, bias, o, z, b * across + o)
            sums(t0, t1, t2, t3, bias, o, z, (b + 1) * across + o)
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
    below[: count * wide] = _0
    _add_product(below, count, g, across, 1, _1, weight, n_out, wide)
    times_slope(below, h, count * wide, activation)


@inlined
def times_slope(below: np.ndarray, h: np.ndarray, n: int, activation: int) -> None:
    """below[:n] <- below[:n] * phi'(h[:n])."""
    for i in range(n):
        if activation == RELU:
            below[i] = below[i] if h[i] > 0 else _0
        elif activation == TANH:
            below[i] *= _1 - h[i] * h[i]
        elif activation == SIGMOID:
            below[i] *= h[i] * (_1 - h[i])


@inlined
def gradient_step(
    weight: np.ndarray,
    bias: np.ndarray,
    biased: bool,
    g: np.ndarray,
    h: np.ndarray,
    count: int,
    n_in: int,
    n_out: int,
    rate: np.float32,
) -> None:
    """W <- W - rate g^T h,  b <- b - rate sum(g)."""
    across = padded(n_out)
    _add_product(weight, n_out, g, 1, across, -rate, h, count, padded(n_in))
    if biased:
        bias_step(bias, g, count, n_out, rate)


@inlined
def bias_step(bias: np.ndarray, g: np.ndarray, count: int, n_out: int, rate: np.float32) -> None:
    """b <- b - rate sum(g)."""
    for o in range(0, n_out, WIDTH):
        v = load(bias, o)
        for b in range(count):
            v = fma(splat(-rate), load(g, b * padded(n_out) + o), v)
        store(bias, o, v)


@inlined
def _add_product(
    out: np.ndarray,
    rows: int,
    g: np.ndarray,
    down: int,
    along: int,
    factor: np.float32,
    lines: np.ndarray,
    terms: int,
    wide: int,
) -> None:
    """out[r] <- out[r] + sum_t factor g[r down + t along] lines[t], for lines of `wide` numbers.

    Rows come in pairs; an odd last row is followed by a pad. The smaller number, of rows or terms, is the inner loop,
    so that it stays in the nearest cache.
    """
    for first in range(0, wide, COLUMNS):
        last = min(first + COLUMNS, wide)
        if rows >= terms:
            for r in range(0, rows, 2):
                for t in range(0, terms - 3, 4):
                    add_four(out, r, g, down, along, factor, lines, t, first, last, wide)
                for t in range(terms - terms % 4, terms):
                    add_one(out, r, g, down, along, factor, lines, t, first, last, wide)
        else:
            for t in range(0, terms - 3, 4):
                for r in range(0, rows, 2):
                    add_four(out, r, g, down, along, factor, lines, t, first, last, wide)
            for t in range(terms - terms % 4, terms):
                for r in range(0, rows, 2):
                    add_one(out, r, g, down, along, factor, lines, t, first, last, wide)


@inlined
def add_four(
    out: np.ndarray,
    r: int,
    g: np.ndarray,
    down: int,
    along: int,
    factor: np.float32,
    lines: np.ndarray,
    t: int,
    first: int,
    last: int,
    wide: int,
) -> None:
    """Add terms t..t+3 to rows r and r + 1: eight products at once, for six vectors read and two written."""
    at, o, l0 = r * down + t * along, r * wide, t * wide
    l1, l2, l3 = l0 + wide, l0 + 2 * wide, l0 + 3 * wide
    x0, y0 = splat(factor * g[at]), splat(factor * g[at + down])
    x1, y1 = splat(factor * g[at + along]), splat(factor * g[at + down + along])
    x2, y2 = splat(factor * g[at + 2 * along]), splat(factor * g[at + down + 2 * along])
    x3, y3 = splat(factor * g[at + 3 * along]), splat(factor * g[at + down + 3 * along])
    for i in range(first, last, WIDTH):
        v0, v1, v2, v3 = load(lines, l0 + i), load(lines, l1 + i), load(lines, l2 + i), load(lines, l3 + i)
        x, y = load(out, o + i), load(out, o + wide + i)
        x, y = fma(x0, v0, x), fma(y0, v0, y)
        x, y = fma(x1, v1, x), fma(y1, v1, y)
        x, y = fma(x2, v2, x), fma(y2, v2, y)
        x, y = fma(x3, v3, x), fma(y3, v3, y)
        store(out, o + i, x)
        store(out, o + wide + i, y)


@inlined
def add_one(
    out: np.ndarray,
    r: int,
    g: np.ndarray,
    down: int,
    along: int,
    factor: np.float32,
    lines: np.ndarray,
    t: int,
    first: int,
    last: int,
    wide: int,
) -> None:
    """Add term t to rows r and r + 1."""
    at, o, l0 = r * down + t * along, r * wide, t * wide
    x0, y0 = splat(factor * g[at]), splat(factor * g[at + down])
    for i in range(first, last, WIDTH):
        v0 = load(lines, l0 + i)
        store(out, o + i, fma(x0, v0, load(out, o + i)))
        store(out, o + wide + i, fma(y0, v0, load(out, o + wide + i)))
