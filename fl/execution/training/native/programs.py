"""Steps that a method takes itself, as programs of linear combinations and gradients; see the package.

A client's parameters, and the vectors that its steps keep, are slots of padded memory. They are read before its first
step and written after its last one, so that they stay in the processor's caches. A program is a list of operations,

    slot <- sum of factor_j slot_j + factor g,    g: the gradient of a batch's mean loss at a slot; left out if none

A gradient is never stored: four rows of it at a time are added to the slot. `fl.execution.training.recorded_steps`
writes programs. `run_programs` is compiled on its first import on a machine and kept (cache.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types

from fl.execution.training.chunk import BATCH, COUNTS, FIRST, SLOTS, SOURCE, TARGET, TERMS
from fl.execution.training.native import cache
from fl.execution.training.native.dropout import draw_masks, mask_samples, masks_memory
from fl.execution.training.native.jit import inlined, owner, part
from fl.execution.training.native.losses import losses_and_gradient
from fl.execution.training.native.memory import (
    BIAS,
    ROWS,
    gather,
    length_of,
    lowest_trained,
    pad_layers,
    padded,
    restore_layers,
    rows_of,
    unpad_layers,
    widest,
)
from fl.execution.training.native.passes import any_norm, backward_pass, before_norm, forward_pass, products
from fl.execution.training.native.products import Following, Layer, change_layer, gradient_rows
from fl.execution.training.native.shuffle import chained, write_order
from fl.execution.training.native.steps import bias_offset, sum_over_batch
from fl.execution.training.native.vector import WIDTH, fma, load, splat, store

_0 = np.float32(0)
_matrix, _integers = (types.Array(t, n, "C", readonly=True) for t, n in ((types.float32, 2), (types.int64, 1)))
_SIGNATURE = types.int64(
    *(types.float32[:, :, ::1], types.Array(types.int64, 2, "C", readonly=True), _matrix),  # values, layers, fixed
    *(_integers, types.Array(types.int64, 2, "C", readonly=True)),  # firsts, operations
    types.Array(types.float32, 3, "C", readonly=True),  # factors
    *(_matrix, _integers, _matrix, _integers, _integers, _integers),  # x, labels, targets, rows, starts, sizes
    *(_integers, types.int64, _integers),  # counts, batch, used
    *(types.Array(types.uint64, 2, "C", readonly=True), types.boolean),  # words, shuffled
    *(_integers, types.Array(types.uint64, 2, "C", readonly=True)),  # shares, mask_words
    *(types.float64[::1], types.int64[::1], types.float32[::1]),  # losses, samples, memory
)


class Operation(NamedTuple):
    """An operation with a gradient.

    factor: of the gradient.
    some: float32, room for four rows of it.
    """

    slots: np.ndarray
    codes: np.ndarray
    numbers: np.ndarray
    factor: np.float32
    some: np.ndarray


@part
def combine(how: Operation, first: int, last: int, shift: int) -> None:
    """Carry out an operation from `first` to `last`; how.some[i - shift]: the gradient at place i, if any."""
    slots, operation, numbers, g = how.slots, how.codes, how.numbers, how.some
    out, n, along = slots[operation[TARGET]], operation[SLOTS], splat(how.factor)
    a, b, c = slots[operation[FIRST]], slots[operation[FIRST + 1]], slots[operation[FIRST + 2]]
    of_a, of_b, of_c = splat(numbers[0]), splat(numbers[1]), splat(numbers[2])
    if operation[SOURCE] < 0:
        for i in range(first, last, WIDTH):
            s = of_a * load(a, i)
            if n > 1:
                s = fma(of_b, load(b, i), s)
            if n > 2:
                s = fma(of_c, load(c, i), s)
            store(out, i, s)
    elif n == 0:
        for i in range(first, last, WIDTH):
            store(out, i, along * load(g, i - shift))
    elif n == 1:
        for i in range(first, last, WIDTH):
            store(out, i, fma(along, load(g, i - shift), of_a * load(a, i)))
    elif n == 2:
        for i in range(first, last, WIDTH):
            s = fma(of_b, load(b, i), of_a * load(a, i))
            store(out, i, fma(along, load(g, i - shift), s))
    else:
        for i in range(first, last, WIDTH):
            s = fma(of_c, load(c, i), fma(of_b, load(b, i), of_a * load(a, i)))
            store(out, i, fma(along, load(g, i - shift), s))


@inlined
def _begin(how: Operation, layer: Layer) -> None:
    if layer.trained & BIAS:
        sum_over_batch(layer, how.some)
        begin = bias_offset(layer)
        combine(how, begin, begin + padded(layer.n_out), begin)


@inlined
def _rows(how: Operation, layer: Layer, o: int) -> None:
    wide = padded(layer.n_in)
    begin = layer.offset + o * wide
    gradient_rows(how.some, 0, False, layer, o)
    combine(how, begin, begin + ROWS * wide, begin)


combine_layer = change_layer(_begin, _rows)


@owner
def run_programs(
    values: np.ndarray,
    layers: np.ndarray,
    fixed: np.ndarray,
    firsts: np.ndarray,
    operations: np.ndarray,
    factors: np.ndarray,
    x: np.ndarray,
    labels: np.ndarray,
    targets: np.ndarray,
    rows: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    counts: np.ndarray,
    batch: int,
    used: np.ndarray,
    words: np.ndarray,
    shuffled: bool,
    shares: np.ndarray,
    mask_words: np.ndarray,
    losses: np.ndarray,
    samples: np.ndarray,
    memory: np.ndarray,
) -> int:
    """Take all steps of C clients. Returns -1, or the number of a sample whose label is no class.

    Args:
        values: float32 (S, C, P), the slots that outlast a step: parameters, then what the steps keep. They change.
        layers: int64 (L, 8), see memory.py.
        fixed: see there. A slot has these tensors while a gradient is taken at it; elsewhere nothing reads them.
        firsts: see `fl.execution.training.chunk.Programs`.
        operations: see there.
        factors: see there.
        x: as in `Samples` of clients.py.
        labels: see there.
        targets: see there.
        rows: see there.
        starts: see there.
        sizes: see there.
        counts: as in `Steps` of clients.py.
        batch: see there.
        used: see there.
        words: uint64 (C, B), hashes of the addresses of the shuffles up to the epoch, for each number of a batch.
        shuffled: False takes samples in order.
        shares: as in `Dropouts` of dropout.py.
        mask_words: see there; uint64 (C, B).
        losses: float64 (C,), to which the losses that count are added.
        samples: int64 (C,), to which the number of samples of all steps is added.
        memory: float32 with at least `memory_length(layers, longest batch, slots, ...)` elements, written.
    """
    depth, classes, most = len(layers), layers[-1, 1], 1
    for c in range(len(sizes)):
        most = max(most, sizes[c])
    longest = min(batch, most) if batch else most
    length, area = length_of(layers), rows_of(longest) * widest(layers)
    number, lowest = len(values), lowest_trained(layers)
    for i in range(len(operations)):
        number = max(number, operations[i, TARGET] + 1)
    slots, some = memory[: number * length].reshape(number, length), memory[number * length : (number + 1) * length]
    slots[:] = _0
    normalised = any_norm(layers)
    batches, end = 2 * depth + 3 if normalised else depth + 3, (number + 1) * length
    tape = memory[end : end + batches * area].reshape(batches, area)
    tape[:] = _0
    masks = masks_memory(memory, end + batches * area, shares, area)
    g, below, scales = tape[depth + 1], tape[depth + 2], np.empty((depth, longest + 1), np.float32)
    kinds = words.shape[1]
    orders, keys, epochs = np.empty((kinds, most), np.int64), np.empty(most, np.uint64), np.empty(kinds, np.int64)
    numbers, flat = np.empty(TERMS, np.float32), x.reshape(-1)
    for c in range(len(sizes)):
        for s in range(len(values)):
            pad_layers(values[s, c], layers, fixed, c, slots[s])
        size, loss, who = batch if batch else sizes[c], 0.0, min(c, factors.shape[2] - 1)
        at, epoch = 0, 0
        epochs[:] = -1
        for step in range(counts[c]):
            if at >= used[c]:
                at, epoch = 0, epoch + 1
            program, gathered = min(step, len(firsts) - 2), -1
            count = min(at + size, used[c]) - at
            samples[c] += count
            for n in range(firsts[program], firsts[program + 1]):
                source, kind = operations[n, SOURCE], operations[n, BATCH]
                for j in range(TERMS):
                    numbers[j] = factors[n, 1 + j, who]
                operation = Operation(slots, operations[n], numbers, factors[n, 0, who], some)
                if source < 0:
                    combine(operation, 0, length, 0)
                    continue
                client = slots[source]
                if len(fixed):
                    restore_layers(layers, fixed, c, client)
                if epochs[kind] != epoch:
                    write_order(chained(words[c, kind], epoch), sizes[c], shuffled, keys, orders[kind])
                    for i in range(sizes[c]):
                        orders[kind, i] = rows[starts[c] + orders[kind, i]]
                    epochs[kind] = epoch
                taken = orders[kind, at : at + count]
                if gathered != kind:
                    gather(flat, taken, layers[0, 0], tape[0])
                    if len(masks.factors):
                        mask_samples(masks, mask_words[c, kind], step, layers, count, tape[0])
                        draw_masks(masks, mask_words[c, kind], step, layers, count)
                    gathered = kind
                products(client, layers, 0, tape[0], tape[before_norm(layers, 0, normalised)], count)
                forward_pass(client, layers, tape, scales, count, normalised, masks)
                wrong, sum_of_losses = losses_and_gradient(tape[depth], labels, targets, taken, classes, g)
                if wrong >= 0:
                    return wrong
                if operations[n, COUNTS]:
                    loss += sum_of_losses
                for k in range(depth - 1, lowest - 1, -1):
                    n_in, n_out, offset, trained = layers[k, 0], layers[k, 1], layers[k, 5], layers[k, 7]
                    if k > lowest:
                        backward_pass(client[offset:], layers, tape, scales, g, k, count, normalised, masks, below)
                    layer = Layer(client, offset, n_in, n_out, trained, g, tape[k], count)
                    combine_layer(operation, layer, Following(tape[0], tape[1], 0))
                    g, below = below, g
            at += size
        losses[c] += loss
        for s in range(len(values)):
            unpad_layers(slots[s], layers, values[s, c])
    return -1


cache.keep(run_programs)
run_programs.compile(_SIGNATURE)
run_programs.disable_compile()
