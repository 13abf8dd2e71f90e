"""Sizes of a transformer, and what its backward pass keeps of a sample."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fl.execution.training.native.jit import in_caller, inlined


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
