"""Means of squared gradients of single samples, the diagonal of the Fisher information; see the package.

    1/n sum_s (dW_l of sample s)^2 = 1/n (G_l^2)^T h_{l-1}^2           G: gradients of each sample's own loss

`mean_squares` is compiled on its first import on a machine and kept (cache.py). Only methods that ask for Fisher
information need it.
"""

from __future__ import annotations

import numpy as np
from numba import types

from fl.execution.training.native import cache
from fl.execution.training.native.dropout import masks_memory
from fl.execution.training.native.jit import inlined, owner, part
from fl.execution.training.native.losses import losses_and_gradient
from fl.execution.training.native.memory import (
    BIAS,
    ROWS,
    WEIGHTS,
    gather,
    length_of,
    lowest_trained,
    pad_layers,
    padded,
    prefetch_samples,
    rows_of,
    unpad_layers,
    weights_length,
    widest,
)
from fl.execution.training.native.passes import any_norm, backward_pass, before_norm, forward_pass, products
from fl.execution.training.native.products import Layer, bias_step, gradient_rows
from fl.execution.training.native.vector import WIDTH, load, splat, store

SAMPLES = 32  # in a pass; 16 to 128 take the same time

_0, _1 = np.float32(0), np.float32(1)

_matrix, _integers = (types.Array(t, n, "C", readonly=True) for t, n in ((types.float32, 2), (types.int64, 1)))
_SIGNATURE = types.int64(
    *(_matrix, types.Array(types.int64, 2, "C", readonly=True), _matrix),  # params, layers, fixed
    *(_matrix, _integers, _matrix, _integers, _integers, _integers),  # x, labels, targets, rows, starts, sizes
    *(types.int64, types.float32[:, ::1], types.float32[::1]),  # most, out, memory
)


@inlined
def _square(array: np.ndarray, n: int, factor: np.float32) -> None:
    """array[:n] <- factor array[:n]^2; n is a multiple of 8."""
    by = splat(factor)
    for i in range(0, n, WIDTH):
        v = load(array, i)
        store(array, i, by * (v * v))


@part
def _add_products(layer: Layer, total: np.ndarray, adds: bool) -> None:
    """total <- (total if `adds`) + g^T h and the sum of g over the batch, from `layer.offset` on."""
    wide, begin = padded(layer.n_in), layer.offset + weights_length(layer.n_in, layer.n_out)
    for o in range(0, layer.n_out if layer.trained & WEIGHTS else 0, ROWS):
        gradient_rows(total, layer.offset + o * wide, adds, layer, o)
    if not adds:
        total[begin : begin + padded(layer.n_out)] = _0
    if layer.trained & BIAS:
        bias_step(total[begin:], layer.g, layer.count, layer.n_out, -_1)


@owner
def mean_squares(
    params: np.ndarray,
    layers: np.ndarray,
    fixed: np.ndarray,
    x: np.ndarray,
    labels: np.ndarray,
    targets: np.ndarray,
    rows: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    most: int,
    out: np.ndarray,
    memory: np.ndarray,
) -> int:
    """Compute means of squared gradients. Returns -1, or the number of a sample whose label is no class.

    Args:
        params: float32 (1, P) for all clients, or (C, P): where gradients are taken.
        layers: int64 (L, 8), see memory.py.
        fixed: see there.
        x: see `clients.Samples`, as the five that follow.
        labels: softmax cross-entropy; empty for the squared error.
        targets: the squared error; empty for cross-entropy.
        rows: the samples of all clients.
        starts: where those of each client begin.
        sizes: their number. A client without samples gets zeros.
        most: samples in a pass, at most. It may change the last bits of the result.
        out: float32 (C, P), written.
        memory: float32 with at least `memory_length(layers, most, 0)` elements, written.
    """
    depth, classes = len(layers), layers[-1, 1]
    length, lowest = length_of(layers), lowest_trained(layers)
    client, total, area = memory[:length], memory[length : 2 * length], rows_of(most) * widest(layers)
    normalised = any_norm(layers)
    batches = 2 * depth + 3 if normalised else depth + 3
    tape = memory[2 * length : 2 * length + batches * area].reshape(batches, area)
    tape[:] = _0
    masks = masks_memory(memory, 2 * length + batches * area, np.zeros(depth, np.int64), area)
    g, below, scales = tape[depth + 1], tape[depth + 2], np.empty((depth, most + 1), np.float32)
    flat = x.reshape(-1)
    for c in range(len(sizes)):
        if c < len(params):
            pad_layers(params[c], layers, fixed, c, client)
        total[: length * (sizes[c] == 0)] = _0
        share = _1 / np.float32(max(sizes[c], 1))
        for first in range(0, sizes[c], most):
            count = min(most, sizes[c] - first)
            samples = rows[starts[c] + first : starts[c] + first + count]
            gather(flat, samples, layers[0, 0], tape[0])
            if first + count < sizes[c]:
                end = min(first + count + most, sizes[c])
                prefetch_samples(flat, layers[0, 0], labels, rows[starts[c] + first + count : starts[c] + end])
            products(client, layers, 0, tape[0], tape[before_norm(layers, 0, normalised)], count)
            forward_pass(client, layers, tape, scales, count, normalised, masks)
            wrong, _ = losses_and_gradient(tape[depth], labels, targets, samples, classes, g)
            if wrong >= 0:
                return wrong
            for i in range(count * padded(classes)):
                g[i] *= np.float32(count)  # it was the gradient of the mean loss
            for k in range(depth - 1, lowest - 1, -1):
                n_in, n_out, offset, trained = layers[k, 0], layers[k, 1], layers[k, 5], layers[k, 7]
                if k > lowest:
                    backward_pass(client[offset:], layers, tape, scales, g, k, count, normalised, masks, below)
                _square(g, count * padded(n_out), share)
                _square(tape[k], count * padded(n_in), _1)
                _add_products(Layer(client, offset, n_in, n_out, trained, g, tape[k], count), total, first > 0)
                g, below = below, g
        unpad_layers(total, layers, out[c])
    return -1


cache.keep(mean_squares)
mean_squares.compile(_SIGNATURE)
mean_squares.disable_compile()
