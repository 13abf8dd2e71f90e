"""Local training of a stack of linear layers in machine code, one client after another through all its steps.

    z = h W^T + b,  h = phi(z)        g = dL/dz of the mean loss        W <- W - lr g^T h,  b <- b - lr sum(g),  g <- (g W) * phi'(h)

A client's parameters and batches stay in the near caches, and no call is paid for. Products of small layers are loops here, those of others
BLAS's, which adds to W what it multiplies. Compiled by numba for the processor at hand when first called, and kept in its cache.
"""

from __future__ import annotations

import numpy as np
from llvmlite import binding
from numba import njit, types
from numba.extending import get_cython_function_address
from scipy.linalg import cython_blas
from threadpoolctl import ThreadpoolController

from fl import random
from fl.params import ALIGNMENT

SMALL = 1 << 11  # weights of a layer up to which loops are quicker than a call
FEW = 64  # samples up to which sorting by insertion is quicker
PAD = ALIGNMENT // 4  # elements: lines of small matrices are whole vectors
RELU, TANH, SIGMOID = 1, 2, 3

# scipy's BLAS, one thread as everywhere: sgemm(transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc), matrices by columns
binding.add_symbol("fl_sgemm", get_cython_function_address(cython_blas.__name__, "sgemm"))
_chars, _ints, _floats = (types.CPointer(t) for t in (types.uint8, types.int32, types.float32))
_arguments = (_chars, _chars, _ints, _ints, _ints, _floats, _floats, _ints, _floats, _ints, _floats, _floats, _ints)
_sgemm = types.ExternalFunction("fl_sgemm", types.void(*_arguments))
ThreadpoolController().limit(limits=1, user_api="blas")

# Sums may be taken in any order, the same each time; a NaN stays a NaN. All is one function in the end: a part that is not inlined may
# be another's compilation of it, where sums have another order
_options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
_part = njit(**_options, forceinline=True)
_columns, _matrices, _words = (
    types.Array(t, d, "C", readonly=True) for t, d in ((types.int64, 1), (types.float32, 2), (types.uint64, 1))
)
_signature = types.int64(
    *(types.float32[:, ::1], types.float64[::1], _matrices, types.boolean, _matrices, _columns, _matrices),
    *(types.Array(types.int64, 2, "C", readonly=True), types.Array(types.float32, 1, "C", readonly=True)),
    *(_columns, _columns, _columns, _columns, _columns, _words, types.boolean),
)
_PLAIN, _TRANSPOSED = np.uint8(ord("N")), np.uint8(ord("T"))
_0, _1 = np.float32(0), np.float32(1)


@_part
def _order(word, n, shuffled, keys, order):
    """`random.permutation`: 0..n-1 sorted by their hashes, which `word` lacks only the position for."""
    for i in range(n):
        order[i] = i
        keys[i] = _added(word, i)
    if shuffled and n > FEW:
        order[:n] = np.argsort(keys[:n], kind="mergesort")
    elif shuffled:
        for i in range(1, n):
            key, j = keys[i], i
            while j > 0 and keys[j - 1] > key:
                keys[j], order[j] = keys[j - 1], order[j - 1]
                j -= 1
            keys[j], order[j] = key, i


@_part
def _added(word, part):
    """See `random.hash64`."""
    return _mixed((word ^ _mixed(np.uint64(part))) + random.GOLDEN)


@_part
def _mixed(x):
    x = (x ^ (x >> np.uint64(30))) * random.MIX_1
    x = (x ^ (x >> np.uint64(27))) * random.MIX_2
    return x ^ (x >> np.uint64(31))


@_part
def _padded(width):
    return -(-width // PAD) * PAD


@_part
def _layer(own, place, n_out, width):
    """Weights (O, I padded) and bias (O,), which lie one after the other."""
    end = place + n_out * width
    return own[place:end].reshape(n_out, width), own[end : end + n_out]


@_part
def _taken(row, layers, own):
    """own <- row, with pads (zeros) behind each line of weights and each bias; a bias that is not there is zero."""
    place = 0
    for k in range(len(layers)):
        n_in, n_out, weight, bias, _ = layers[k]
        for o in range(n_out):
            line, there = own[place : place + n_in], row[weight + o * n_in : weight + (o + 1) * n_in]
            for i in range(n_in):
                line[i] = there[i]
            own[place + n_in : place + _padded(n_in)] = _0  # a NaN of the client before may have come here
            place += _padded(n_in)
        if bias >= 0:
            own[place : place + n_out] = row[bias : bias + n_out]
        place += _padded(n_out)


@_part
def _given(own, layers, less, row):
    """row <- own - less, with zeros in what pads it."""
    place = 0
    for k in range(len(layers)):
        n_in, n_out, weight, bias, _ = layers[k]
        for o in range(n_out):
            at, end = weight + o * n_in, weight + (o + 1) * n_in
            line, there, minus = own[place : place + n_in], row[at:end], less[at:end]
            for i in range(n_in):
                there[i] = line[i] - minus[i]
            place += _padded(n_in)
        row[weight + n_out * n_in : weight + _padded(n_out * n_in)] = _0
        if bias >= 0:
            for o in range(n_out):
                row[bias + o] = own[place + o] - less[bias + o]
            row[bias + n_out : bias + _padded(n_out)] = _0
        place += _padded(n_out)


@_part
def _gather(x, rows, width, h):
    for b in range(len(rows)):
        row = rows[b]
        for i in range(width):
            h[b, i] = x[row, i]


@_part
def _forward(weight, bias, h, z, count, n_in, n_out, activation, pointed):
    """z = phi(h W^T + b)."""
    wide = weight.shape[1]
    for b in range(count):
        for o in range(n_out):
            z[b, o] = bias[o]
    if n_in * n_out <= SMALL:
        for b in range(count):
            for o in range(0, n_out - 3, 4):  # four at once, which read h once
                z0, z1, z2, z3 = _0, _0, _0, _0
                for i in range(wide):
                    h_i = h[b, i]
                    z0 += h_i * weight[o, i]
                    z1 += h_i * weight[o + 1, i]
                    z2 += h_i * weight[o + 2, i]
                    z3 += h_i * weight[o + 3, i]
                z[b, o] += z0
                z[b, o + 1] += z1
                z[b, o + 2] += z2
                z[b, o + 3] += z3
            for o in range(n_out - n_out % 4, n_out):
                z0 = _0
                for i in range(wide):
                    z0 += h[b, i] * weight[o, i]
                z[b, o] += z0
    else:
        _product(_TRANSPOSED, _PLAIN, n_out, count, n_in, _1, weight, wide, h, h.shape[1], _1, z, z.shape[1], pointed)
    if activation == RELU:
        for b in range(count):
            for o in range(n_out):
                z[b, o] = _0 if z[b, o] < 0 else z[b, o]
    elif activation == TANH:
        for b in range(count):
            for o in range(n_out):
                z[b, o] = np.tanh(z[b, o])
    elif activation == SIGMOID:
        for b in range(count):
            for o in range(n_out):
                z[b, o] = _1 / (_1 + np.exp(-z[b, o]))


@_part
def _backward(weight, g, h, count, n_in, n_out, activation, below, pointed):
    """below = (g W) * phi'(h)."""
    wide = weight.shape[1]
    if n_in * n_out <= SMALL:
        for b in range(count):
            for i in range(wide):
                below[b, i] = _0
            for o in range(n_out):
                g_o = g[b, o]
                for i in range(wide):
                    below[b, i] += g_o * weight[o, i]
    else:
        _product(_PLAIN, _PLAIN, n_in, count, n_out, _1, weight, wide, g, g.shape[1], _0, below, below.shape[1], pointed)
    for b in range(count):
        for i in range(n_in):
            if activation == RELU:
                below[b, i] = below[b, i] if h[b, i] > 0 else _0
            elif activation == TANH:
                below[b, i] *= _1 - h[b, i] * h[b, i]
            elif activation == SIGMOID:
                below[b, i] *= h[b, i] * (_1 - h[b, i])


@_part
def _update(weight, bias, biased, g, h, count, n_in, n_out, rate, pointed):
    """W <- W - rate g^T h,  b <- b - rate sum(g)."""
    wide = weight.shape[1]
    if biased:
        for b in range(count):
            for o in range(n_out):
                bias[o] -= rate * g[b, o]
    if n_in * n_out <= SMALL:
        for o in range(n_out):
            for b in range(0, count - 3, 4):  # four at once, which write W once
                g0, g1, g2, g3 = rate * g[b, o], rate * g[b + 1, o], rate * g[b + 2, o], rate * g[b + 3, o]
                for i in range(wide):
                    weight[o, i] -= g0 * h[b, i] + g1 * h[b + 1, i] + g2 * h[b + 2, i] + g3 * h[b + 3, i]
            for b in range(count - count % 4, count):
                g0 = rate * g[b, o]
                for i in range(wide):
                    weight[o, i] -= g0 * h[b, i]
    else:
        _product(_PLAIN, _TRANSPOSED, n_in, n_out, count, -rate, h, h.shape[1], g, g.shape[1], _1, weight, wide, pointed)


@_part
def _cross_entropy(outputs, labels, batch, classes, g):
    """g = (softmax - onehot) / B; the sum of the losses."""
    loss, count = 0.0, _1 / np.float32(len(batch))
    for b in range(len(batch)):
        label, largest, total = labels[batch[b]], outputs[b, 0], _0
        for k in range(1, classes):
            largest = max(largest, outputs[b, k])
        for k in range(classes):
            power = np.exp(outputs[b, k] - largest)
            g[b, k] = power
            total += power
        loss += np.log(total) + largest - outputs[b, label]
        for k in range(classes):
            g[b, k] *= count / total
        g[b, label] -= count
    return loss


@_part
def _squared_error(outputs, targets, batch, g):
    """g = (outputs - targets) / B; the sum of the losses."""
    loss, count = 0.0, _1 / np.float32(len(batch))
    for b in range(len(batch)):
        total = _0
        for k in range(targets.shape[1]):
            difference = outputs[b, k] - targets[batch[b], k]
            total += difference * difference
            g[b, k] = difference * count
        loss += total / 2
    return loss


@_part
def _product(of_a, of_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, pointed):
    """sgemm takes all by pointers."""
    chars, ints, floats = pointed
    chars[0], chars[1] = of_a, of_b
    ints[0], ints[1], ints[2], ints[3], ints[4], ints[5] = m, n, k, lda, ldb, ldc
    floats[0], floats[1] = alpha, beta
    _sgemm(
        chars.ctypes,
        chars[1:].ctypes,
        ints.ctypes,
        ints[1:].ctypes,
        ints[2:].ctypes,
        floats.ctypes,
        a.ctypes,
        ints[3:].ctypes,
        b.ctypes,
        ints[4:].ctypes,
        floats[1:].ctypes,
        c.ctypes,
        ints[5:].ctypes,
    )


@njit(_signature, **_options, cache=True)
def descend(
    theta, losses, start, change, x, labels, targets, layers, rates, rows, starts, sizes, batches, steps, words, shuffled
):
    """All steps of all clients. Returns a sample whose label is no class, else -1.

    theta       float32 (C, P): what comes of it; minus the start if `change`
    losses      float64 (C,): the samples' losses are added
    start       float32 (1, P) or (C, P): what they start from
    x           float32 (N, D)
    labels      int64 (N,) for softmax cross-entropy, or none, and then
    targets     float32 (N, K) for half the squared error
    layers      int64 (L, 5): inputs, outputs, where weights and bias begin in P (no bias: -1), activation
    rates       float32 (T,) of all steps
    rows        int64: client c's samples are rows[starts[c] : starts[c] + sizes[c]]
    starts, sizes, batches, steps    int64 (C,): see rows; samples of a batch; steps to take
    words       uint64 (C,): of the shuffles, `random.unfinished` but for epoch and position
    """
    depth, classes, longest, most = len(layers), layers[-1, 1], 1, 1
    for c in range(len(theta)):
        longest, most = max(longest, min(batches[c], sizes[c])), max(most, sizes[c])
    widths, places = np.empty(depth + 1, np.int64), np.zeros(depth + 1, np.int64)  # of h, padded; of layers in `own`
    for k in range(depth):
        widths[k] = _padded(layers[k, 0])
        places[k + 1] = places[k] + widths[k] * layers[k, 1] + _padded(layers[k, 1])
    widths[depth] = _padded(classes)
    widest = widths.max()
    own = np.zeros(places[depth], np.float32)  # a client's layers
    tape = np.zeros((depth + 1, longest, widest), np.float32)  # its h
    g, below = np.zeros((longest, widest), np.float32), np.zeros((longest, widest), np.float32)
    order, keys = np.empty(most, np.int64), np.empty(most, np.uint64)
    nothing = np.zeros(0 if change else theta.shape[1], np.float32)
    pointed = np.empty(2, np.uint8), np.empty(6, np.int32), np.empty(2, np.float32)
    for c in range(len(theta)):
        loss, at, epoch = 0.0, sizes[c], 0
        first = start[min(c, len(start) - 1)]
        _taken(first, layers, own)
        for step in range(steps[c]):
            if at >= sizes[c]:
                _order(_added(words[c], epoch), sizes[c], shuffled, keys, order)
                for i in range(sizes[c]):
                    order[i] = rows[starts[c] + order[i]]
                at, epoch = 0, epoch + 1
            batch, rate = order[at : min(at + batches[c], sizes[c])], rates[step]
            at, count = at + batches[c], len(batch)
            _gather(x, batch, layers[0, 0], tape[0])
            for k in range(depth):
                n_in, n_out, _, _, activation = layers[k]
                weight, bias = _layer(own, places[k], n_out, widths[k])
                _forward(weight, bias, tape[k], tape[k + 1], count, n_in, n_out, activation, pointed)
            if len(labels):
                for b in range(count):
                    if not 0 <= labels[batch[b]] < classes:
                        return batch[b]
                loss += _cross_entropy(tape[depth], labels, batch, classes, g)
            else:
                loss += _squared_error(tape[depth], targets, batch, g)
            for k in range(depth - 1, -1, -1):
                n_in, n_out, _, biased, _ = layers[k]
                weight, bias = _layer(own, places[k], n_out, widths[k])
                if k:
                    _backward(weight, g, tape[k], count, n_in, n_out, layers[k - 1, 4], below, pointed)
                _update(weight, bias, biased >= 0, g, tape[k], count, n_in, n_out, rate, pointed)
                g, below = below, g
        _given(own, layers, first if change else nothing, theta[c])
        losses[c] += loss
    return -1
