"""Steps of an optimiser on a client's layers.

    g <- g^T h of each layer                                              weight_gradient
    g <- g + pull (w - initial) + slope + stiffness w                     add_penalty
    SGD:   d = s g + decay w;  v <- momentum v + d;  w <- w - rate v      sgd_step     (s: the factor of clipping)
    Adam:  m, v <- moments of s g;  w <- shrink w - rate m / (sqrt(v) / correction + eps)      adam_step

The loops work on BLOCK numbers at once, which stay in the nearest cache. SGD without clipping takes the step of four
rows when their gradient has just been computed (`momentum_step`); its numbers are the same. Without momentum no
gradient is stored:

    w <- w - rate (pull (w - initial) + slope + stiffness w + decay w) - rate g^T h               plain_step

Both pass the next batch through the rows that they have changed, where it is known (`products.change_layer`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fl.execution.training.native.combine import combine_sources
from fl.execution.training.native.jit import inlined, part
from fl.execution.training.native.memory import BIAS, BLOCK, ROWS, WEIGHTS, padded, weights_length
from fl.execution.training.native.products import Layer, bias_step, change_layer, gradient_rows, rows_of_products
from fl.execution.training.native.vector import WIDE, WIDTH, fill_wide, fma, load, load_wide, splat, sqrt, store, total

PLAIN, SGD, ADAM = 0, 1, 2  # optimisers

_0, _1 = np.float32(0), np.float32(1)


class Rule(NamedTuple):
    """The rule of a step.

    optimiser: PLAIN, SGD or ADAM. PLAIN is w <- w - rate g, and the other fields do not count.
    numbers: float32 (6,): pull, clip (0: none); then decay, momentum, Nesterov (1: yes) and 0 of SGD, or 1 - beta1,
        beta2, 1 - beta2 and eps of Adam.
    slope: float32 (0, S) for none, (1, S) for all clients, or (C, S): factors of the sources whose sum it is, see
        combine.py.
    stiffness: factors of the sources whose sum it is, likewise.
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
    """Set moments to zero, and read the penalty of client c; one penalty for all clients is read at the first.

    Gradients of frozen tensors are never written, and stay zero.
    """
    kept.first[:] = _0
    kept.second[:] = _0
    if c == 0:
        kept.gradient[:] = _0
        kept.slope[:] = _0
        kept.stiffness[:] = _0
    if c < len(rule.slope):
        combine_sources(sources, c, layers, rule.slope[c], kept.slope)
    if c < len(rule.stiffness):
        combine_sources(sources, c, layers, rule.stiffness[c], kept.stiffness)


@part
def take_step(
    rule: Rule,
    kept: Kept,
    w: np.ndarray,
    layers: np.ndarray,
    initial: np.ndarray,
    rate: np.float32,
    shrink: np.float32,
    correction: np.float32,
) -> None:
    """Take one step along `kept.gradient`. Clipping needs the penalty's gradient of all layers before the first."""
    scale, pull, clip = _1, rule.numbers[0], rule.numbers[1]
    if clip > _0:
        for k in range(len(layers)):
            begin, end = trained_numbers(layers, k)
            add_penalty(kept, w, initial, pull, begin, end, 0)
        scale = np.float32(clip / max(math.sqrt(squares(kept.gradient)), np.float64(clip)))
    for k in range(len(layers)):
        begin, end = trained_numbers(layers, k)
        for first in range(begin, end, BLOCK):
            last = min(first + BLOCK, end)
            if clip == _0:
                add_penalty(kept, w, initial, pull, first, last, 0)
            if rule.optimiser == SGD:
                sgd_step(rule, kept, w, scale, rate, first, last, 0)
            else:
                adam_step(rule, kept, w, scale, rate, shrink, correction, first, last)


@inlined
def trained_numbers(layers: np.ndarray, k: int) -> tuple[int, int]:
    """Where the trained numbers of layer k begin and end."""
    begin, trained = layers[k, 5], layers[k, 7]
    middle = begin + weights_length(layers[k, 0], layers[k, 1])
    end = middle + padded(layers[k, 1]) if trained & BIAS else middle
    return begin if trained & WEIGHTS else middle, end


class Step(NamedTuple):
    """A step of SGD in one layer, without clipping.

    initial: float32, all layers before training.
    """

    rule: Rule
    kept: Kept
    initial: np.ndarray
    rate: np.float32


@part
def weight_gradient(layer: Layer, gradient: np.ndarray) -> None:
    """gradient <- g^T h, then the sum of g over the batch (zeros if no bias is trained), from `layer.offset` on.

    Frozen weights have no gradient: their places are not written.
    """
    wide = padded(layer.n_in)
    for o in range(0, layer.n_out if layer.trained & WEIGHTS else 0, ROWS):
        gradient_rows(gradient, layer.offset + o * wide, False, layer, o)
    sum_over_batch(layer, gradient[bias_offset(layer) :])


@inlined
def bias_offset(layer: Layer) -> int:
    """Where the bias of a layer begins."""
    return layer.offset + weights_length(layer.n_in, layer.n_out)


@inlined
def _begin_plain(step: Step, layer: Layer) -> None:
    """Change the bias, and let g <- -rate g."""
    g, count, n_out, rate = layer.g, layer.count, layer.n_out, step.rate
    if layer.trained & BIAS:
        begin, across = bias_offset(layer), padded(n_out)
        follow_penalty(step, layer.w, begin, begin + across)
        bias_step(layer.w[begin:], g, count, n_out, rate)
    for i in range(0, count * padded(n_out), WIDTH):
        store(g, i, splat(-rate) * load(g, i))


@inlined
def _follow_one(step: Step, out: np.ndarray, i: int) -> Any:
    """The numbers out[i]... after the part of a plain step that does not depend on the batch, a wide vector."""
    rule, slope, stiffness = step.rule, step.kept.slope, step.kept.stiffness
    x = load_wide(out, i)
    if rule.optimiser != PLAIN:
        pull, decay, down = rule.numbers[0], rule.numbers[2], fill_wide(-step.rate)
        if pull == _0 and decay == _0 and not len(stiffness):
            if len(slope):
                x = fma(down, load_wide(slope, i), x)
        else:
            away = fill_wide(decay) * x
            if pull != _0:
                away = fma(fill_wide(pull), x - load_wide(step.initial, i), away)
            if len(stiffness):
                away = fma(load_wide(stiffness, i), x, away)
            if len(slope):
                away = away + load_wide(slope, i)
            x = fma(down, away, x)
    return x


@inlined
def _follow_four(step: Step, out: np.ndarray, at: int, wide: int) -> Any:
    """The same for four rows."""
    return (
        _follow_one(step, out, at),
        _follow_one(step, out, at + wide),
        _follow_one(step, out, at + 2 * wide),
        _follow_one(step, out, at + 3 * wide),
    )


plain_rows = rows_of_products(_follow_four)


@inlined
def _plain_rows(step: Step, layer: Layer, o: int) -> None:
    wide, across = padded(layer.n_in), padded(layer.n_out)
    plain_rows(layer.w, layer.offset + o * wide, step, layer.g, o, 1, across, layer.count, layer.h, wide)


@inlined
def _begin_momentum(step: Step, layer: Layer) -> None:
    if layer.trained & BIAS:
        begin = bias_offset(layer)
        sum_over_batch(layer, step.kept.gradient)
        _follow_gradient(step, layer.w, begin, begin + padded(layer.n_out))


@inlined
def _momentum_rows(step: Step, layer: Layer, o: int) -> None:
    """Their gradient lies at the beginning of `kept.gradient`."""
    wide = padded(layer.n_in)
    begin = layer.offset + o * wide
    gradient_rows(step.kept.gradient, 0, False, layer, o)
    _follow_gradient(step, layer.w, begin, begin + ROWS * wide)


@inlined
def _follow_gradient(step: Step, w: np.ndarray, first: int, last: int) -> None:
    """Change w[first:last] by the gradient at the beginning of `kept.gradient`."""
    add_penalty(step.kept, w, step.initial, step.rule.numbers[0], first, last, first)
    sgd_step(step.rule, step.kept, w, _1, step.rate, first, last, first)


plain_step = change_layer(_begin_plain, _plain_rows)
momentum_step = change_layer(_begin_momentum, _momentum_rows)


@inlined
def follow_penalty(step: Step, w: np.ndarray, first: int, last: int) -> None:
    """w <- w - rate (pull (w - initial) + slope + stiffness w + decay w), from `first` to `last`."""
    for i in range(first, last, WIDE):
        store(w, i, _follow_one(step, w, i))


@inlined
def sum_over_batch(layer: Layer, out: np.ndarray) -> None:
    """out <- the sum of g over the batch; zeros if no bias is trained."""
    across, count = padded(layer.n_out), layer.count if layer.trained & BIAS else 0
    for o in range(0, across, WIDTH):
        s0 = splat(_0)
        for b in range(count):
            s0 = s0 + load(layer.g, b * across + o)
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
