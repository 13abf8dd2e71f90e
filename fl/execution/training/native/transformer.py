"""Gradients of a transformer's adapters and head, one client after another; fl/models/architectures/transformer.py has
the equations.

A layer is computed sample after sample, so that a sample's rows and the layer's weights stay in the near caches.
Samples have `rows` rows, the number of positions rounded up. The rows after the last position are never attended to.

    transformer_tape.py      sizes of the model, and what the backward pass keeps of a sample
    adapted_products.py      products of the frozen layers with their adapters: `linear`, panels, factors
    transformer_layers.py    the other layers of a sample

`gradients` is compiled on its first import on a machine and kept (cache.py).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numba import types

from fl.execution.training.native import cache
from fl.execution.training.native.adapted_products import (
    inner_product,
    linear_backward,
    product,
    read_changes,
    write_factors,
)
from fl.execution.training.native.jit import owner, signature
from fl.execution.training.native.transformer_layers import (
    UNSEEN,
    add_to_rows,
    answer,
    attend,
    attend_backward,
    embed,
    gelu,
    normalise,
    normalise_backward,
)
from fl.execution.training.native.transformer_tape import Sizes, tape_at, tape_length
from fl.execution.training.native.vector import WIDTH, load, store

LINEAR = 4  # frozen linear layers of a transformer layer
INPUTS, OUTPUT, UP, DOWN = range(LINEAR)

_0 = np.float32(0)

# types of arguments: arrays in C order; only those that are given may be read-only
Vector = Annotated[np.ndarray, types.float32[::1]]
Matrix = Annotated[np.ndarray, types.float32[:, ::1]]
Norms = Annotated[np.ndarray, types.float32[:, :, ::1]]
Labels = Annotated[np.ndarray, types.int64[:, ::1]]
Ids = Annotated[np.ndarray, types.int64[:, :, ::1]]
GivenMatrix = Annotated[np.ndarray, types.Array(types.float32, 2, "C", readonly=True)]
GivenIntegers = Annotated[np.ndarray, types.Array(types.int64, 2, "C", readonly=True)]
Numbers = Annotated[tuple[int, ...], types.UniTuple(types.int64, len(Sizes._fields))]


@owner
def gradients(
    params: GivenMatrix,
    linear: GivenIntegers,
    scales: Vector,
    embedding: Matrix,
    positions: Matrix,
    norms: Norms,
    biases: Matrix,
    forward: Vector,
    backward: Vector,
    numbers: Numbers,
    ids: Ids,
    labels: Labels,
    weights: GivenMatrix,
    out: Matrix,
    losses: Matrix,
    memory: Vector,
) -> None:
    """Compute the gradients of the sums of weights times losses.

    Args:
        params: float32 (C, P), where each client's gradient is taken.
        linear: int64 (4 layers, 8), see adapted_products.py.
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
gradients.compile(signature(gradients.py_func))
gradients.disable_compile()
