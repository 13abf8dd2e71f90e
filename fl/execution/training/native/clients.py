"""All steps of all clients of a chunk, one client after another; see the package.

`train_clients` is compiled on its first import on a machine, for the processor at hand, and kept (cache.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types

from fl.execution.training.native import cache
from fl.execution.training.native.combine import Combined, write_client, write_sums
from fl.execution.training.native.dropout import Dropouts, draw_masks, mask_samples, masks_memory
from fl.execution.training.native.jit import inlined, owner
from fl.execution.training.native.losses import losses_and_gradient
from fl.execution.training.native.memory import (
    BLOCK,
    gather,
    length_of,
    lowest_trained,
    pad_layers,
    prefetch_samples,
    rows_of,
    widest,
)
from fl.execution.training.native.passes import any_norm, backward_pass, before_norm, forward_pass, products
from fl.execution.training.native.products import Following, Layer, outside_span
from fl.execution.training.native.shuffle import chained, write_order
from fl.execution.training.native.steps import (
    PLAIN,
    SGD,
    Rule,
    Step,
    begin_client,
    kept_memory,
    momentum_step,
    plain_step,
    take_step,
    weight_gradient,
)
from fl.execution.training.native.vector import WIDTH, load, prefetch, store

_0 = np.float32(0)


class Start(NamedTuple):
    """The model before training.

    params: float32 (1, P) for all clients, or (C, P).
    layers: int64 (L, 8), see memory.py.
    fixed: see there.
    """

    params: np.ndarray
    layers: np.ndarray
    fixed: np.ndarray


class Samples(NamedTuple):
    """Samples, and which of them each client has: client c has rows[starts[c] : starts[c] + sizes[c]].

    x: float32 (N, D).
    labels: int64 (N,) for softmax cross-entropy; empty for the squared error.
    targets: float32 (N, K) for half the squared error; empty for cross-entropy.
    rows: int64. starts, sizes: int64 (C,).
    """

    x: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


class Steps(NamedTuple):
    """The steps of each client.

    counts: int64 (C,), number of steps.
    rates: float32 (3, T), learning rate of each step; for Adam also `shrink` and `correction` (steps.py).
    batch: samples in a batch; 0 for all samples of a client.
    used: int64 (C,), samples in an epoch.
    """

    counts: np.ndarray
    rates: np.ndarray
    batch: int
    used: np.ndarray


class Shuffles(NamedTuple):
    """Addresses of the shuffles: (seed, client, *address, epoch, position).

    word: hash of the address up to the client, see `random.hash64_prefix`.
    clients: int64 (C,).
    address: uint64, the parts between client and epoch.
    shuffled: False takes samples in order.
    """

    word: np.uint64
    clients: np.ndarray
    address: np.ndarray
    shuffled: bool


class Protected(NamedTuple):
    """Subspaces of the layers' inputs in which weights do not move: g <- g - (g U) U^T = G^T (h - (h U) U^T).

    places: int64 (L, 2), where the columns of U begin in `columns`, and their number; 0: none.
    columns: float32, those of each layer as padded weights with a bias of zeros, see memory.py.
    """

    places: np.ndarray
    columns: np.ndarray


class Results(NamedTuple):
    """Arrays that training writes.

    params: float32 (C, P) for the trained parameters, or (1, P) for the sum of all updates times `factors`, or (0, P)
        if neither is wanted.
    minus_start: whether `params` (C, P) holds updates, trained minus start.
    factors: float32 (C,), or empty. Updates are added in the order of a binary tree, see `fl.method.fold.Fold`.
    losses: float64 (C,), to which the losses of all samples are added.
    samples: int64 (C,), to which the number of these samples is added.
    """

    params: np.ndarray
    minus_start: bool
    factors: np.ndarray
    losses: np.ndarray
    samples: np.ndarray


def _read_only(dtype: types.Type, dimensions: int) -> types.Array:
    return types.Array(dtype, dimensions, "C", readonly=True)


_integers, _floats, _matrix = _read_only(types.int64, 1), _read_only(types.float32, 1), _read_only(types.float32, 2)
_SIGNATURE = types.int64(
    *(_matrix, _read_only(types.int64, 2), _matrix),  # Start
    *(_matrix, _integers, _matrix, _integers, _integers, _integers),  # Samples
    *(_integers, _matrix, types.int64, _integers),  # Steps
    *(types.int64, _floats, _matrix, _matrix),  # Rule
    *(types.uint64, _integers, _read_only(types.uint64, 1), types.boolean),  # Shuffles
    *(_integers, _read_only(types.uint64, 1)),  # Dropouts
    *(_read_only(types.int64, 2), _floats),  # Protected
    *(types.float32[:, ::1], types.boolean, _floats, types.float64[::1], types.int64[::1]),  # Results
    *(_read_only(types.int64, 2), _read_only(types.float32, 3), types.float32[:, :, ::1]),  # Combined: rows
    *(_read_only(types.float32, 3), _matrix, types.float32[:, ::1]),  # Combined: sums
    types.float32[::1],
)


@inlined
def take_batch(
    data: Samples,
    flat: np.ndarray,
    steps: Steps,
    shuffles: Shuffles,
    c: int,
    word: np.uint64,
    at: int,
    epoch: int,
    keys: np.ndarray,
    order: np.ndarray,
    h: np.ndarray,
) -> tuple[int, int, int, int]:
    """h <- the batch of client c that begins at place `at` of an epoch, or the first one of the next epoch.

    Returns the place after the batch, the number of epochs so far, and where the batch begins and ends in `order`.
    """
    rows, starts, sizes = data.rows, data.starts, data.sizes
    if at >= steps.used[c]:
        write_order(chained(word, epoch), sizes[c], shuffles.shuffled, keys, order)
        for i in range(sizes[c]):
            order[i] = rows[starts[c] + order[i]]
        at, epoch = 0, epoch + 1
    end = at + (steps.batch if steps.batch else sizes[c])
    last = min(end, steps.used[c])
    gather(flat, order[at:last], data.x.shape[1], h)
    prefetch_half(data, flat, c + 1, at, last, epoch, 0)
    return end, epoch, at, last


@inlined
def prefetch_half(data: Samples, flat: np.ndarray, c: int, first: int, last: int, epoch: int, half: int) -> None:
    """Ask for half of the samples `first` to `last` - 1 of client c, if a client before it is in its first epoch.

    The first half is asked for before the products of a batch, the second one after them.
    """
    if c < len(data.sizes) and epoch == 1:
        begin, size, middle = data.starts[c], data.sizes[c], (first + last) // 2
        first, last = min(middle if half else first, size), min(last if half else middle, size)
        prefetch_samples(flat, data.x.shape[1], data.labels, data.rows[begin + first : begin + last])


@inlined
def _train_clients(
    start: Start,
    data: Samples,
    steps: Steps,
    rule: Rule,
    shuffles: Shuffles,
    dropouts: Dropouts,
    protected: Protected,
    results: Results,
    combined: Combined,
    memory: np.ndarray,
    order: np.ndarray,
    keys: np.ndarray,
    scales: np.ndarray,
) -> int:
    layers, factors, sizes, starts, rows = start.layers, results.factors, data.sizes, data.starts, data.rows
    labels, targets, batch, flat = data.labels, data.targets, steps.batch, data.x.reshape(-1)
    depth, classes, most = len(layers), layers[-1, 1], len(order)
    longest = min(batch, most) if batch else most
    length, lowest = length_of(layers), lowest_trained(layers)
    levels, height = 0, 0  # partial sums: room for them, and how many there are
    while (len(sizes) if len(factors) or len(combined.sums) else 0) >> levels:
        levels += 1
    client, initial = memory[:length], memory[length : 2 * length]  # a client's layers, now and before training
    end = (2 + levels) * length
    totals, area = memory[2 * length : end], rows_of(longest) * widest(layers)
    more = memory[end : end + len(combined.sums) * levels * length].reshape(len(combined.sums), levels * length)
    end += len(combined.sums) * levels * length
    some, end = memory[end : end + BLOCK], end + BLOCK
    kept, end = kept_memory(memory, end, length, rule)
    normalised, plain = any_norm(layers), rule.optimiser == PLAIN
    at_once = plain or (rule.optimiser == SGD and rule.numbers[1] == _0)
    simple = plain or (at_once and rule.numbers[3] == _0)  # without momentum
    batches = 2 * depth + 4 if normalised else depth + 4
    more_batches = batches + 2 * (len(protected.columns) > 0)
    tape = memory[end : end + more_batches * area].reshape(more_batches, area)
    tape[:] = _0
    masks = masks_memory(memory, end + more_batches * area, dropouts.shares, area)
    shares, outside = tape[more_batches - 2], tape[more_batches - 1]  # of inputs in protected subspaces
    masked = len(masks.factors) > 0
    given, ahead = tape[0], tape[batches - 1]  # inputs of the present batch, and of the next one
    g, below = tape[depth + 1], tape[depth + 2]
    first = tape[before_norm(layers, 0, normalised)]  # outputs of the first layer
    for c in range(len(sizes)):
        if c + 2 < len(sizes):
            for i in range(starts[c + 2], starts[c + 2] + sizes[c + 2], WIDTH):
                prefetch(rows, i)
        loss, word = 0.0, chained(shuffles.word, shuffles.clients[c])
        for number in shuffles.address:
            word = chained(word, number)
        if c < len(start.params):
            pad_layers(start.params[c], layers, start.fixed, c, initial)
        if rule.optimiser != PLAIN:
            begin_client(rule, kept, c, layers, combined.sources)
        for i in range(0, length, WIDTH):
            store(client, i, load(initial, i))
        at, epoch, begin, last = sizes[c], 0, 0, 0
        if steps.counts[c]:
            at, epoch, begin, last = take_batch(data, flat, steps, shuffles, c, word, at, epoch, keys, order, given)
            if masked:
                mask_samples(masks, dropouts.words[c], 0, layers, last - begin, given)
            products(client, layers, 0, given, first, last - begin)
            prefetch_half(data, flat, c + 1, begin, last, epoch, 1)
        for step in range(steps.counts[c]):
            rate, samples, count, following = steps.rates[0, step], order[begin:last], last - begin, 0
            if masked:
                draw_masks(masks, dropouts.words[c], step, layers, count)
            forward_pass(client, layers, tape, scales, count, normalised, masks)
            wrong, sum_of_losses = losses_and_gradient(tape[depth], labels, targets, samples, classes, g)
            if wrong >= 0:
                return wrong
            loss += sum_of_losses
            results.samples[c] += count
            if step + 1 < steps.counts[c]:
                at, epoch, begin, last = take_batch(data, flat, steps, shuffles, c, word, at, epoch, keys, order, ahead)
                following = last - begin
                if masked:
                    mask_samples(masks, dropouts.words[c], step + 1, layers, following, ahead)
            for k in range(depth - 1, lowest - 1, -1):
                n_in, n_out, offset, trained = layers[k, 0], layers[k, 1], layers[k, 5], layers[k, 7]
                if k > lowest:
                    backward_pass(client[offset:], layers, tape, scales, g, k, count, normalised, masks, below)
                h, protects = tape[k] if k else given, protected.places[k, 1]
                if protects:
                    columns = protected.columns[protected.places[k, 0] :]
                    outside_span(columns, protects, h, count, n_in, shares, outside)
                layer = Layer(client, offset, n_in, n_out, trained, g, outside if protects else h, count)
                passes = Following(ahead, first, 0 if k else following)
                if simple:
                    plain_step(Step(rule, kept, initial, rate), layer, passes)
                elif at_once:
                    momentum_step(Step(rule, kept, initial, rate), layer, passes)
                else:
                    weight_gradient(layer, kept.gradient)
                g, below = below, g
            if not at_once:
                take_step(rule, kept, client, layers, initial, rate, steps.rates[1, step], steps.rates[2, step])
            if lowest or not at_once:
                products(client, layers, 0, ahead, first, following)
            if following:
                prefetch_half(data, flat, c + 1, begin, last, epoch, 1)
            given, ahead = ahead, given
        results.losses[c] += loss
        merges = 0
        while levels and (c >> merges) & 1:
            merges += 1
        params, changed = results.params, results.minus_start
        write_client(client, initial, layers, combined, params, changed, factors, c, more, totals, height, merges, some)
        height += (1 - merges) * (levels > 0)
    write_sums(layers, combined, results.params, factors, more, totals, height, length)
    return -1


@owner
def _compiled(
    params: np.ndarray,
    layers: np.ndarray,
    fixed: np.ndarray,
    x: np.ndarray,
    labels: np.ndarray,
    targets: np.ndarray,
    rows: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    counts: np.ndarray,
    rates: np.ndarray,
    batch: int,
    used: np.ndarray,
    optimiser: int,
    numbers: np.ndarray,
    slope: np.ndarray,
    stiffness: np.ndarray,
    word: np.uint64,
    clients: np.ndarray,
    address: np.ndarray,
    shuffled: bool,
    shares: np.ndarray,
    mask_words: np.ndarray,
    places: np.ndarray,
    columns: np.ndarray,
    out: np.ndarray,
    minus_start: bool,
    factors: np.ndarray,
    losses: np.ndarray,
    samples: np.ndarray,
    sources: np.ndarray,
    row_factors: np.ndarray,
    combinations: np.ndarray,
    sum_factors: np.ndarray,
    weights: np.ndarray,
    sums: np.ndarray,
    memory: np.ndarray,
) -> int:
    most = 1
    for c in range(len(sizes)):
        most = max(most, sizes[c])
    return _train_clients(
        Start(params, layers, fixed),
        Samples(x, labels, targets, rows, starts, sizes),
        Steps(counts, rates, batch, used),
        Rule(optimiser, numbers, slope, stiffness),
        Shuffles(word, clients, address, shuffled),
        Dropouts(shares, mask_words),
        Protected(places, columns),
        Results(out, minus_start, factors, losses, samples),
        Combined(sources, row_factors, combinations, sum_factors, weights, sums),
        memory,
        np.empty(most, np.int64),
        np.empty(most, np.uint64),
        np.empty((len(layers), most + 1), np.float32),
    )


# it takes the fields of the structures, because numba needs 25 microseconds to check the structures themselves
cache.keep(_compiled)
_compiled.compile(_SIGNATURE)
_compiled.disable_compile()


def train_clients(
    start: Start,
    data: Samples,
    steps: Steps,
    rule: Rule,
    shuffles: Shuffles,
    dropouts: Dropouts,
    protected: Protected,
    results: Results,
    combined: Combined,
    memory: np.ndarray,
) -> int:
    """Train all clients. Returns -1, or the number of a sample whose label is no class.

    `memory` is float32 with at least `memory_length(...)` elements; `results`, `combined` and `memory` are written.
    """
    return int(_compiled(*start, *data, *steps, *rule, *shuffles, *dropouts, *protected, *results, *combined, memory))
