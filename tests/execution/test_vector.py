"""Vectors of eight: each operation compared with NumPy's, with the stated rounding."""

import numpy as np
import pytest
from numba import njit
from numpy.testing import assert_array_equal

from fl.execution.training.native.vector import exp, fma, load, prefetch, splat, store, sums

DRAW = np.random.default_rng(0)
A, B, C, D = (DRAW.standard_normal(20, np.float32) for _ in range(4))


@njit
def arithmetic(a, b, out):
    prefetch(a, 0)
    x, y = load(a, 3), load(b, 1)
    for k, v in enumerate((x + y, x - y, x * y, fma(x, y, splat(np.float32(0.1))))):
        store(out, 8 * k, v)


def test_arithmetic_is_rounded_once_each():
    out = np.zeros(32, np.float32)
    arithmetic(A, B, out)
    a, b = A[3:11], B[1:9]
    once = (a.astype(np.longdouble) * b + np.float32(0.1)).astype(
        np.float32
    )  # a significand of 64 bits holds the product exactly and the sum nearly
    assert_array_equal(out.reshape(4, 8), np.stack([a + b, a - b, a * b, once]))


@njit
def added(a, b, c, d, out):
    sums(load(a, 0), load(b, 0), load(c, 0), load(d, 0), a, 10, out, 2)


def test_sums_of_four_vectors():
    out = np.full(8, 7, np.float32)
    added(A, B, C, D, out)

    def halves(v):  # adds neighbours, then pairs of neighbours, then the two halves
        pairs = v[0:8:2] + v[1:8:2]
        quads = pairs[0:4:2] + pairs[1:4:2]
        return quads[0] + quads[1]

    assert_array_equal(out, [7, 7, *(halves(v) + more for v, more in zip((A, B, C, D), A[10:14])), 7, 7])


@njit
def exponentials(x):
    out = np.empty_like(x)
    for i in range(0, len(x), 8):
        store(out, i, exp(load(x, i)))
    return out


def test_exponentials():
    x = np.linspace(-87, 0, 800_000, dtype=np.float32)
    true = np.exp(x.astype(np.float64))
    assert np.max(np.abs(exponentials(x) - true) / true) < 2 * 2.0**-24
    special = np.array([0, -np.inf, np.nan, -100, -1e-30, -87, -88, -1e9], np.float32)
    found = exponentials(special)
    least = found[5]
    assert least == pytest.approx(np.exp(-87), rel=1e-6) and np.isnan(found[2])
    assert_array_equal(found[[0, 1, 3, 4, 6, 7]], [1, least, least, 1, least, least])
