"""Forward and backward passes apart: the loss between them is computed elsewhere.

`begin_clients` reads the parameters. `step_clients` takes the step of one batch and passes the next batch through the
layers, so that both visit the layers at once. `end_clients` writes results. Each client has arrays of its own, which
outlast a call. `model_passes` passes samples through models that do not change.

    clients (C, length)    padded layers, see memory.py
    tapes (C, area)        arrays of batches, see passes.py; zeros before the first call
    scales (C, ...)        of the layers' norms

The functions are compiled on their first import on a machine and kept (cache.py). Only methods with a loss of their
own need them.
"""

from __future__ import annotations

import numpy as np
from numba import types

from fl.execution.training.native import cache
from fl.execution.training.native.combine import Combined, write_client, write_sums
from fl.execution.training.native.dropout import masks_memory
from fl.execution.training.native.jit import inlined, owner
from fl.execution.training.native.memory import (
    BLOCK,
    copy,
    gather,
    length_of,
    lowest_trained,
    pad_layers,
    padded,
    rows_of,
    widest,
)
from fl.execution.training.native.norms import normalise_backward
from fl.execution.training.native.passes import any_norm, backward_pass, before_norm, forward_pass, products
from fl.execution.training.native.products import Following, Layer, times_slope
from fl.execution.training.native.steps import PLAIN, Kept, Rule, Step, plain_step
from fl.execution.training.native.vector import WIDTH, load, store

_0 = np.float32(0)
PASS = 32  # samples that pass through a model at once; with the widest weights they stay in the second cache

_integers, _matrix = (types.Array(t, n, "C", readonly=True) for t, n in ((types.int64, 1), (types.float32, 2)))
_layers, _cubes = (types.Array(t, n, "C", readonly=True) for t, n in ((types.int64, 2), (types.float32, 3)))
_written = types.float32[:, ::1]


@inlined
def _take_rows(batch: np.ndarray, count: int, n: int, out: np.ndarray, first: int) -> None:
    """Copy `count` padded rows of n numbers to out[first :]."""
    flat = out.reshape(-1)
    for b in range(count):
        copy(batch, b * padded(n), n, flat, (first + b) * n)


@inlined
def _put_rows(rows: np.ndarray, first: int, count: int, n: int, batch: np.ndarray) -> None:
    """Copy rows[first : first + count] of n numbers to a batch, padded with zeros."""
    flat, across = rows.reshape(-1), padded(n)
    for b in range(count):
        copy(flat, (first + b) * n, n, batch, b * across)
        batch[b * across + n : (b + 1) * across] = _0


def end_length(length: int, clients: int, sums: int) -> int:
    """Elements of memory that `end_clients` needs for padded layers of `length` elements and this number of sums."""
    return length * (1 + clients.bit_length() * sums) + BLOCK


def tape_length(layers: np.ndarray, longest: int) -> int:
    """Elements of a client's tape for batches of at most `longest` samples."""
    batches = 2 * len(layers) + 4 if layers[:, 6].any() else len(layers) + 4
    return int(batches * rows_of.py_func(longest) * padded.py_func(int(layers[:, :2].max())))


@owner
def begin_clients(
    params: np.ndarray, layers: np.ndarray, fixed: np.ndarray, clients: np.ndarray, tapes: np.ndarray
) -> None:
    """clients (C, length) <- params, float32 (1, P) for all clients, or (C, P); tapes <- 0."""
    for c in range(len(clients)):
        pad_layers(params[min(c, len(params) - 1)], layers, fixed, c, clients[c])
    tapes[:] = _0


@owner
def end_clients(
    clients: np.ndarray,
    places: np.ndarray,
    start: np.ndarray,
    layers: np.ndarray,
    out: np.ndarray,
    minus_start: bool,
    factors: np.ndarray,
    sources: np.ndarray,
    row_factors: np.ndarray,
    combinations: np.ndarray,
    sum_factors: np.ndarray,
    weights: np.ndarray,
    sums: np.ndarray,
    memory: np.ndarray,
) -> None:
    """Write results from the trained parameters, as `train_clients` does.

    Args:
        clients: float32 (C, length), changed.
        places: int64 (C,), the row of `clients` of each client.
        start: float32 (1, P) for all clients, or (C, P): the parameters before training.
        layers: int64 (L, 8), see memory.py. What `Params` lack is in no result.
        out: `params` of `Results` of clients.py.
        minus_start: of `Results`.
        factors: of `Results`.
        sources: of `Combined` of combine.py, as the five arguments after it.
        row_factors: see there.
        combinations: `rows` there.
        sum_factors: see there.
        weights: see there.
        sums: see there.
        memory: float32 with at least `end_length(...)` elements, written.
    """
    combined = Combined(sources, row_factors, combinations, sum_factors, weights, sums)
    length, levels, height, none = clients.shape[1], 0, 0, np.empty((0, 0), np.float32)
    while (len(places) if len(factors) or len(sums) else 0) >> levels:
        levels += 1
    initial, totals, end = memory[:length], memory[length : (1 + levels) * length], (1 + levels) * length
    more = memory[end : end + len(sums) * levels * length].reshape(len(sums), levels * length)
    some = memory[end + len(sums) * levels * length :][:BLOCK]
    for c in range(len(places)):
        client, merges = clients[places[c]], 0
        if c < len(start):
            pad_layers(start[c], layers, none, c, initial)
        while levels and (c >> merges) & 1:
            merges += 1
        write_client(
            client, initial, layers, combined, out, minus_start, factors, c, more, totals, height, merges, some
        )
        height += (1 - merges) * (levels > 0)
    write_sums(layers, combined, out, factors, more, totals, height, length)


@owner
def step_clients(
    clients: np.ndarray,
    layers: np.ndarray,
    tapes: np.ndarray,
    scales: np.ndarray,
    now: np.ndarray,
    following: np.ndarray,
    of_outputs: np.ndarray,
    of_features: np.ndarray,
    rate: float,
    x: np.ndarray,
    rows: np.ndarray,
    turn: int,
    outputs: np.ndarray,
    features: np.ndarray,
) -> None:
    """Change the clients by the gradients of their present batches; pass their next batches through the layers.

    Args:
        clients: float32 (C, length), changed.
        layers: int64 (L, 8), see memory.py.
        tapes: float32 (C, `tape_length`), changed.
        scales: float32 (C, L * (B + 1)), changed.
        now: int64 (A,), samples of the present batch of the first A clients; 0: none.
        following: int64 (A,), samples of their next batch; 0: none.
        of_outputs: float32 (A B, K), gradients in the outputs of the present batches, B rows for each client.
        of_features: float32 (A B, F), gradients in the inputs of the last layer, or (0, F).
        rate: learning rate.
        x: float32 (N, D), samples.
        rows: int64 (A' B',), which of them the next batches have, B' rows for each of the A' clients that have one.
        turn: 0 and 1 in turns; where the inputs of the next batch go.
        outputs: float32 (A' B', K), written.
        features: float32 (A' B', F), written: the inputs of the last layer.
    """
    depth, classes, none = len(layers), layers[-1, 1], np.empty(0, np.float32)
    normalised = any_norm(layers)
    batches = 2 * depth + 4 if normalised else depth + 4
    area, width_of_features = tapes.shape[1] // batches, layers[-1, 0]
    masks = masks_memory(none, 0, np.zeros(depth, np.int64), area)
    rule = Rule(PLAIN, np.zeros(6, np.float32), np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
    step = Step(rule, Kept(none, none, none, none, none), none, np.float32(rate))
    active, going, lowest = len(now), (following > 0).sum(), lowest_trained(layers)
    other = np.empty(area, np.float32)
    flat, width, next_width = x.reshape(-1), len(of_outputs) // max(active, 1), len(rows) // max(going, 1)
    for c in range(active):
        client, tape, count, more = clients[c], tapes[c].reshape(batches, area), now[c], following[c]
        scale = scales[c].reshape(depth, -1)
        given, ahead = (tape[batches - 1], tape[0]) if turn else (tape[0], tape[batches - 1])
        first, g, below = tape[before_norm(layers, 0, normalised)], tape[depth + 1], tape[depth + 2]
        if more:
            gather(flat, rows[c * next_width : c * next_width + more], layers[0, 0], ahead)
        if count:
            _put_rows(of_outputs, c * width, count, classes, g)
            for k in range(depth - 1, lowest - 1, -1):
                n_in, n_out, offset, trained = layers[k, 0], layers[k, 1], layers[k, 5], layers[k, 7]
                if k > lowest:
                    backward_pass(client[offset:], layers, tape, scale, g, k, count, normalised, masks, below)
                if k > lowest and k == depth - 1 and len(of_features):
                    # phi' is a factor, so it may be applied to both gradients one by one
                    activation, norm = layers[k - 1, 4], layers[k - 1, 6] if normalised else 0
                    _put_rows(of_features, c * width, count, n_in, other)
                    if norm:
                        h = tape[depth + 2 + k]
                        normalise_backward(other, tape[k], h, scale[k - 1], count, n_in, norm, activation)
                    else:
                        times_slope(other, tape[k], count * padded(n_in), activation)
                    for i in range(0, count * padded(n_in), WIDTH):
                        store(below, i, load(below, i) + load(other, i))
                layer = Layer(client, offset, n_in, n_out, trained, g, tape[k] if k else given, count)
                plain_step(step, layer, Following(ahead, first, 0 if k else more))
                g, below = below, g
        if lowest or not count:
            products(client, layers, 0, ahead, first, more)
        if more:
            forward_pass(client, layers, tape, scale, more, normalised, masks)
            _take_rows(tape[depth], more, classes, outputs, c * next_width)
            _take_rows(tape[depth - 1] if depth > 1 else ahead, more, width_of_features, features, c * next_width)


@owner
def model_passes(
    params: np.ndarray,
    layers: np.ndarray,
    fixed: np.ndarray,
    x: np.ndarray,
    rows: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    memory: np.ndarray,
    outputs: np.ndarray,
    features: np.ndarray,
) -> None:
    """Pass the samples of each client through a model, without Dropout.

    Args:
        params: float32 (1, P) for all clients, or (C, P).
        layers: int64 (L, 8), see memory.py.
        fixed: see there.
        x: float32 (N, D), samples.
        rows: int64 (n,), which of them the clients have; client c has rows[starts[c] : starts[c] + sizes[c]].
        starts: int64 (C,).
        sizes: int64 (C,), samples of each client that pass; 0: none, and nothing is written.
        memory: float32 with at least `memory_length(layers, PASS, 0)` elements, written.
        outputs: float32 (n, K), written.
        features: float32 (n, F), written: the inputs of the last layer.
    """
    depth, classes, area = len(layers), layers[-1, 1], rows_of(PASS) * widest(layers)
    length = length_of(layers)
    client, normalised = memory[:length], any_norm(layers)
    batches = 2 * depth + 4 if normalised else depth + 4
    tape = memory[length : length + batches * area].reshape(batches, area)
    tape[:] = _0
    masks = masks_memory(memory, length, np.zeros(depth, np.int64), area)
    scales, flat = np.empty((depth, PASS + 1), np.float32), x.reshape(-1)
    for c in range(len(sizes)):
        if c == 0 or (sizes[c] and c < len(params)):
            pad_layers(params[c], layers, fixed, c, client)
        for first in range(starts[c], starts[c] + sizes[c], PASS):
            count = min(PASS, starts[c] + sizes[c] - first)
            gather(flat, rows[first : first + count], layers[0, 0], tape[0])
            products(client, layers, 0, tape[0], tape[before_norm(layers, 0, normalised)], count)
            forward_pass(client, layers, tape, scales, count, normalised, masks)
            _take_rows(tape[depth], count, classes, outputs, first)
            _take_rows(tape[depth - 1], count, layers[-1, 0], features, first)


_SIGNATURES = {
    begin_clients: types.void(_matrix, _layers, _matrix, _written, _written),
    end_clients: types.void(
        *(_written, _integers, _matrix, _layers),  # clients, places, start, layers
        *(_written, types.boolean, types.Array(types.float32, 1, "C", readonly=True)),  # of Results
        *(_layers, _cubes, types.float32[:, :, ::1], _cubes, _matrix, _written),  # Combined
        types.float32[::1],
    ),
    step_clients: types.void(
        *(_written, _layers, _written, _written),  # clients, layers, tapes, scales
        *(_integers, _integers, _matrix, _matrix, types.float64),  # now, following, of_outputs, of_features, rate
        *(_matrix, _integers, types.int64, _written, _written),  # x, rows, turn, outputs, features
    ),
    model_passes: types.void(
        *(_matrix, _layers, _matrix, _matrix, _integers),  # params, layers, fixed, x, rows
        *(_integers, _integers, types.float32[::1], _written, _written),  # starts, sizes, memory, outputs, features
    ),
}
for function, signature in _SIGNATURES.items():
    cache.keep(function)
    function.compile(signature)
    function.disable_compile()
