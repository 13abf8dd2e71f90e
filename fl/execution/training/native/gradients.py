"""Gradients of the clients of a chunk, each at parameters and on a batch of its own; see the package.

`gradients` is compiled on its first import on a machine and kept (cache.py). Only methods that take their own steps
need it, also those before training (one_client.py).
"""

from __future__ import annotations

import numpy as np
from numba import types

from fl.execution.training.native import cache
from fl.execution.training.native.dropout import masks_memory, take_masks
from fl.execution.training.native.jit import owner
from fl.execution.training.native.losses import losses_and_gradient
from fl.execution.training.native.memory import (
    gather,
    length_of,
    padded,
    restore_layers,
    rows_of,
    unpad_layers,
    widest,
    write_layers,
)
from fl.execution.training.native.passes import any_norm, backward_pass, before_norm, forward_pass, products
from fl.execution.training.native.products import Layer
from fl.execution.training.native.steps import weight_gradient

_0 = np.float32(0)

_matrix, _integers = (types.Array(t, n, "C", readonly=True) for t, n in ((types.float32, 2), (types.int64, 1)))
_SIGNATURE = types.int64(
    *(_matrix, types.Array(types.int64, 2, "C", readonly=True), _matrix),  # params, layers, fixed
    *(_matrix, _integers, _matrix, _matrix),  # x, labels, targets, weights
    *(_integers, _matrix, types.int64, types.int64),  # shares, factors, lowest, written
    *(types.float32[:, ::1], types.float32[:, ::1], types.float32[::1]),  # out, losses, memory
)


@owner
def gradients(
    params: np.ndarray,
    layers: np.ndarray,
    fixed: np.ndarray,
    x: np.ndarray,
    labels: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    shares: np.ndarray,
    factors: np.ndarray,
    lowest: int,
    written: int,
    out: np.ndarray,
    losses: np.ndarray,
    memory: np.ndarray,
) -> int:
    """Compute gradients. Returns -1, or the number of a sample whose label is no class.

    Args:
        params: float32 (C, P), where each client's gradient is taken.
        layers: int64 (L, 8), see memory.py.
        fixed: see there.
        x: float32 (C B, D), the samples of all batches.
        labels: int64 (C B,) for softmax cross-entropy; empty for the squared error.
        targets: float32 (C B, K) for half the squared error; empty for cross-entropy.
        weights: float32 (C, B), the same for all samples of a batch; 0 for pads, which come last.
        shares: int64 (L,), as in `Dropouts` of dropout.py.
        factors: float32 (C B, F), the Dropout masks of all layers side by side; not read without Dropout.
        lowest: the gradients in this layer and those above it are computed.
        written: layers below this one have the parameters of the call before; this needs one client.
        out: float32 (C, P), written in these layers: the gradients of the sums of weights times losses.
        losses: float32 (C, B), written: the sum of each batch's losses, then zeros.
        memory: float32 with at least `memory_length(layers, B, 0, ...)` elements, written. It is zeros before the first
            call and serves calls with the same layers and B only.
    """
    depth, classes, width = len(layers), layers[-1, 1], weights.shape[1]
    length = length_of(layers)
    client, gradient, area = memory[:length], memory[length : 2 * length], rows_of(width) * widest(layers)
    normalised = any_norm(layers)
    batches = 2 * depth + 3 if normalised else depth + 3
    tape = memory[2 * length : 2 * length + batches * area].reshape(batches, area)
    masks = masks_memory(memory, 2 * length + batches * area, shares, area)
    g, below, scales = tape[depth + 1], tape[depth + 2], np.empty((depth, width + 1), np.float32)
    losses[:], flat = _0, x.reshape(-1)
    for c in range(len(weights)):
        count, share = 0, 0.0
        for b in range(width):
            count += weights[c, b] > _0
            share += weights[c, b]
        samples = np.arange(c * width, c * width + count)
        if len(fixed):
            restore_layers(layers, fixed, c, client)
        write_layers(params[c], layers[written:], client)
        gather(flat, samples, layers[0, 0], tape[0])
        if len(masks.factors):
            take_masks(masks, factors, c * width, layers, count, tape[0])
        products(client, layers, 0, tape[0], tape[before_norm(layers, 0, normalised)], count)
        forward_pass(client, layers, tape, scales, count, normalised, masks)
        wrong, losses[c, 0] = losses_and_gradient(tape[depth], labels, targets, samples, classes, g)
        if wrong >= 0:
            return wrong
        factor = np.float32(share)  # 1, unless the batch is a part of the samples of a mean
        if factor != np.float32(1):
            for i in range(count * padded(classes)):
                g[i] *= factor
        for k in range(depth - 1, lowest - 1, -1):
            n_in, n_out, offset, trained = layers[k, 0], layers[k, 1], layers[k, 5], layers[k, 7]
            if k > lowest:
                backward_pass(client[offset:], layers, tape, scales, g, k, count, normalised, masks, below)
            weight_gradient(Layer(client, offset, n_in, n_out, trained, g, tape[k], count), gradient)
            g, below = below, g
        unpad_layers(gradient, layers[lowest:], out[c])
    return -1


cache.keep(gradients)
gradients.compile(_SIGNATURE)
gradients.disable_compile()
