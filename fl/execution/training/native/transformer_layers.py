"""Layers of a transformer beside its frozen products, for one sample: norms, GELU, attention, embedding, head and loss.

Arrays have `rows` rows: one for each position, and further ones that no position attends to.
"""

from __future__ import annotations

import math

import numpy as np

from fl.execution.training.native.jit import inlined, part
from fl.execution.training.native.tiles import HEIGHT, PANEL, tile, turned_tile
from fl.execution.training.native.transformer_tape import Sizes, Tape
from fl.execution.training.native.vector import (
    WIDTH,
    absolute,
    choose,
    exp,
    fma,
    larger,
    largest,
    load,
    splat,
    store,
    total,
)

EPS = 1e-5  # of nn.LayerNorm
UNSEEN, NO_PLACE = np.float32(-1e9), np.float32(-1e30)  # added to the scores of hidden positions, and of further rows
_0, _1 = np.float32(0), np.float32(1)
# erf of Abramowitz and Stegun 7.1.26, error 1.5e-7: 1 - t (c_1 + t (c_2 + ...)) e^(-z^2), t = 1 / (1 + p z); c halved
_P = np.float32(0.3275911 / math.sqrt(2))
_C1, _C2, _C3 = np.float32(0.254829592 / 2), np.float32(-0.284496736 / 2), np.float32(1.421413741 / 2)
_C4, _C5 = np.float32(-1.453152027 / 2), np.float32(1.061405429 / 2)
_DENSITY = np.float32(1 / math.sqrt(2 * math.pi))


@part
def normalise(
    h: np.ndarray, norm: np.ndarray, x: np.ndarray, scales: np.ndarray, y: np.ndarray, y_row: int, rows: int
) -> None:
    """x <- (h - mean h) / sqrt(var h + eps);  y <- gain x + shift, for norm = (gain, shift), (2, width)."""
    width, gain, shift = norm.shape[1], norm[0], norm[1]
    size = np.float32(width)
    for r in range(rows):
        at, sums, squares = r * width, splat(_0), splat(_0)
        for i in range(at, at + width, WIDTH):
            sums = sums + load(h, i)
        mean = splat(total(sums) / size)
        for i in range(at, at + width, WIDTH):
            v = load(h, i) - mean
            squares = fma(v, v, squares)
        scales[r] = _1 / np.float32(math.sqrt(total(squares) / size + np.float32(EPS)))
        scale = splat(scales[r])
        for i in range(0, width, WIDTH):
            v = (load(h, at + i) - mean) * scale
            store(x, at + i, v)
            store(y, r * y_row + i, fma(v, load(gain, i), load(shift, i)))


@part
def normalise_backward(
    g: np.ndarray, norm: np.ndarray, x: np.ndarray, scales: np.ndarray, out: np.ndarray, out_row: int, rows: int
) -> None:
    """out += the gradient of the inputs, from the gradient g of the outputs; see norms.py."""
    width, gain = norm.shape[1], norm[0]
    size = np.float32(width)
    for r in range(rows):
        at, to, sums, products = r * width, r * out_row, splat(_0), splat(_0)
        for i in range(0, width, WIDTH):
            v = load(g, at + i) * load(gain, i)
            sums, products = sums + v, fma(load(x, at + i), v, products)
        mean, along, scale = splat(total(sums) / size), splat(-total(products) / size), splat(scales[r])
        for i in range(0, width, WIDTH):
            v = fma(load(x, at + i), along, load(g, at + i) * load(gain, i)) - mean
            store(out, to + i, fma(v, scale, load(out, to + i)))


@part
def gelu(z: np.ndarray, z_row: int, width: int, slope: np.ndarray, rows: int) -> None:
    """slope <- GELU'(z);  z <- GELU(z) = z Phi(z)."""
    half, one, p, density = splat(np.float32(-0.5)), splat(_1), splat(_P), splat(_DENSITY)
    c1, c2, c3, c4, c5 = splat(_C1), splat(_C2), splat(_C3), splat(_C4), splat(_C5)
    for r in range(rows):
        for i in range(0, width, WIDTH):
            x = load(z, r * z_row + i)
            power, t = exp(x * x * half), one / fma(absolute(x), p, one)
            tail = fma(t, fma(t, fma(t, fma(t, c5, c4), c3), c2), c1) * t * power
            share = choose(x, one - tail, tail)
            store(z, r * z_row + i, x * share)
            store(slope, r * width + i, fma(x * density, power, share))


@part
def transpose(x: np.ndarray, x_row: int, rows: int, columns: int, out: np.ndarray) -> None:
    """out (columns, rows) <- x[:, :columns]^T."""
    for j in range(columns):
        for r in range(rows):
            out[j * rows + r] = x[r * x_row + j]


@part
def attend(
    tape: Tape, s: Sizes, unseen: np.ndarray, future: np.ndarray, turned: np.ndarray, nothing: np.ndarray
) -> None:
    """context <- attention over qkv, without its linear layers.

    unseen: added to the scores of each position, (rows,). future: added to all scores, (rows, rows).
    """
    n, wide, one, to = s.rows, 3 * s.width, s.width // s.heads, s.width + s.rank
    scale = splat(np.float32(one**-0.5))
    for head in range(s.heads):
        q, shares, context = tape.qkv[head * one :], tape.shares[head * n * n :], tape.context[head * one :]
        k, v = q[s.width :], q[2 * s.width :]
        transpose(k, wide, n, one, turned)
        for j in range(0, n, PANEL):
            for r in range(0, n, HEIGHT):
                tile(shares, r * n + j, n, nothing, 0, 0, q, r * wide, wide, turned, j, n, one)
        for r in range(0, n * n, n):
            most, sums = splat(NO_PLACE), splat(_0)
            for i in range(0, n, WIDTH):
                score = fma(load(shares, r + i), scale, load(unseen, i) + load(future, r + i))
                most = larger(most, score)
                store(shares, r + i, score)
            most = splat(largest(most))
            for i in range(r, r + n, WIDTH):
                power = exp(load(shares, i) - most)
                sums = sums + power
                store(shares, i, power)
            share = splat(_1 / total(sums))
            for i in range(r, r + n, WIDTH):
                store(shares, i, load(shares, i) * share)
        for j in range(0, one, PANEL):
            for r in range(0, n, HEIGHT):
                tile(context, r * to + j, to, nothing, 0, 0, shares, r * n, n, v, j, wide, n)


@part
def attend_backward(
    tape: Tape, s: Sizes, g: np.ndarray, out: np.ndarray, turned: np.ndarray, slopes: np.ndarray, nothing: np.ndarray
) -> None:
    """out (rows, 3 width + r) <- the gradient of qkv, from the gradient g (rows, width) of the context."""
    n, width, wide, one, to = s.rows, s.width, 3 * s.width, s.width // s.heads, 3 * s.width + s.rank
    scale = splat(np.float32(one**-0.5))
    for head in range(s.heads):
        q, shares, below = tape.qkv[head * one :], tape.shares[head * n * n :], g[head * one :]
        k, v, to_q = q[width:], q[2 * width :], out[head * one :]
        to_k, to_v = to_q[width:], to_q[2 * width :]
        transpose(v, wide, n, one, turned)
        for j in range(0, n, PANEL):
            for r in range(0, n, HEIGHT):
                tile(slopes, r * n + j, n, nothing, 0, 0, below, r * width, width, turned, j, n, one)
        for r in range(0, n * n, n):
            along = splat(_0)
            for i in range(r, r + n, WIDTH):
                along = fma(load(slopes, i), load(shares, i), along)
            along = splat(total(along))
            for i in range(r, r + n, WIDTH):
                store(slopes, i, (load(slopes, i) - along) * load(shares, i) * scale)
        for j in range(0, one, PANEL):
            for r in range(0, n, HEIGHT):
                at = r * to + j
                tile(to_q, at, to, nothing, 0, 0, slopes, r * n, n, k, j, wide, n)
                turned_tile(to_k, at, to, nothing, 0, 0, slopes, r, n, q, j, wide, n)
                turned_tile(to_v, at, to, nothing, 0, 0, shares, r, n, below, j, width, n)


@inlined
def add_to_rows(h: np.ndarray, bias: np.ndarray, width: int, rows: int) -> None:
    """h[r] <- h[r] + bias."""
    for r in range(0, rows * width, width):
        for i in range(0, width, WIDTH):
            store(h, r + i, load(h, r + i) + load(bias, i))


@part
def embed(
    ids: np.ndarray, embedding: np.ndarray, positions: np.ndarray, s: Sizes, h: np.ndarray, unseen: np.ndarray
) -> None:
    """h <- E[ids] + P, with zeros after the last position; mark what is not attended to."""
    h[:] = _0
    unseen[:] = NO_PLACE
    for t in range(s.places):
        unseen[t] = UNSEEN if ids[t] == s.padding else _0
        row, place = embedding[ids[t]], positions[t]
        for i in range(0, s.width, WIDTH):
            store(h, t * s.width + i, load(row, i) + load(place, i))


@part
def answer(
    params: np.ndarray,
    y: np.ndarray,
    unseen: np.ndarray,
    label: int,
    weight: np.float32,
    s: Sizes,
    out: np.ndarray,
    g: np.ndarray,
    mean: np.ndarray,
    scores: np.ndarray,
) -> float:
    """Head and loss of one sample with the outputs y of the last norm. Returns the loss.

    Adds weight dloss/dhead to `out`; g <- weight dloss/dy.
    """
    width, known = s.width, _0
    mean[:] = _0
    for t in range(s.places):
        if unseen[t] == _0:
            known += _1
            for i in range(0, width, WIDTH):
                store(mean, i, load(mean, i) + load(y, t * width + i))
    share = _1 / max(known, _1)
    for i in range(0, width, WIDTH):
        store(mean, i, load(mean, i) * splat(share))
    most, powers = -np.inf, 0.0
    for c in range(s.classes):
        sums = splat(_0)
        for i in range(0, width, WIDTH):
            sums = fma(load(params, s.head + c * width + i), load(mean, i), sums)
        scores[c] = total(sums) + params[s.bias + c]
        most = max(most, scores[c])
    for c in range(s.classes):
        powers += math.exp(scores[c] - most)
    loss = math.log(powers) - (scores[label] - most)
    g[: s.rows * width] = _0
    below = g[:width]
    for c in range(s.classes):
        slope = weight * np.float32(math.exp(scores[c] - most) / powers - (c == label))
        out[s.bias + c] += slope
        for i in range(0, width, WIDTH):
            at = s.head + c * width + i
            store(out, at, fma(splat(slope), load(mean, i), load(out, at)))
            store(below, i, fma(splat(slope * share), load(params, at), load(below, i)))
    for t in range(s.places - 1, -1, -1):
        for i in range(0, width, WIDTH):
            store(g, t * width + i, load(below, i) if unseen[t] == _0 else splat(_0))
    return loss
