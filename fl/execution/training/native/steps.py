"""Steps of an optimiser on a client's layers, from stored gradients. Plain steps need none of this, see products.py.

    g <- g^T h of each layer                                              weight_gradient
    g <- g + pull (w - initial) + slope + stiffness w                     add_penalty
    SGD:   d = s g + decay w;  v <- momentum v + d;  w <- w - rate v      sgd_step     (s: the factor of clipping)
    Adam:  m, v <- moments of s g;  w <- shrink w - rate m / (sqrt(v) / correction + eps)      adam_step

The loops work on BLOCK numbers at once, which stay in the nearest cache. SGD without clipping takes the step of a few
rows when their gradient has just been computed (`gradient_and_step`); its numbers are the same. Without momentum no
gradient is stored:

    w <- w - rate (pull (w - initial) + slope + stiffness w + decay w) - rate g^T h               penalised_step
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fl.execution.training.native.combine import combine_sources
from fl.execution.training.native.jit import inlined, part
from fl.execution.training.native.memory import BLOCK, pad_layers, padded, weights_length
from fl.execution.training.native.products import COLUMNS, add_four, add_one, bias_step
from fl.execution.training.native.vector import WIDTH, fma, load, splat, sqrt, store, total

PLAIN, SGD, ADAM = 0, 1, 2  # optimisers

_0, _1 = np.float32(0), np.float32(1)


class Rule(NamedTuple):
    """The rule of a step.

    optimiser: PLAIN, SGD or ADAM. PLAIN is w <- w - rate g, and the other fields do not count.
    numbers: float32 (6,): pull, clip (0: none); then decay, momentum, Nesterov (1: yes) and 0 of SGD, or 1 - beta1,
        beta2, 1 - beta2 and eps of Adam.
    slope: float32 (0, S) for none, (1, S) for all clients, or (C, S): factors of the sources whose sum it is, see
        combine.py.
    stiffness: float32 (0, P) for none, (1, P) for all clients, or (C, P).
    """

    optimiser: int
    numbers: np.ndarray
    slope: np.ndarray
    stiffness: np.ndarray


class Kept(NamedTuple):
    """Arrays of a client's size, float32; empty if the rule does not need them.

    gradient: of the present batch.
    first, second: velocity of SGD; moments of Adam.
    slope, stiffness: those of the client's penalty.
    """

    gradient: np.ndarray
    first: np.ndarray
    second: np.ndarray
    slope: np.ndarray
    stiffness: np.ndarray


@inlined
def kept_memory(memory: np.ndarray, end: int, length: int, rule: Rule) -> tuple[Kept, int]:
    """The arrays that the rule needs, from memory[end] on, and where they end."""
    steps, moments = rule.optimiser != PLAIN, rule.optimiser == ADAM or rule.numbers[3] != _0
    a = end + length * steps
    b = a + length * (steps and moments)
    c = b + length * (rule.optimiser == ADAM)
    d = c + length * (len(rule.slope) > 0)
    e = d + length * (len(rule.stiffness) > 0)
    return Kept(memory[end:a], memory[a:b], memory[b:c], memory[c:d], memory[d:e]), e


@part
def begin_client(rule: Rule, kept: Kept, c: int, layers: np.ndarray, sources: np.ndarray) -> None:
    """Set moments to zero, and read the penalty of client c; one penalty for all clients is read at the first."""
    kept.first[:] = _0
    kept.second[:] = _0
    if c == 0:
        kept.slope[:] = _0
    if c < len(rule.slope):
        combine_sources(sources, c, layers, rule.slope[c], kept.slope)
    if c < len(rule.stiffness):
        pad_layers(rule.stiffness[c], layers, kept.stiffness)


@part
def take_step(
    rule: Rule,
    kept: Kept,
    w: np.ndarray,
    initial: np.ndarray,
    rate: np.float32,
    shrink: np.float32,
    correction: np.float32,
) -> None:
    """Take one step along `kept.gradient`. Clipping needs the penalty's gradient of all layers before the first."""
    length, scale, pull, clip = len(w), _1, rule.numbers[0], rule.numbers[1]
    if clip > _0:
        add_penalty(kept, w, initial, pull, 0, length, 0)
        scale = np.float32(clip / max(math.sqrt(squares(kept.gradient)), np.float64(clip)))
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        if clip == _0:
            add_penalty(kept, w, initial, pull, first, last, 0)
        if rule.optimiser == SGD:
            sgd_step(rule, kept, w, scale, rate, first, last, 0)
        else:
            adam_step(rule, kept, w, scale, rate, shrink, correction, first, last)


@part
def weight_gradient(
    g: np.ndarray,
    h: np.ndarray,
    count: int,
    n_in: int,
    n_out: int,
    biased: bool,
    weight: np.ndarray,
    bias: np.ndarray,
) -> None:
    """weight <- g^T h,  bias <- the sum of g over the batch; zeros for a layer without bias."""
    wide, across = padded(n_in), padded(n_out)
    for first in range(0, wide, COLUMNS):
        for o in range(0, n_out, 4):
            last = min(first + COLUMNS, wide)
            four_rows(g, h, count, o, first, last, wide, across, weight, o * wide + first, wide)
    sum_over_batch(g, count * biased, across, bias)


@part
def gradient_and_step(
    rule: Rule,
    kept: Kept,
    w: np.ndarray,
    initial: np.ndarray,
    offset: int,
    g: np.ndarray,
    h: np.ndarray,
    count: int,
    n_in: int,
    n_out: int,
    biased: bool,
    rate: np.float32,
) -> None:
    """Take a step of SGD without clipping in the layer that begins at `offset`: `weight_gradient` and `take_step`.

    Four rows of COLUMNS columns at once: their gradient lies at the beginning of `kept.gradient`.
    """
    wide, across, some = padded(n_in), padded(n_out), kept.gradient
    width, pull = min(COLUMNS, wide), rule.numbers[0]
    for first in range(0, wide, COLUMNS):
        last = min(first + COLUMNS, wide)
        for o in range(0, n_out, 4):
            four_rows(g, h, count, o, first, last, wide, across, some, 0, width)
            for r in range(4):
                begin = offset + (o + r) * wide + first
                end, shift = begin + last - first, begin - r * width
                add_penalty(kept, w, initial, pull, begin, end, shift)
                sgd_step(rule, kept, w, _1, rate, begin, end, shift)
    sum_over_batch(g, count * biased, across, some)
    bias = offset + weights_length(n_in, n_out)
    add_penalty(kept, w, initial, pull, bias, bias + across, bias)
    sgd_step(rule, kept, w, _1, rate, bias, bias + across, bias)


@part
def penalised_step(
    rule: Rule,
    kept: Kept,
    w: np.ndarray,
    initial: np.ndarray,
    offset: int,
    g: np.ndarray,
    h: np.ndarray,
    count: int,
    n_in: int,
    n_out: int,
    biased: bool,
    rate: np.float32,
) -> None:
    """Take a step of SGD without clipping and momentum in the layer that begins at `offset`, two rows at once."""
    wide, across, weight = padded(n_in), padded(n_out), w[offset:]
    for first in range(0, wide, COLUMNS):
        last = min(first + COLUMNS, wide)
        for r in range(0, n_out, 2):  # an odd last row is followed by a pad
            for row in range(r, r + 2):
                begin = offset + row * wide
                follow_penalty(rule, kept, w, initial, rate, begin + first, begin + last)
            for t in range(0, count - 3, 4):
                add_four(weight, r, g, 1, across, -rate, h, t, first, last, wide)
            for t in range(count - count % 4, count):
                add_one(weight, r, g, 1, across, -rate, h, t, first, last, wide)
    if biased:
        begin = offset + weights_length(n_in, n_out)
        follow_penalty(rule, kept, w, initial, rate, begin, begin + across)
        bias_step(w[begin:], g, count, n_out, rate)


@inlined
def follow_penalty(
    rule: Rule, kept: Kept, w: np.ndarray, initial: np.ndarray, rate: np.float32, first: int, last: int
) -> None:
    """w <- w - rate (pull (w - initial) + slope + stiffness w + decay w), from `first` to `last`."""
    slope, stiffness, down = kept.slope, kept.stiffness, splat(-rate)
    if rule.numbers[0] == _0 and rule.numbers[2] == _0 and not len(stiffness):
        if len(slope):
            for i in range(first, last, WIDTH):
                store(w, i, fma(down, load(slope, i), load(w, i)))
        return
    pull, decay = splat(rule.numbers[0]), splat(rule.numbers[2])
    for i in range(first, last, WIDTH):
        x = load(w, i)
        away = fma(pull, x - load(initial, i), decay * x)
        if len(stiffness):
            away = fma(load(stiffness, i), x, away)
        if len(slope):
            away = away + load(slope, i)
        store(w, i, fma(down, away, x))


@inlined
def four_rows(
    g: np.ndarray,
    h: np.ndarray,
    count: int,
    o: int,
    first: int,
    last: int,
    wide: int,
    across: int,
    out: np.ndarray,
    begin: int,
    stride: int,
) -> None:
    """Rows o..o + 3 of g^T h in the columns first..last - 1: row r goes to out[begin + r stride :]."""
    nothing = splat(_0)
    for i in range(first, last, 2 * WIDTH):  # eight products at once
        s0, s1, s2, s3 = nothing, nothing, nothing, nothing
        t0, t1, t2, t3 = nothing, nothing, nothing, nothing
        for b in range(count):
            x, y, at = load(h, b * wide + i), load(h, b * wide + i + WIDTH), b * across + o
            g0, g1, g2, g3 = splat(g[at]), splat(g[at + 1]), splat(g[at + 2]), splat(g[at + 3])
            s0, s1, s2, s3 = fma(x, g0, s0), fma(x, g1, s1), fma(x, g2, s2), fma(x, g3, s3)
            t0, t1, t2, t3 = fma(y, g0, t0), fma(y, g1, t1), fma(y, g2, t2), fma(y, g3, t3)
        to = begin + i - first
        store(out, to, s0)
        store(out, to + stride, s1)
        store(out, to + 2 * stride, s2)
        store(out, to + 3 * stride, s3)
        to += WIDTH
        store(out, to, t0)
        store(out, to + stride, t1)
        store(out, to + 2 * stride, t2)
        store(out, to + 3 * stride, t3)


@inlined
def sum_over_batch(g: np.ndarray, count: int, across: int, out: np.ndarray) -> None:
    """out <- the sum of g over `count` samples."""
    for o in range(0, across, WIDTH):
        s0 = splat(_0)
        for b in range(count):
            s0 = s0 + load(g, b * across + o)
        store(out, o, s0)


@inlined
def add_penalty(
    kept: Kept, w: np.ndarray, initial: np.ndarray, pull: np.float32, first: int, last: int, shift: int
) -> None:
    """g <- g + pull (w - initial) + slope + stiffness w, from `first` to `last`; g[i - shift] belongs to w[i]."""
    g, slope, stiffness, strength = kept.gradient, kept.slope, kept.stiffness, splat(pull)
    if len(slope):
        for i in range(first, last, WIDTH):
            store(g, i - shift, load(g, i - shift) + load(slope, i))
    if len(stiffness):
        for i in range(first, last, WIDTH):
            store(g, i - shift, fma(load(stiffness, i), load(w, i), load(g, i - shift)))
    if pull != _0:
        for i in range(first, last, WIDTH):
            store(g, i - shift, fma(strength, load(w, i) - load(initial, i), load(g, i - shift)))


@part
def squares(g: np.ndarray) -> float:
    """The sum of the squares of all numbers; their number is a multiple of 8."""
    whole = 0.0
    for first in range(0, len(g), BLOCK):
        some = splat(_0)
        for i in range(first, min(first + BLOCK, len(g)), WIDTH):
            some = fma(load(g, i), load(g, i), some)
        whole += float(total(some))
    return whole


@inlined
def sgd_step(
    rule: Rule, kept: Kept, w: np.ndarray, scale: np.float32, rate: np.float32, first: int, last: int, shift: int
) -> None:
    """One step of SGD from `first` to `last`; g[i - shift] belongs to w[i].

    See the module, and `fl.method.optimiser.SGD` for Nesterov's.
    """
    g, velocity = kept.gradient, kept.first
    factor, decay, momentum, down = splat(scale), splat(rule.numbers[2]), splat(rule.numbers[3]), splat(-rate)
    if scale != _1:
        for i in range(first, last, WIDTH):
            store(g, i - shift, factor * load(g, i - shift))
    if rule.numbers[2] != _0:
        for i in range(first, last, WIDTH):
            store(g, i - shift, fma(decay, load(w, i), load(g, i - shift)))
    if rule.numbers[3] == _0:
        for i in range(first, last, WIDTH):
            store(w, i, fma(down, load(g, i - shift), load(w, i)))
    elif rule.numbers[4] > _0:
        for i in range(first, last, WIDTH):
            v = fma(momentum, load(velocity, i), load(g, i - shift))
            store(velocity, i, v)
            store(w, i, fma(down, fma(momentum, v, load(g, i - shift)), load(w, i)))
    else:
        for i in range(first, last, WIDTH):
            v = fma(momentum, load(velocity, i), load(g, i - shift))
            store(velocity, i, v)
            store(w, i, fma(down, v, load(w, i)))


@inlined
def adam_step(
    rule: Rule,
    kept: Kept,
    w: np.ndarray,
    scale: np.float32,
    rate: np.float32,
    shrink: np.float32,
    correction: np.float32,
    first: int,
    last: int,
) -> None:
    """One step of Adam from `first` to `last`; see the module and `fl.method.optimiser.Adam`."""
    g, m, v, new1, beta2 = kept.gradient, kept.first, kept.second, splat(rule.numbers[2]), splat(rule.numbers[3])
    new2, eps = splat(rule.numbers[4]), splat(rule.numbers[5])
    factor, kept_share, correct, down = splat(scale), splat(shrink), splat(correction), splat(-rate)
    for i in range(first, last, WIDTH):
        gradient = factor * load(g, i)
        moment = fma(new1, gradient - load(m, i), load(m, i))
        square = fma(new2, gradient * gradient, beta2 * load(v, i))
        store(m, i, moment)
        store(v, i, square)
        store(w, i, fma(down, moment / (sqrt(square) / correct + eps), kept_share * load(w, i)))
