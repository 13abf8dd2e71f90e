"""Fits before training, of all clients of a chunk; see `fl.method.preparation.Fit`, and the package.

    w = base + z * direction,    z <- clip(z - rate * grad f(w) * direction, low, high)

A client's arrays stay in the processor's caches from its first step to its last one. `fit_clients` is compiled on its
first import on a machine and kept (cache.py).
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from fl.execution.training.native import cache
from fl.execution.training.native.dropout import masks_memory
from fl.execution.training.native.jit import owner, part
from fl.execution.training.native.losses import losses_and_gradient
from fl.execution.training.native.memory import gather, length_of, pad_layers, rows_of, unpad_layers, widest
from fl.execution.training.native.passes import any_norm, backward_pass, before_norm, forward_pass, products
from fl.execution.training.native.products import Layer
from fl.execution.training.native.shuffle import chained, write_order
from fl.execution.training.native.steps import weight_gradient

_0 = np.float32(0)
COPIES = 3  # arrays of a client's size besides its parameters and their gradient
_matrix, _integers = (types.Array(t, n, "C", readonly=True) for t, n in ((types.float32, 2), (types.int64, 1)))
_SIGNATURE = types.int64(
    *(_matrix, _matrix, types.float32[:, ::1]),  # base, direction, coordinates
    *(types.float32, types.float32, types.float32),  # rate, low, high
    *(_integers, types.int64, types.float64),  # epochs, window, threshold
    *(types.Array(types.int64, 2, "C", readonly=True), _matrix, _integers, _matrix),  # layers, inputs, labels, targets
    *(_integers, _integers, types.int64, _integers),  # firsts, counts, batch, used
    *(types.Array(types.uint64, 1, "C", readonly=True), types.int64[::1], types.float32[::1]),  # words, taken, memory
)


@part
def place(base: np.ndarray, direction: np.ndarray, z: np.ndarray, w: np.ndarray) -> None:
    """w <- base + z * direction."""
    for i in range(len(w)):
        w[i] = z[i] * direction[i] + base[i]


@part
def step(
    z: np.ndarray, g: np.ndarray, direction: np.ndarray, rate: np.float32, low: np.float32, high: np.float32
) -> None:
    """z <- clip(z - rate * g * direction, low, high)."""
    for i in range(len(z)):
        v = z[i] - g[i] * rate * direction[i]
        v = low if v < low else v  # NaN stays NaN
        z[i] = high if v > high else v


@part
def settled(losses: np.ndarray, count: int, window: int, threshold: float) -> bool:
    """Whether the standard deviation of the last `window` of `count` losses is below the threshold."""
    if count <= window:
        return False
    mean, squares = 0.0, 0.0
    for k in range(count - window, count):
        mean += losses[k]
    mean /= window
    for k in range(count - window, count):
        squares += (losses[k] - mean) * (losses[k] - mean)
    return math.sqrt(squares / window) < threshold


@owner
def fit_clients(
    base: np.ndarray,
    direction: np.ndarray,
    coordinates: np.ndarray,
    rate: np.float32,
    low: np.float32,
    high: np.float32,
    epochs: np.ndarray,
    window: int,
    threshold: float,
    layers: np.ndarray,
    inputs: np.ndarray,
    labels: np.ndarray,
    targets: np.ndarray,
    firsts: np.ndarray,
    counts: np.ndarray,
    batch: int,
    used: np.ndarray,
    words: np.ndarray,
    taken: np.ndarray,
    memory: np.ndarray,
) -> int:
    """Fit the coordinates of C clients. Returns -1, or the number of a sample whose label is no class.

    Args:
        base: float32 (C, P).
        direction: float32 (C, P).
        coordinates: float32 (C, P), changed.
        rate: learning rate.
        low: smallest coordinate.
        high: largest coordinate.
        epochs: int64 (C,), largest numbers of epochs; a client with 0 does not change.
        window: see `Fit`.
        threshold: see `Fit`.
        layers: int64 (L, 8), the layers that have these parameters, see memory.py.
        inputs: float32 (n, D), inputs of the first of these layers, for the samples of one client after another.
        labels: int64 (n,) for softmax cross-entropy; empty for the squared error.
        targets: float32 (n, K) for half the squared error; empty for cross-entropy.
        firsts: int64 (C,), where the samples of each client begin.
        counts: int64 (C,), their numbers.
        batch: samples in a batch; 0 for all samples of a client.
        used: int64 (C,), samples in an epoch.
        words: uint64 (C,), hashes of the addresses of the shuffles up to the epoch.
        taken: int64 (C,), written: the numbers of epochs.
        memory: float32 with at least `memory_length(layers, longest batch, COPIES)` elements, written.
    """
    depth, classes, most, longest, last = len(layers), layers[-1, 1], 1, 1, 1
    for c in range(len(counts)):
        if epochs[c]:
            most, last = max(most, counts[c]), max(last, epochs[c])
    longest = min(batch, most) if batch else most
    length, area, normalised = length_of(layers), rows_of(longest) * widest(layers), any_norm(layers)
    batches = 2 * depth + 3 if normalised else depth + 3
    arrays, end = memory[: 5 * length].reshape(5, length), 5 * length
    tape = memory[end : end + batches * area].reshape(batches, area)
    arrays[:] = _0
    tape[:] = _0
    origin, along, z, w, gradient = arrays[0], arrays[1], arrays[2], arrays[3], arrays[4]
    masks = masks_memory(memory, end + batches * area, np.zeros(depth, np.int64), area)
    g, below, scales = tape[depth + 1], tape[depth + 2], np.empty((depth, longest + 1), np.float32)
    order, keys, losses = np.empty(most, np.int64), np.empty(most, np.uint64), np.empty(last, np.float64)
    flat, none = inputs.reshape(-1), np.empty((0, 0), np.float32)
    for c in range(len(counts)):
        taken[c] = 0
        if not epochs[c]:
            continue
        pad_layers(base[c], layers, none, c, origin)
        pad_layers(direction[c], layers, none, c, along)
        pad_layers(coordinates[c], layers, none, c, z)
        size = batch if batch else counts[c]
        for epoch in range(epochs[c]):
            write_order(chained(words[c], epoch), counts[c], True, keys, order)
            for i in range(counts[c]):
                order[i] += firsts[c]
            for at in range(0, used[c], size):
                some = order[at : min(at + size, used[c])]
                count = len(some)
                place(origin, along, z, w)
                gather(flat, some, layers[0, 0], tape[0])
                products(w, layers, 0, tape[0], tape[before_norm(layers, 0, normalised)], count)
                forward_pass(w, layers, tape, scales, count, normalised, masks)
                wrong, loss = losses_and_gradient(tape[depth], labels, targets, some, classes, g)
                if wrong >= 0:
                    return wrong
                for k in range(depth - 1, -1, -1):
                    n_in, n_out, offset, trained = layers[k, 0], layers[k, 1], layers[k, 5], layers[k, 7]
                    if k:
                        backward_pass(w[offset:], layers, tape, scales, g, k, count, normalised, masks, below)
                    weight_gradient(Layer(w, offset, n_in, n_out, trained, g, tape[k], count), gradient)
                    g, below = below, g
                step(z, gradient, along, rate, low, high)
                losses[epoch] = np.float32(loss) / np.float32(count)
            taken[c] += 1
            if settled(losses, epoch + 1, window, threshold):
                break
        unpad_layers(z, layers, coordinates[c])
    return -1


cache.keep(fit_clients)
fit_clients.compile(_SIGNATURE)
fit_clients.disable_compile()
