"""Local training of a stack of linear layers in machine code, one client after another through all its steps.

    z = h W^T + b,  h = phi(z)        g = dL/dz of the mean loss        W <- W - lr g^T h,  b <- b - lr sum(g),  g <- (g W) * phi'(h)

A client's parameters and batches stay in the near caches, and no call is paid for; if only a sum of what clients change is asked for, none
of them is kept. BLAS would be half as quick at products of a batch with a layer, which are over before their factors are laid out anew.
Compiled by numba for the processor at hand when first called, and kept in its cache.

    weights (O, I) lie as (O up to a multiple of ROWS, I of PAD), batches (B, I) as (B, I up to a multiple of PAD); pads hold zeros, and what
    is added to them is zero; only where numbers overflow are they none, and every client begins with new ones
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit, types

from fl.execution.training.vector import WIDTH, exp, fma, load, prefetch, splat, store, sums
from fl.tensors import random
from fl.tensors.params import ALIGNMENT

COLUMNS = 256  # of matrices that are worked on at once: of a batch's samples, these stay in the nearest cache
FEW = 64  # samples up to which counting who is before whom is quicker than sorting
PAD, ROWS = ALIGNMENT // 4, 4
RELU, TANH, SIGMOID = 1, 2, 3

_options = {"nogil": True, "error_model": "numpy"}
_part, _inlined = njit(**_options), njit(**_options, forceinline=True)  # calls within loops cost a tenth
_columns, _words, _numbers, _matrices, _shapes = (
    types.Array(t, d, "C", readonly=True)
    for t, d in ((types.int64, 1), (types.uint64, 1), (types.float32, 1), (types.float32, 2), (types.int64, 2))
)
_signature = types.int64(
    *(types.float32[:, ::1], _numbers, types.float64[::1], types.int64[::1], _matrices, types.boolean, _matrices),
    *(_columns, _matrices, _shapes, _numbers, types.int64, _columns, _columns, _columns, _columns),
    *(types.uint64, _columns, _words, types.boolean, types.float32[::1]),
)
_0, _1 = np.float32(0), np.float32(1)


@_part
def _order(word, n, shuffled, keys, order):
    """`random.permutation`: 0..n-1 sorted by their hashes, which `word` lacks only the position for."""
    before = 0 if shuffled and n <= FEW else -1
    for i in range(n):
        order[i] = i
        keys[i] = _added(word, i)
    if before == 0:
        for i in range(n):
            rank = 0
            for j in range(n):
                rank += keys[j] < keys[i]
            order[rank] = i
            before += rank
    if shuffled and before != n * (n - 1) // 2:  # too many, or two hashes are equal
        order[:n] = np.argsort(keys[:n], kind="mergesort")


@_inlined
def _added(word, part):
    """See `random.hash64`."""
    return _mixed((word ^ _mixed(np.uint64(part))) + random.GOLDEN)


@_inlined
def _mixed(x):
    x = (x ^ (x >> np.uint64(30))) * random.MIX_1
    x = (x ^ (x >> np.uint64(27))) * random.MIX_2
    return x ^ (x >> np.uint64(31))


@_inlined
def _padded(width):
    return -(-width // PAD) * PAD


@_inlined
def _length(n_in, n_out):
    """Of a layer's weights."""
    return -(-n_out // ROWS) * ROWS * _padded(n_in)


@_part
def _taken(row, layers, own):
    """own <- row; a bias that is not there is zero."""
    own[:] = _0
    for k in range(len(layers)):
        n_in, n_out, weight, bias, _, place = layers[k]
        for o in range(n_out):
            _copied(row, weight + o * n_in, n_in, own, place + o * _padded(n_in))
        if bias >= 0:
            _copied(row, bias, n_out, own, place + _length(n_in, n_out))


@_part
def _given(own, layers, row):
    """row <- own, with zeros in what pads it."""
    for k in range(len(layers)):
        n_in, n_out, weight, bias, _, place = layers[k]
        for o in range(n_out):
            _copied(own, place + o * _padded(n_in), n_in, row, weight + o * n_in)
        row[weight + n_out * n_in : weight + _padded(n_out * n_in)] = _0
        if bias >= 0:
            _copied(own, place + _length(n_in, n_out), n_out, row, bias)
            row[bias + n_out : bias + _padded(n_out)] = _0


@_inlined
def _gather(x, rows, width, h):
    flat = x.reshape(-1)
    for b in range(len(rows)):
        _copied(flat, rows[b] * width, width, h, b * _padded(width))


@_inlined
def _fetch(x, labels, rows):
    """Ask memory for samples that are wanted soon, those of the next client: they lie anywhere, and would be waited for."""
    flat, width = x.reshape(-1), x.shape[1]
    for b in range(len(rows)):
        for i in range(rows[b] * width, (rows[b] + 1) * width + PAD - 1, PAD):
            prefetch(flat, i)
        if len(labels):
            prefetch(labels, rows[b])


@_inlined
def _copied(there, at, n, here, place):
    """here[place : place + n] <- there[at : at + n]"""
    for i in range(0, n - WIDTH + 1, WIDTH):
        store(here, place + i, load(there, at + i))
    for i in range(n - n % WIDTH, n):
        here[place + i] = there[at + i]


@_inlined
def _counted(own, first, factor, totals, depth, merges):
    """totals[depth - merges] <- the last `merges` of `depth` totals, one after the other before (own - first) factor."""
    weight, length = splat(factor), len(own)
    for i in range(0, length, WIDTH):
        v = (load(own, i) - load(first, i)) * weight
        for level in range(depth - 1, depth - 1 - merges, -1):
            v = load(totals, level * length + i) + v
        store(totals, (depth - merges) * length + i, v)


@_part
def _summed(totals, depth, length):
    """The first of `depth` totals <- all of them, the last two first: siblings meet so in a tree whose right edge is not full."""
    for level in range(depth - 2, -1, -1):
        for i in range(level * length, (level + 1) * length, WIDTH):
            store(totals, i, load(totals, i) + load(totals, length + i))


@_inlined
def _forward(weight, bias, h, z, count, n_in, n_out, activation):
    """z = phi(h W^T + b)."""
    wide, across, nothing = _padded(n_in), _padded(n_out), splat(_0)
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


@_part
def _backward(weight, g, h, count, n_in, n_out, activation, below):
    """below = (g W) * phi'(h)."""
    wide, across = _padded(n_in), _padded(n_out)
    below[: count * wide] = _0
    _add_product(below, count, g, across, 1, _1, weight, n_out, wide)
    for i in range(count * wide):
        if activation == RELU:
            below[i] = below[i] if h[i] > 0 else _0
        elif activation == TANH:
            below[i] *= _1 - h[i] * h[i]
        elif activation == SIGMOID:
            below[i] *= h[i] * (_1 - h[i])


@_inlined
def _update(weight, bias, biased, g, h, count, n_in, n_out, rate):
    """W <- W - rate g^T h,  b <- b - rate sum(g)."""
    across = _padded(n_out)
    _add_product(weight, n_out, g, 1, across, -rate, h, count, _padded(n_in))
    if biased:
        for o in range(0, n_out, WIDTH):
            v = load(bias, o)
            for b in range(count):
                v = fma(splat(-rate), load(g, b * across + o), v)
            store(bias, o, v)


@_inlined
def _add_product(out, rows, g, down, along, factor, lines, terms, wide):
    """out[r] <- out[r] + sum_t factor g[r down + t along] lines[t], for lines of `wide`; an odd row has another behind it. What there is
    less of, rows or terms, stays in the nearest cache."""
    for first in range(0, wide, COLUMNS):
        last = min(first + COLUMNS, wide)
        if rows >= terms:
            for r in range(0, rows, 2):
                for t in range(0, terms - 3, 4):
                    _add_four(out, r, g, down, along, factor, lines, t, first, last, wide)
                for t in range(terms - terms % 4, terms):
                    _add_one(out, r, g, down, along, factor, lines, t, first, last, wide)
        else:
            for t in range(0, terms - 3, 4):
                for r in range(0, rows, 2):
                    _add_four(out, r, g, down, along, factor, lines, t, first, last, wide)
            for t in range(terms - terms % 4, terms):
                for r in range(0, rows, 2):
                    _add_one(out, r, g, down, along, factor, lines, t, first, last, wide)


@_inlined
def _add_four(out, r, g, down, along, factor, lines, t, first, last, wide):
    """Terms t..t+3 to rows r and r + 1: eight products at once, for six vectors read and two written."""
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


@_inlined
def _add_one(out, r, g, down, along, factor, lines, t, first, last, wide):
    at, o, l0 = r * down + t * along, r * wide, t * wide
    x0, y0 = splat(factor * g[at]), splat(factor * g[at + down])
    for i in range(first, last, WIDTH):
        v0 = load(lines, l0 + i)
        store(out, o + i, fma(x0, v0, load(out, o + i)))
        store(out, o + wide + i, fma(y0, v0, load(out, o + wide + i)))


@_inlined
def _cross_entropy(outputs, labels, samples, classes, g):
    """g = (softmax - onehot) / B; the sum of the losses."""
    loss, across, count = 0.0, _padded(classes), _1 / np.float32(len(samples))
    for b in range(len(samples)):
        at, end = b * across, b * across + classes
        largest = outputs[at]
        for k in range(at + 1, end):
            largest = outputs[k] if outputs[k] > largest else largest
        for k in range(at, end):
            g[k] = outputs[k] - largest
        loss -= g[at + labels[samples[b]]]
        g[end : at + across] = _0
    for i in range(0, len(samples) * across, WIDTH):
        store(g, i, exp(load(g, i)))
    for b in range(len(samples)):
        at, end, total = b * across, b * across + classes, _0
        for k in range(at, end):
            total += g[k]
        loss += np.log(total)
        share = splat(count / total)
        for k in range(at, at + across, WIDTH):
            store(g, k, load(g, k) * share)
        g[at + labels[samples[b]]] -= count
        g[end : at + across] = _0
    return loss


@_part
def _squared_error(outputs, targets, samples, g):
    """g = (outputs - targets) / B; the sum of the losses."""
    loss, across, count = 0.0, _padded(targets.shape[1]), _1 / np.float32(len(samples))
    for b in range(len(samples)):
        total, at = _0, b * across
        for k in range(targets.shape[1]):
            difference = outputs[at + k] - targets[samples[b], k]
            total += difference * difference
            g[at + k] = difference * count
        g[at + targets.shape[1] : at + across] = _0
        loss += total / 2
    return loss


def room(layers: Sequence[Sequence[int]], longest: int, totals: int) -> int:
    """Elements of `descend`'s memory: for batches of at most `longest`, and so many `totals`."""
    widest = max(_padded.py_func(width) for layer in layers for width in layer[:2])
    return (2 + totals) * size(layers) + (len(layers) + 3) * (longest + 1) * widest


def size(layers: Sequence[Sequence[int]]) -> int:
    """Elements of a client's layers as they lie in memory."""
    n_in, n_out, _, _, _, place = layers[-1]
    rows = -(-n_out // ROWS) * ROWS
    return int(place + rows * _padded.py_func(n_in) + _padded.py_func(n_out))


@njit(_signature, **_options, cache=True)
def descend(
    theta,
    factors,
    losses,
    seen,
    start,
    change,
    x,
    labels,
    targets,
    layers,
    rates,
    batch,
    rows,
    starts,
    sizes,
    steps,
    word,
    clients,
    address,
    shuffled,
    memory,
):
    """All steps of all clients. Returns a sample whose label is no class, else -1.

    theta       float32 (C, P): what comes of it, minus the start if `change`; or (1, P): its sum over clients times their
    factors     float32 (C,), or none: added in the order of a binary tree, see `reduction.Fold`
    losses      float64 (C,): the samples' losses are added
    seen        int64 (C,): how many they are
    start       float32 (1, P) or (C, P): what they start from
    x           float32 (N, D)
    labels      int64 (N,) for softmax cross-entropy, or none, and then
    targets     float32 (N, K) for half the squared error
    layers      int64 (L, 6): inputs, outputs, where weights and bias begin in P (no bias: -1), activation, where they begin padded
    rates       float32 (T,) of all steps
    batch       samples of a batch; 0: all that a client has
    rows        int64: client c's samples are rows[starts[c] : starts[c] + sizes[c]]
    starts, sizes, steps    int64 (C,): see rows; steps to take
    word        of the shuffles, `random.hash64_prefix` but for the client, the
    address     uint64: what comes behind it, and epoch and position
    clients     int64 (C,)
    memory      float32 (>= room(...),)
    """
    depth, classes, most, widest = len(layers), layers[-1, 1], 1, _padded(layers[-1, 1])
    for c in range(len(sizes)):
        most = max(most, sizes[c])
    longest = min(batch, most) if batch else most
    for k in range(depth):
        widest = max(widest, _padded(layers[k, 0]))
    length = layers[-1, 5] + _length(layers[-1, 0], classes) + _padded(classes)
    levels, height = 0, 0  # of totals, and how many there are
    while len(factors) >> levels:
        levels += 1
    own, first = memory[:length], memory[length : 2 * length]  # a client's layers, and what they were
    end = (2 + levels) * length
    totals, batched = memory[2 * length : end], (longest + 1) * widest  # one more sample, as they are taken by twos
    tape = memory[end : end + (depth + 3) * batched].reshape(depth + 3, batched)  # a client's h; then the way back
    tape[:] = _0
    g, below = tape[depth + 1], tape[depth + 2]
    order, keys = np.empty(most, np.int64), np.empty(most, np.uint64)
    for c in range(len(sizes)):
        if c + 2 < len(sizes):
            for i in range(starts[c + 2], starts[c + 2] + sizes[c + 2], WIDTH):
                prefetch(rows, i)
        loss, at, epoch, size = 0.0, sizes[c], 0, batch if batch else sizes[c]
        shuffle = _added(word, clients[c])
        for part in address:
            shuffle = _added(shuffle, part)
        if c < len(start):
            _taken(start[c], layers, first)
        for i in range(0, length, WIDTH):
            store(own, i, load(first, i))
        for step in range(steps[c]):
            if at >= sizes[c]:
                _order(_added(shuffle, epoch), sizes[c], shuffled, keys, order)
                for i in range(sizes[c]):
                    order[i] = rows[starts[c] + order[i]]
                at, epoch = 0, epoch + 1
            samples, rate = order[at : min(at + size, sizes[c])], rates[step]
            at, count = at + size, len(samples)
            _gather(x, samples, layers[0, 0], tape[0])
            if c + 1 < len(sizes) and epoch == 1:
                begin = starts[c + 1]
                _fetch(x, labels, rows[begin + min(at - size, sizes[c + 1]) : begin + min(at, sizes[c + 1])])
            for k in range(depth):
                n_in, n_out, _, _, activation, place = layers[k]
                weight, bias = own[place:], own[place + _length(n_in, n_out) :]
                _forward(weight, bias, tape[k], tape[k + 1], count, n_in, n_out, activation)
            if len(labels):
                for b in range(count):
                    if not 0 <= labels[samples[b]] < classes:
                        return samples[b]
                loss += _cross_entropy(tape[depth], labels, samples, classes, g)
            else:
                loss += _squared_error(tape[depth], targets, samples, g)
            seen[c] += count
            for k in range(depth - 1, -1, -1):
                n_in, n_out, _, biased, _, place = layers[k]
                weight, bias = own[place:], own[place + _length(n_in, n_out) :]
                if k:
                    _backward(weight, g, tape[k], count, n_in, n_out, layers[k - 1, 4], below)
                _update(weight, bias, biased >= 0, g, tape[k], count, n_in, n_out, rate)
                g, below = below, g
        losses[c] += loss
        if levels:
            merges = 0
            while (c >> merges) & 1:
                merges += 1
            _counted(own, first, factors[c], totals, height, merges)
            height += 1 - merges
        else:
            if change:
                for i in range(length):
                    own[i] -= first[i]
            _given(own, layers, theta[c])
    if levels:
        _summed(totals, height, length)
        _given(totals, layers, theta[0])
    return -1
