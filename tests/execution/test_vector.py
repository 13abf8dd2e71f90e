"""Vectors of eight: each operation compared with NumPy's, with the stated rounding."""

import numpy as np
import pytest
from numba import njit
from numpy.testing import assert_array_equal

from fl.execution.training.native.losses import cross_entropy
from fl.execution.training.native.products import forward, four_rows
from fl.execution.training.native.vector import (
    WIDE,
    add_in_order,
    exp,
    fill_wide,
    first_lanes,
    fma,
    load,
    load_wide,
    load_wide_at,
    one,
    prefetch,
    splat,
    splat_wide,
    store,
    sums,
    zeros_wide,
)

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
def wide_arithmetic(a, b, out):
    x, y = load_wide(a, 3), splat_wide(b, 1)
    same, also = load_wide_at(a.ctypes.data, 3), fill_wide(b[1])
    for k, v in enumerate((x + y, fma(x, y, y), fma(x, y, zeros_wide()), same - also)):
        store(out, WIDE * k, v)


def test_wide_vectors_are_rounded_once_each():
    out = np.zeros(4 * WIDE, np.float32)
    wide_arithmetic(A, B, out)
    a, b = A[3 : 3 + WIDE], B[1]
    once = (a.astype(np.longdouble) * b + b).astype(np.float32)
    assert_array_equal(out.reshape(4, WIDE), np.stack([a + b, once, a * b, a - b]))


def integers(*shape):
    """Return small integers: their products and sums are exact in any order."""
    return DRAW.integers(-9, 10, shape).astype(np.float32)


@njit
def product(out, adds, f, down, along, terms, lines, wide):
    four_rows(out, wide, adds, f, 2, down, along, terms, lines, wide)


@pytest.mark.parametrize("wide", [16, 32, 48, 80])
@pytest.mark.parametrize("terms", [1, 2, 5])
@pytest.mark.parametrize("adds", [False, True])
def test_four_rows_of_a_product(wide, terms, adds):
    """Factors may lie by rows or by terms; other rows keep their numbers."""
    f, lines, out = integers(4, terms), integers(terms, wide), integers(6, wide)
    for laid, down, along in ((f, terms, 1), (f.T, 1, 4)):
        found = out.copy()
        product(
            found.ravel(), adds, np.append([7, 7], laid.ravel()).astype(np.float32), down, along, terms, lines, wide
        )
        assert_array_equal(found[1:5], f @ lines + adds * out[1:5])
        assert_array_equal(found[[0, 5]], out[[0, 5]])


@njit
def outputs(weight, bias, h, z, count, n_in, n_out):
    forward(weight, bias, h, z, count, n_in, n_out)


@pytest.mark.parametrize("count", range(1, 10))
def test_outputs_of_a_layer(count):
    """Any number of samples; 33 inputs are stored as 48, 6 outputs as 8 rows and 16 numbers of a sample."""
    weight, bias, h, z = (np.zeros(shape, np.float32) for shape in ((8, 48), 16, (12, 48), (12, 16)))
    weight[:6, :33], bias[:6], h[:count, :33] = integers(6, 33), integers(6), integers(count, 33)
    outputs(weight.ravel(), bias, h.ravel(), z.ravel(), count, 33, 6)
    assert_array_equal(z[:count], h[:count] @ np.pad(weight, ((0, 8), (0, 0))).T + bias)


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


@njit
def lanes_and_sums(a, b, count, out):
    store(out, 0, first_lanes(load(a, 1), count, load(b, 2)))
    out[8], out[9] = one(a, count), add_in_order(b[0], a, 3)


@pytest.mark.parametrize("count", [-1, 0, 3, 8, 11])
def test_first_lanes_and_sums_in_order(count):
    """Any count: fewer than one number of the first vector, some, or all of them."""
    out = np.zeros(10, np.float32)
    lanes_and_sums(A, B, count, out)
    place = np.arange(8)
    assert_array_equal(out[:8], np.where(place < count, A[1:9], B[2:10]))
    if count >= 0:
        assert out[8] == A[count]
    assert out[9] == np.add.accumulate(np.append(B[:1], A[3:11]))[-1]  # in order, rounded after each addition


@njit
def cross_entropies(outputs, labels, samples, classes, g):
    return cross_entropy(outputs, labels, samples, classes, g)


@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 10, 16, 17, 62])
def test_cross_entropy(classes):
    """The mean loss's gradient and the sum of the losses, in float64. Pads of the outputs do not count."""
    samples, across = np.array([4, 0, 2]), -(-classes // 16) * 16
    labels, outputs = DRAW.integers(0, classes, 5), np.full((3, across), 50, np.float32)
    outputs[:, :classes] = 4 * DRAW.standard_normal((3, classes), np.float32)
    g = np.full((4, across), 7, np.float32)
    loss = cross_entropies(outputs.ravel(), labels, samples, classes, g.ravel())
    powers, onehot = np.exp(outputs[:, :classes].astype(np.float64)), np.eye(classes)[labels[samples]]
    shares = powers / powers.sum(1, keepdims=True)
    assert loss == pytest.approx(-np.log((shares * onehot).sum(1)).sum(), rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(g[:3, :classes], (shares - onehot) / 3, rtol=0, atol=1e-7)
    assert not g[:3, classes:].any() and (g[3] == 7).all()


@pytest.mark.parametrize("outputs", [[0, np.nan, 1], [np.inf, 0, 0], [-np.inf] * 3])
def test_cross_entropy_of_outputs_that_are_not_finite(outputs):
    """Loss and gradient of the sample are NaN, as exp(inf - inf) is."""
    batch = np.zeros((2, 16), np.float32)
    batch[0, :3] = outputs
    g = np.zeros((2, 16), np.float32)
    assert np.isnan(cross_entropies(batch.ravel(), np.array([2, 1]), np.arange(2), 3, g.ravel()))
    assert np.isnan(g[0, :3]).all() and np.isfinite(g[1]).all() and not g[:, 3:].any()
