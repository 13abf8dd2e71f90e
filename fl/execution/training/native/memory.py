"""How one client's layers and batches are stored, and sums of updates.

    weights (O, I)    O rounded up to a multiple of ROWS, I rounded up to a multiple of PAD, row by row; then the bias
    batch (B, I)      I rounded up to a multiple of PAD

Pads hold zeros, and the products add zeros to them. Only numbers that overflow change pads; each client starts with new
ones.

A row of `layers` (L, 8) describes one layer:

    inputs, outputs, offset of the weights in a row of `Params`, offset of the bias, activation, padded offset,
    norm (0: none, see norms.py), what is trained (the sum of WEIGHTS and BIAS; 0: nothing)

An offset is -1 for a tensor that `Params` lack: the layer has no bias, or the tensor is frozen. Frozen tensors that
`Params` lack come from `fixed`, padded layers (1, length) for all clients or (C, length); (0, 0) if there are none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl.execution.training.native.jit import inlined, part
from fl.execution.training.native.vector import WIDTH, load, prefetch, splat, store
from fl.tensors.params import ALIGNMENT

PAD, ROWS = ALIGNMENT // 4, 4
WEIGHTS, BIAS = 1, 2  # what is trained of a layer
BLOCK = 1 << 11  # numbers that loops over a client's layers work on at once; they stay in the nearest cache

_0 = np.float32(0)


@inlined
def padded(width: int) -> int:
    """`width` rounded up to a multiple of PAD."""
    return -(-width // PAD) * PAD


@inlined
def weights_length(n_in: int, n_out: int) -> int:
    """Elements of a layer's padded weights, without the bias."""
    return -(-n_out // ROWS) * ROWS * padded(n_in)


@inlined
def rows_of(longest: int) -> int:
    """Rows of a batch's array: samples are worked on four at a time."""
    return -(-longest // ROWS) * ROWS


@inlined
def widest(layers: np.ndarray) -> int:
    """Elements of the longest padded row of a batch."""
    found = padded(layers[-1, 1])
    for k in range(len(layers)):
        found = max(found, padded(layers[k, 0]))
    return found


@inlined
def length_of(layers: np.ndarray) -> int:
    """`client_length` in machine code."""
    n_in, n_out = layers[-1, 0], layers[-1, 1]
    return layers[-1, 5] + weights_length(n_in, n_out) + padded(n_out)


def client_length(layers: Sequence[Sequence[int]] | np.ndarray) -> int:
    """Elements of a client's padded layers."""
    n_in, n_out, offset = layers[-1][0], layers[-1][1], layers[-1][5]
    rows = -(-n_out // ROWS) * ROWS
    return int(offset + rows * padded.py_func(n_in) + padded.py_func(n_out))


def memory_length(
    layers: Sequence[Sequence[int]] | np.ndarray,
    longest: int,
    copies: int,
    masked: bool = False,
    protected: bool = False,
) -> int:
    """Elements of memory that `train_clients` needs.

    Args:
        layers: the layers.
        longest: samples of the longest batch.
        copies: arrays of a client's size besides its parameters now and before: partial sums of each group, and for
            steps that are not plain the gradient, two moments, a slope and a stiffness.
        masked: whether the model has Dropout.
        protected: whether weights do not move in some subspaces.
    """
    array = np.asarray(layers)
    widest = padded.py_func(int(array[:, :2].max()))
    batches = len(array) + 4
    if array[:, 6].any():  # activations before normalisation
        batches += len(array)
    if masked:  # masks, inputs before they are masked, and draws
        batches += 2 * len(array) + 1
    batches += 2 * protected  # shares of inputs in these subspaces, and what is left of the inputs
    return int((2 + copies) * client_length(layers) + batches * rows_of.py_func(longest) * widest + BLOCK)


@inlined
def copy(source: np.ndarray, at: int, n: int, target: np.ndarray, to: int) -> None:
    """target[to : to + n] <- source[at : at + n]"""
    for i in range(0, n - WIDTH + 1, WIDTH):
        store(target, to + i, load(source, at + i))
    for i in range(n - n % WIDTH, n):
        target[to + i] = source[at + i]


@inlined
def lowest_trained(layers: np.ndarray) -> int:
    """The first layer of which something is trained."""
    k = 0
    while k < len(layers) - 1 and layers[k, 7] == 0:
        k += 1
    return k


@part
def pad_layers(row: np.ndarray, layers: np.ndarray, fixed: np.ndarray, c: int, client: np.ndarray) -> None:
    """client <- row, a row of `Params` of client c, with its frozen tensors of `fixed`. Missing biases become zeros."""
    if len(fixed):
        copy(fixed[min(c, len(fixed) - 1)], 0, len(client), client, 0)
    else:
        client[:] = _0
    write_layers(row, layers, client)


@part
def restore_layers(layers: np.ndarray, fixed: np.ndarray, c: int, client: np.ndarray) -> None:
    """Write what is not trained of client c again: the tensors of `fixed`, or zeros for biases that do not exist."""
    row = fixed[min(c, len(fixed) - 1)]
    for k in range(len(layers)):
        n_in, n_out, trained, first = layers[k, 0], layers[k, 1], layers[k, 7], layers[k, 5]
        middle = first + weights_length(n_in, n_out)
        if not trained & WEIGHTS:
            copy(row, first, middle - first, client, first)
        if not trained & BIAS:
            copy(row, middle, padded(n_out), client, middle)


@inlined
def write_layers(row: np.ndarray, layers: np.ndarray, client: np.ndarray) -> None:
    """client <- row, without the pads and the tensors that the row lacks, which are there already."""
    for k in range(len(layers)):
        n_in, n_out, weight, bias, offset = layers[k, 0], layers[k, 1], layers[k, 2], layers[k, 3], layers[k, 5]
        for o in range(n_out if weight >= 0 else 0):
            copy(row, weight + o * n_in, n_in, client, offset + o * padded(n_in))
        if bias >= 0:
            copy(row, bias, n_out, client, offset + weights_length(n_in, n_out))


@part
def unpad_layers(client: np.ndarray, layers: np.ndarray, row: np.ndarray) -> None:
    """row <- client, with zeros in the gaps of `Params`."""
    for k in range(len(layers)):
        n_in, n_out, weight, bias, offset = layers[k, 0], layers[k, 1], layers[k, 2], layers[k, 3], layers[k, 5]
        if weight >= 0:
            for o in range(n_out):
                copy(client, offset + o * padded(n_in), n_in, row, weight + o * n_in)
            row[weight + n_out * n_in : weight + padded(n_out * n_in)] = _0
        if bias >= 0:
            copy(client, offset + weights_length(n_in, n_out), n_out, row, bias)
            row[bias + n_out : bias + padded(n_out)] = _0


@inlined
def gather(flat: np.ndarray, rows: np.ndarray, width: int, h: np.ndarray) -> None:
    """h <- the samples at `rows`, padded. `flat` (N * width,) holds all samples."""
    for b in range(len(rows)):
        copy(flat, rows[b] * width, width, h, b * padded(width))


@inlined
def prefetch_samples(flat: np.ndarray, width: int, labels: np.ndarray, rows: np.ndarray) -> None:
    """Ask memory for samples of the next client: they are scattered, and loading them later would wait for memory.

    A core has few requests under way, 24 lines of 64 bytes on an AMD Zen 4, and waits if there are more.
    """
    for b in range(len(rows)):
        for i in range(rows[b] * width, (rows[b] + 1) * width + PAD - 1, PAD):
            prefetch(flat, i)
        if len(labels):
            prefetch(labels, rows[b])


# -- sums of updates, in the order of a binary tree --------------------------------------------------------------------
@inlined
def add_update(
    client: np.ndarray,
    start: np.ndarray,
    factor: float,
    totals: np.ndarray,
    at: int,
    count: int,
    depth: int,
    merges: int,
) -> None:
    """totals[depth - merges] <- (client - start) factor + the last `merges` of `depth` totals, the last one first.

    It does so for numbers `at` to `at` + `count`, and for pads that follow them.
    """
    weight, length = splat(factor), len(client)
    for i in range(at, at + count, WIDTH):
        v = (load(client, i) - load(start, i)) * weight
        for level in range(depth - 1, depth - 1 - merges, -1):
            v = load(totals, level * length + i) + v
        store(totals, (depth - merges) * length + i, v)


@part
def merge_totals(totals: np.ndarray, depth: int, length: int) -> None:
    """Add all `depth` totals into the first, the last two first: the order of a tree whose right edge is not full."""
    for level in range(depth - 2, -1, -1):
        for i in range(level * length, (level + 1) * length, WIDTH):
            store(totals, i, load(totals, i) + load(totals, length + i))
