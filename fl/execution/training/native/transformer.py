"""Gradients of a transformer's adapters and head, one client after another; fl/models/architectures/transformer.py has
the equations.

    [x | u] [W | s B]^T,  u = x A^T            outputs of a frozen layer with the factors A (r, in) and B (out, r)
    [g | v] [W ; A],      v = s g B            gradient of its inputs
    dA += v^T x,          dB^T += u^T g        gradients of the factors

The weights lie in panels of PANEL columns with r more rows, into which each client's factors are written. A layer is
computed sample after sample, so that a sample's rows and the layer's weights stay in the near caches.

A row of `linear` (4 layers, 8) describes a frozen layer (attention's inputs and output, up, down of each layer):

    inputs, outputs, rank (0: no adapter), offsets of A and B in a row of `Params`, of its panels forward and backward,
    of its factors

`factors` has A^T (in, r) and s B (out, r) of each layer, `changes` at the same offsets dA (r, in) and dB^T (r, out). r
is the same for all layers: the largest rank, rounded up; smaller factors are filled with zeros. Samples have `rows`
rows, the number of positions rounded up. The rows after the last position are never attended to.

`gradients` is compiled on its first import on a machine and kept (cache.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types

from fl.execution.training.native import cache
from fl.execution.training.native.jit import in_caller, inlined, owner, part
from fl.execution.training.native.tiles import HEIGHT, PANEL, THIN, thin_tile, tile, turned_tile
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
LINEAR = 4  # frozen linear layers of a transformer layer
INPUTS, OUTPUT, UP, DOWN = range(LINEAR)

_0, _1 = np.float32(0), np.float32(1)
# erf of Abramowitz and Stegun 7.1.26, error 1.5e-7: 1 - t (c_1 + t (c_2 + ...)) e^(-z^2), t = 1 / (1 + p z); c halved
_P = np.float32(0.3275911 / math.sqrt(2))
_C1, _C2, _C3 = np.float32(0.254829592 / 2), np.float32(-0.284496736 / 2), np.float32(1.421413741 / 2)
_C4, _C5 = np.float32(-1.453152027 / 2), np.float32(1.061405429 / 2)
_DENSITY = np.float32(1 / math.sqrt(2 * math.pi))


class Sizes(NamedTuple):
    """Numbers of the model, in this order in `numbers`.

    places: positions of a sample. rows: the same, rounded up to a multiple of PANEL.
    width, heads, forward, layers, classes: those of the model.
    rank: r, a multiple of THIN.
    causal: 1 if a position attends to earlier ones only. padding: the id of padding; -1: none.
    head, bias: offsets of the head's weights and bias in a row of `Params`.
    """

    places: int
    rows: int
    width: int
    heads: int
    forward: int
    layers: int
    classes: int
    rank: int
    causal: int
    padding: int
    head: int
    bias: int


class Tape(NamedTuple):
    """What the backward pass of a layer needs of one sample; `ends` has the lengths.

    first, second: normalised residuals, (rows, width). first_scale, second_scale: their scales, (rows,).
    inputs: [x | u] of attention's inputs, (rows, width + r). qkv: (rows, 3 width). shares: of attention, (heads, rows,
        rows). context: [x | u] of attention's output. up: [x | u] of the first forward layer.
    slope: derivative of GELU, (rows, forward). down: [x | u] of the second forward layer, (rows, forward + r).
    """

    first: np.ndarray
    inputs: np.ndarray
    qkv: np.ndarray
    shares: np.ndarray
    context: np.ndarray
    second: np.ndarray
    up: np.ndarray
    slope: np.ndarray
    down: np.ndarray
    first_scale: np.ndarray
    second_scale: np.ndarray


@in_caller
def tape_at(memory: np.ndarray, at: int, s: Sizes) -> Tape:
    """The tape that begins at memory[at]."""
    n, plain, more = s.rows, s.rows * s.width, s.rows * (s.width + s.rank)
    a = at + plain
    b = a + more
    c = b + 3 * plain
    d = c + s.heads * n * n
    e = d + more
    f = e + plain
    g = f + more
    h = g + n * s.forward
    i = h + n * (s.forward + s.rank)
    j, k = i + n, i + 2 * n
    first, inputs, qkv, shares, context = memory[at:a], memory[a:b], memory[b:c], memory[c:d], memory[d:e]
    second, up, slope, down = memory[e:f], memory[f:g], memory[g:h], memory[h:i]
    return Tape(first, inputs, qkv, shares, context, second, up, slope, down, memory[i:j], memory[j:k])


@inlined
def tape_length(s: Sizes) -> int:
    """Elements of a tape."""
    return s.rows * (8 * s.width + s.heads * s.rows + 2 * s.forward + 4 * s.rank + 2)


def memory_length(s: Sizes, batch: int, factors: int) -> int:
    """Elements of memory that `gradients` needs for batches of up to `batch` samples.

    Args:
        s: the model's sizes.
        batch: samples of the longest batch.
        factors: elements of the factors of all layers.
    """
    wide = s.rows * (max(3 * s.width, s.forward) + s.rank)
    samples = s.layers * tape_length.py_func(s) + s.rows * (3 * s.width + s.rank + 2)
    return int(batch * samples + 2 * factors + 2 * wide + s.rows * (2 * s.rows + max(s.rows, s.width)) + s.width)


# -- products ----------------------------------------------------------------------------------------------------------
@part
def product(
    x: np.ndarray,
    x_row: int,
    terms: int,
    panels: np.ndarray,
    columns: int,
    start: np.ndarray,
    start_row: int,
    out: np.ndarray,
    out_row: int,
    rows: int,
) -> None:
    """out <- start + x panels, for rows of x with `terms` numbers."""
    for j in range(0, columns, PANEL):
        for r in range(0, rows, HEIGHT):
            at, first, from_x, panel = r * out_row + j, r * start_row + j, r * x_row, terms * j
            tile(out, at, out_row, start, first, start_row, x, from_x, x_row, panels, panel, PANEL, terms)


@part
def inner_product(
    x: np.ndarray, x_row: int, terms: int, factor: np.ndarray, rank: int, nothing: np.ndarray, rows: int
) -> None:
    """x[:, terms:] <- x[:, :terms] factor (terms, rank)."""
    for j in range(0, rank, THIN):
        for r in range(0, rows, HEIGHT):
            at = r * x_row
            thin_tile(x, at + terms + j, x_row, nothing, 0, 0, x, at, x_row, factor, j, rank, terms)


@part
def outer_product(
    u: np.ndarray, u_at: int, u_row: int, rank: int, x: np.ndarray, x_row: int, columns: int, rows: int, out: np.ndarray
) -> None:
    """out (rank, columns) += u[:, u_at : u_at + rank]^T x[:, :columns]."""
    for j in range(0, columns, PANEL):
        for r in range(0, rank, HEIGHT):
            at = r * columns + j
            turned_tile(out, at, columns, out, at, columns, u, u_at + r, u_row, x, j, x_row, rows)


@part
def linear_backward(
    g: np.ndarray,
    g_row: int,
    x: np.ndarray,
    x_row: int,
    row: np.ndarray,
    panels: np.ndarray,
    factors: np.ndarray,
    changes: np.ndarray,
    rank: int,
    nothing: np.ndarray,
    rows: int,
    out: np.ndarray,
    out_row: int,
) -> None:
    """Add to the gradients of a layer's factors; out <- the gradient of its inputs, unless `out` is empty.

    g has the gradient of the outputs in its first columns; the next `rank` are written.
    """
    n_in, n_out, _, _, _, _, backward, at = row
    inner_product(g, g_row, n_out, factors[at + n_in * rank :], rank, nothing, rows)
    outer_product(g, n_out, g_row, rank, x, x_row, n_in, rows, changes[at:])
    outer_product(x, n_in, x_row, rank, g, g_row, n_out, rows, changes[at + n_in * rank :])
    if len(out):
        product(g, g_row, n_out + rank, panels[backward:], n_in, nothing, 0, out, out_row, rows)


# -- a client's factors ------------------------------------------------------------------------------------------------
@part
def write_factors(
    params: np.ndarray,
    linear: np.ndarray,
    scales: np.ndarray,
    rank: int,
    forward: np.ndarray,
    backward: np.ndarray,
    factors: np.ndarray,
) -> None:
    """Write a client's factors into the panels and into `factors`, where pads are zeros."""
    for k in range(len(linear)):
        n_in, n_out, own, a, b, ahead, back, at = linear[k]
        turned, scaled = factors[at : at + n_in * rank], factors[at + n_in * rank :]
        for r in range(own):
            for i in range(n_in):
                panel = back + i // PANEL * PANEL * (n_out + rank) + i % PANEL
                turned[i * rank + r] = backward[panel + (n_out + r) * PANEL] = params[a + r * n_in + i]
            for o in range(n_out):
                panel = ahead + o // PANEL * PANEL * (n_in + rank) + o % PANEL
                scaled[o * rank + r] = forward[panel + (n_in + r) * PANEL] = params[b + o * own + r] * scales[k]


@part
def read_changes(changes: np.ndarray, linear: np.ndarray, scales: np.ndarray, rank: int, out: np.ndarray) -> None:
    """out <- gradients of the factors, as a row of `Params`."""
    for k in range(len(linear)):
        n_in, n_out, own, a, b, _, _, at = linear[k]
        for i in range(own * n_in):
            out[a + i] = changes[at + i]
        at += n_in * rank
        for o in range(n_out):
            for r in range(own):
                out[b + o * own + r] = changes[at + r * n_out + o] * scales[k]


# -- layers without trained tensors ------------------------------------------------------------------------------------
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


_SIGNATURE = types.void(
    *(types.Array(types.float32, 2, "C", readonly=True), types.Array(types.int64, 2, "C", readonly=True)),
    *(types.float32[::1], types.float32[:, ::1], types.float32[:, ::1], types.float32[:, :, ::1]),
    *(types.float32[:, ::1], types.float32[::1], types.float32[::1], types.UniTuple(types.int64, len(Sizes._fields))),
    *(types.int64[:, :, ::1], types.int64[:, ::1], types.Array(types.float32, 2, "C", readonly=True)),
    *(types.float32[:, ::1], types.float32[:, ::1], types.float32[::1]),
)


@owner
def gradients(
    params: np.ndarray,
    linear: np.ndarray,
    scales: np.ndarray,
    embedding: np.ndarray,
    positions: np.ndarray,
    norms: np.ndarray,
    biases: np.ndarray,
    forward: np.ndarray,
    backward: np.ndarray,
    numbers: tuple[int, ...],
    ids: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
    losses: np.ndarray,
    memory: np.ndarray,
) -> None:
    """Compute the gradients of the sums of weights times losses.

    Args:
        params: float32 (C, P), where each client's gradient is taken.
        linear: int64 (4 layers, 8), see above.
        scales: float32 (4 layers,), s of each layer.
        embedding: float32 (ids, width).
        positions: float32 (places, width).
        norms: float32 (2 layers + 1, 2, width), gain and shift of each norm.
        biases: float32 (4 layers, widest layer).
        forward: float32, panels of the outputs; the rows of the factors are written.
        backward: float32, panels of the gradients of the inputs; the same.
        numbers: the fields of `Sizes`.
        ids: int64 (C, B, places).
        labels: int64 (C, B).
        weights: float32 (C, B); 0 for pads, which come last.
        out: float32 (C, P), written.
        losses: float32 (C, B), written; zeros for pads.
        memory: float32 with at least `memory_length(...)` elements, written.
    """
    s = Sizes(*numbers)
    n, width, wide, more, rank = s.rows, s.width, 3 * s.width, s.width + s.rank, s.rank
    hidden_row, below_row, batch, depth = s.forward + rank, 3 * s.width + rank, weights.shape[1], s.layers
    each, plain, scratch = tape_length(s), n * s.width, n * (max(3 * s.width, s.forward) + rank)
    length = linear[-1, 7] + (linear[-1, 0] + linear[-1, 1]) * rank
    factors, changes, end = memory[:length], memory[length : 2 * length], 2 * length
    g, below, end = memory[end : end + scratch], memory[end + scratch : end + 2 * scratch], end + 2 * scratch
    turned, end = memory[end : end + n * max(n, width // s.heads)], end + n * max(n, width // s.heads)
    slopes, future, end = memory[end : end + n * n], memory[end + n * n : end + 2 * n * n], end + 2 * n * n
    mean, end = memory[end : end + width], end + width
    states, end = memory[end : end + batch * plain], end + batch * plain  # residual of each sample
    slope_states, end = memory[end : end + batch * n * more], end + batch * n * more  # its gradient, [g | v]
    last, end = memory[end : end + batch * plain], end + batch * plain  # normalised by the last norm
    last_scales, end = memory[end : end + batch * n], end + batch * n
    unseen, end = memory[end : end + batch * n], end + batch * n
    nothing, empty, scores = np.zeros(biases.shape[1], np.float32), memory[:0], np.empty(s.classes)
    for r in range(n):
        for i in range(n):
            future[r * n + i] = UNSEEN if s.causal and i > r else _0
    factors[:] = _0
    losses[:] = _0
    out[:] = _0
    for c in range(len(weights)):
        count = 0
        for b in range(batch):
            count += weights[c, b] > _0
        write_factors(params[c], linear, scales, rank, forward, backward, factors)
        changes[:] = _0
        for b in range(count):
            embed(ids[c, b], embedding, positions, s, states[b * plain : (b + 1) * plain], unseen[b * n : (b + 1) * n])
        for layer in range(depth):
            rows, bias = linear[LINEAR * layer :], biases[LINEAR * layer :]
            for b in range(count):
                tape, h = tape_at(memory, end + (layer * batch + b) * each, s), states[b * plain : (b + 1) * plain]
                for k in range(LINEAR):
                    if k == INPUTS:
                        x, x_row, z, z_row, start, start_row = tape.inputs, more, tape.qkv, wide, bias[k], 0
                        normalise(h, norms[2 * layer], tape.first, tape.first_scale, x, more, n)
                    elif k == OUTPUT:
                        x, x_row, z, z_row, start, start_row = tape.context, more, h, width, h, width
                        attend(tape, s, unseen[b * n : (b + 1) * n], future, turned, nothing)
                    elif k == UP:
                        x, x_row, z, z_row, start, start_row = tape.up, more, tape.down, hidden_row, bias[k], 0
                        normalise(h, norms[2 * layer + 1], tape.second, tape.second_scale, x, more, n)
                    else:
                        x, x_row, z, z_row, start, start_row = tape.down, hidden_row, h, width, h, width
                        gelu(x, hidden_row, s.forward, tape.slope, n)
                    if start_row:
                        add_to_rows(h, bias[k], width, n)
                    n_in, panels = rows[k, 0], forward[rows[k, 5] :]
                    inner_product(x, x_row, n_in, factors[rows[k, 7] :], rank, nothing, n)
                    product(x, x_row, n_in + rank, panels, rows[k, 1], start, start_row, z, z_row, n)
        for b in range(count):
            at, h = slope_states[b * n * more : (b + 1) * n * more], states[b * plain : (b + 1) * plain]
            x, x_scales = last[b * plain : (b + 1) * plain], last_scales[b * n : (b + 1) * n]
            normalise(h, norms[2 * depth], x, x_scales, below, width, n)
            seen, weight = unseen[b * n : (b + 1) * n], weights[c, b]
            losses[c, b] = answer(params[c], below, seen, labels[c, b], weight, s, out[c], g, mean, scores)
            at[:] = _0
            normalise_backward(g, norms[2 * depth], x, x_scales, at, more, n)
        for layer in range(depth - 1, -1, -1):
            rows = linear[LINEAR * layer :]
            for b in range(count):
                tape = tape_at(memory, end + (layer * batch + b) * each, s)
                at = slope_states[b * n * more : (b + 1) * n * more]
                for k in range(LINEAR - 1, -1, -1):
                    if k == DOWN:
                        y, y_row, x, x_row, to, to_row = at, more, tape.down, hidden_row, g, hidden_row
                    elif k == UP:
                        y, y_row, x, x_row, to, to_row = g, hidden_row, tape.up, more, below, width
                        for r in range(n):
                            for i in range(0, s.forward, WIDTH):
                                v = load(g, r * hidden_row + i) * load(tape.slope, r * s.forward + i)
                                store(g, r * hidden_row + i, v)
                    elif k == OUTPUT:
                        y, y_row, x, x_row, to, to_row = at, more, tape.context, more, below, width
                    else:
                        y, y_row, x, x_row, to, to_row = g, below_row, tape.inputs, more, below, width
                        attend_backward(tape, s, below, g, turned, slopes, nothing)
                        if layer == 0:
                            to = empty
                    row = rows[k]
                    linear_backward(y, y_row, x, x_row, row, backward, factors, changes, rank, nothing, n, to, to_row)
                    if k == UP:
                        normalise_backward(below, norms[2 * layer + 1], tape.second, tape.second_scale, at, more, n)
                    elif k == INPUTS and layer:
                        normalise_backward(below, norms[2 * layer], tape.first, tape.first_scale, at, more, n)
        read_changes(changes, linear, scales, rank, out[c])


cache.keep(gradients)
gradients.compile(_SIGNATURE)
gradients.disable_compile()
