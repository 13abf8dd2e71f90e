"""FN and LN of a batch's activations: forward and backward pass. `fl/models/normalise.py` has the equations.

    FN    y = s a,              s = sqrt(n) / max(|a|, eps)         dL/da = s (g - y <y, g> / n)
    LN    y = s (a - mean a),   s = 1 / sqrt(var a + eps)           dL/da = s (g - mean g - y <y, g> / n)

a: the n activations of a sample, g = dL/dy. Pads of `a`, `y` and `g` hold zeros.
"""

from __future__ import annotations

import math

import numpy as np

from fl.execution.training.native.jit import part
from fl.execution.training.native.memory import padded
from fl.execution.training.native.products import times_slope
from fl.execution.training.native.vector import WIDTH, fma, load, splat, store, total
from fl.models.normalise import FEATURE_EPS, LAYER_EPS

FEATURE, LAYER = 1, 2

_0, _1 = np.float32(0), np.float32(1)
_FEATURE_EPS, _LAYER_EPS = np.float32(FEATURE_EPS), np.float32(LAYER_EPS)


@part
def normalise(a: np.ndarray, y: np.ndarray, scales: np.ndarray, count: int, width: int, norm: int) -> None:
    """y <- FN(a) or LN(a); scales[b] <- s of sample b."""
    wide, size = padded(width), np.float32(width)
    for b in range(count):
        at, end, squares = b * wide, (b + 1) * wide, splat(_0)
        for i in range(at, end, WIDTH):
            store(y, i, load(a, i))
        if norm == LAYER:
            for i in range(at, end, WIDTH):
                squares = squares + load(a, i)
            mean = splat(total(squares) / size)
            squares = splat(_0)
            for i in range(at, end, WIDTH):
                store(y, i, load(a, i) - mean)
            y[at + width : end] = _0
        for i in range(at, end, WIDTH):
            squares = fma(load(y, i), load(y, i), squares)
        if norm == LAYER:
            scales[b] = _1 / np.float32(math.sqrt(total(squares) / size + _LAYER_EPS))
        else:
            scales[b] = np.float32(math.sqrt(size)) / max(np.float32(math.sqrt(total(squares))), _FEATURE_EPS)
        scale = splat(scales[b])
        for i in range(at, end, WIDTH):
            store(y, i, load(y, i) * scale)


@part
def normalise_backward(
    g: np.ndarray,
    y: np.ndarray,
    a: np.ndarray,
    scales: np.ndarray,
    count: int,
    width: int,
    norm: int,
    activation: int,
) -> None:
    """g <- phi'(a) dL/da, from g = dL/dy."""
    wide, size = padded(width), np.float32(width)
    fixed = np.float32(math.sqrt(size)) / _FEATURE_EPS  # the scale of FN where it does not depend on a
    for b in range(count):
        at, end = b * wide, (b + 1) * wide
        sums, products = splat(_0), splat(_0)
        for i in range(at, end, WIDTH):
            v = load(g, i)
            sums, products = sums + v, fma(load(y, i), v, products)
        mean, along = splat(_0), splat(-total(products) / size)
        if norm == LAYER:
            mean = splat(total(sums) / size)
        elif scales[b] == fixed:
            along = splat(_0)
        scale = splat(scales[b])
        for i in range(at, end, WIDTH):
            store(g, i, (fma(load(y, i), along, load(g, i)) - mean) * scale)
        g[at + width : end] = _0
    times_slope(g, a, count * wide, activation)
