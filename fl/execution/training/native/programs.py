"""Steps that a method takes itself, as programs of linear combinations and gradients; see the package.

A client's parameters, and the vectors that its steps keep, are slots of padded memory. They are read before its first
step and written after its last one, so that they stay in the processor's caches. A program is a list of operations,

    slot <- sum of factor_j slot_j + factor g,    g: the gradient of a batch's mean loss at a slot; left out if none

A gradient is never stored: four rows of it at a time are added to the slot. `fl.execution.training.recorded_steps`
writes programs. `run_programs` is compiled on its first import on a machine and kept (cache.py).
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from fl.execution.training.chunk import BATCH, COUNTS, FIRST, SLOTS, SOURCE, TARGET, TERMS
from fl.execution.training.native import cache
from fl.execution.training.native.dropout import draw_masks, masks_memory
from fl.execution.training.native.jit import OPTIONS, inlined, part
from fl.execution.training.native.losses import cross_entropy, squared_error
from fl.execution.training.native.memory import gather, pad_layers, padded, unpad_layers, weights_length
from fl.execution.training.native.passes import backward_pass, forward_pass
from fl.execution.training.native.products import COLUMNS
from fl.execution.training.native.shuffle import chained, write_order
from fl.execution.training.native.steps import four_rows, sum_over_batch
from fl.execution.training.native.vector import WIDTH, fma, load, splat, store

_0 = np.float32(0)
_matrix, _integers = (types.Array(t, n, "C", readonly=True) for t, n in ((types.float32, 2), (types.int64, 1)))
_SIGNATURE = types.int64(
    *(types.float32[:, :, ::1], types.Array(types.int64, 2, "C", readonly=True)),  # values, layers
    *(_integers, types.Array(types.int64, 2, "C", readonly=True)),  # firsts, operations
    types.Array(types.float32, 3, "C", readonly=True),  # factors
    *(_matrix, _integers, _matrix, _integers, _integers, _integers),  # x, labels, targets, rows, starts, sizes
    *(_integers, types.int64, _integers),  # counts, batch, used
    *(types.Array(types.uint64, 2, "C", readonly=True), types.boolean),  # words, shuffled
    *(_integers, types.Array(types.uint64, 2, "C", readonly=True)),  # shares, mask_words
    *(types.float64[::1], types.int64[::1], types.float32[::1]),  # losses, samples, memory
)


@part
def combine(
    slots: np.ndarray,
    operation: np.ndarray,
    numbers: np.ndarray,
    g: np.ndarray,
    factor: np.float32,
    first: int,
    last: int,
    shift: int,
) -> None:
    """Carry out an operation from `first` to `last`; g[i - shift] belongs to place i. `g` is not read if there is none.

    numbers: float32 (TERMS,), the factors of the slots.
    """
    out, n, along = slots[operation[TARGET]], operation[SLOTS], splat(factor)
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
def combine_layer(
    slots: np.ndarray,
    operation: np.ndarray,
    numbers: np.ndarray,
    factor: np.float32,
    g: np.ndarray,
    h: np.ndarray,
    count: int,
    n_in: int,
    n_out: int,
    biased: bool,
    offset: int,
    some: np.ndarray,
) -> None:
    """Carry out an operation with a gradient in the layer that begins at `offset`. `some` holds four rows of it."""
    wide, across = padded(n_in), padded(n_out)
    width = min(COLUMNS, wide)
    for first in range(0, wide, COLUMNS):
        last = min(first + COLUMNS, wide)
        for o in range(0, n_out, 4):
            four_rows(g, h, count, o, first, last, wide, across, some, 0, width)
            for r in range(4):
                begin = offset + (o + r) * wide + first
                combine(slots, operation, numbers, some, factor, begin, begin + last - first, begin - r * width)
    sum_over_batch(g, count * biased, across, some)
    bias = offset + weights_length(n_in, n_out)
    combine(slots, operation, numbers, some, factor, bias, bias + across, bias)


@njit(**OPTIONS)
def run_programs(
    values: np.ndarray,
    layers: np.ndarray,
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
        layers: int64 (L, 7), see memory.py.
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
    depth, classes, most, widest = len(layers), layers[-1, 1], 1, padded(layers[-1, 1])
    for c in range(len(sizes)):
        most = max(most, sizes[c])
    longest = min(batch, most) if batch else most
    for k in range(depth):
        widest = max(widest, padded(layers[k, 0]))
    length, area = layers[-1, 5] + weights_length(layers[-1, 0], classes) + padded(classes), (longest + 1) * widest
    number = len(values)
    for i in range(len(operations)):
        number = max(number, operations[i, TARGET] + 1)
    slots, some = memory[: number * length].reshape(number, length), memory[number * length : (number + 1) * length]
    slots[:] = _0
    normalised = np.any(layers[:, 6] > 0)
    batches, end = 2 * depth + 3 if normalised else depth + 3, (number + 1) * length
    tape = memory[end : end + batches * area].reshape(batches, area)
    tape[:] = _0
    masks = masks_memory(memory, end + batches * area, shares, area)
    g, below, scales = tape[depth + 1], tape[depth + 2], np.empty((depth, longest + 1), np.float32)
    kinds = words.shape[1]
    orders, keys, epochs = np.empty((kinds, most), np.int64), np.empty(most, np.uint64), np.empty(kinds, np.int64)
    numbers = np.empty(TERMS, np.float32)
    for c in range(len(sizes)):
        for s in range(len(values)):
            pad_layers(values[s, c], layers, slots[s])
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
                operation, source = operations[n], operations[n, SOURCE]
                factor = factors[n, 0, who]
                for j in range(TERMS):
                    numbers[j] = factors[n, 1 + j, who]
                if source < 0:
                    combine(slots, operation, numbers, some, factor, 0, length, 0)
                    continue
                kind, client = operation[BATCH], slots[source]
                if epochs[kind] != epoch:
                    write_order(chained(words[c, kind], epoch), sizes[c], shuffled, keys, orders[kind])
                    for i in range(sizes[c]):
                        orders[kind, i] = rows[starts[c] + orders[kind, i]]
                    epochs[kind] = epoch
                taken = orders[kind, at : at + count]
                if gathered != kind:
                    gather(x, taken, layers[0, 0], tape[0])
                    if len(masks.factors):
                        draw_masks(masks, mask_words[c, kind], step, layers, count, tape[0])
                    gathered = kind
                forward_pass(client, layers, tape, scales, count, normalised, masks)
                if len(labels):
                    for b in range(count):
                        if not 0 <= labels[taken[b]] < classes:
                            return taken[b]
                    sum_of_losses = cross_entropy(tape[depth], labels, taken, classes, g)
                else:
                    sum_of_losses = squared_error(tape[depth], targets, taken, g)
                if operation[COUNTS]:
                    loss += sum_of_losses
                for k in range(depth - 1, -1, -1):
                    n_in, n_out, _, biased, _, offset, _ = layers[k]
                    if k:
                        backward_pass(client[offset:], layers, tape, scales, g, k, count, normalised, masks, below)
                    combine_layer(
                        slots, operation, numbers, factor, g, tape[k], count, n_in, n_out, biased >= 0, offset, some
                    )
                    g, below = below, g
            at += size
        losses[c] += loss
        for s in range(len(values)):
            unpad_layers(slots[s], layers, values[s, c])
    return -1


cache.keep(run_programs)
run_programs.compile(_SIGNATURE)
run_programs.disable_compile()
