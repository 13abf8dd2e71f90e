"""Factorisations of prefix sums: coefficients, sensitivities and errors against dense matrices and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import cholesky, sqrtm, toeplitz
from scipy.special import binom

from fl.privacy import toeplitz as banded
from fl.privacy import tree
from fl.privacy.correlated import BandedStream, TreeStream


def dense(coefficients, n):
    column = np.zeros(n)
    column[: len(coefficients)] = coefficients
    return np.tril(toeplitz(column))


def patterns(n, separation, most):
    """All sets of rounds, `separation` apart, at most `most`."""
    for k in range(1, most + 1):
        for chosen in itertools.combinations(range(n), k):
            if all(b - a >= separation for a, b in zip(chosen, chosen[1:])):
                yield list(chosen)


def brute_force(matrix, separation, most):
    """The largest |C u| over patterns and signs; vectors are covered by signs, since C^T C is not negative."""
    best = 0.0
    for chosen in patterns(matrix.shape[1], separation, most):
        for signs in itertools.product([1.0, -1.0], repeat=len(chosen) - 1):
            best = max(best, np.linalg.norm(matrix[:, chosen] @ np.array([1.0, *signs])))
    return best


def tree_matrix(n, restart=None):
    """Rows: the complete nodes of the trees."""
    rows, size = [], restart or n
    for first in range(0, n, size):
        width = 1
        while width <= min(size, n - first):
            for at in range(first, first + size - width + 1, width):
                if at + width <= n:
                    rows.append([float(at <= t < at + width) for t in range(n)])
            width *= 2
    return np.array(rows)


def test_square_root_coefficients_are_those_of_the_matrix_root():
    n = 12
    j = np.arange(n)
    np.testing.assert_allclose(banded.square_root(n), binom(2 * j, j) / 4.0**j, rtol=1e-12)
    root = dense(banded.square_root(n), n)
    np.testing.assert_allclose(root @ root, np.tril(np.ones((n, n))), atol=1e-12)
    # sqrtm of a defective matrix is inexact
    np.testing.assert_allclose(root, np.real(sqrtm(np.tril(np.ones((n, n))))), atol=1e-2)


@pytest.mark.parametrize("bands", [1, 2, 3, 7, 12])
def test_error_equals_that_of_dense_matrices(bands):
    n = 12
    for c in (banded.square_root(bands), banded.optimised(bands, n)):
        matrix = dense(c, n)
        b = np.tril(np.ones((n, n))) @ np.linalg.inv(matrix)
        np.testing.assert_allclose(banded.variances(c, n), (b**2).sum(1), rtol=1e-10)
        np.testing.assert_allclose(banded.inverse(c, n), np.linalg.inv(matrix)[:, 0], atol=1e-12)
        expected = np.linalg.norm(matrix, axis=0).max() * np.sqrt((b**2).sum() / n)
        assert banded.mean_error(c, n, participations=1) == pytest.approx(expected, rel=1e-10)


def test_error_of_one_band_is_that_of_independent_noise():
    n = 50
    assert banded.mean_error(np.array([1.0]), n, participations=1) == pytest.approx(np.sqrt((n + 1) / 2))
    assert banded.mean_error(np.array([1.0]), n) == pytest.approx(np.sqrt(n * (n + 1) / 2))


def test_optimised_coefficients_are_best():
    n, bands = 40, 6
    best = banded.optimised(bands, n)
    assert (np.diff(best) < 0).all() and (best > 0).all()
    error = banded.mean_error(best, n, participations=1)
    assert error < banded.mean_error(banded.square_root(bands), n, participations=1)
    for j in range(1, bands):  # no small change of one coefficient helps
        for step in (-1e-3, 1e-3):
            other = best.copy()
            other[j] += step
            assert banded.mean_error(other, n, participations=1) >= error - 1e-9


def test_more_bands_have_less_error_and_all_bands_are_near_the_optimal_factorisation():
    """The optimum over all matrices for one participation, by a fixed point for C^T C (Denisov et al. 2022, 3.2)."""
    n = 16
    errors = [banded.mean_error(banded.optimised(b, n), n, participations=1) for b in (1, 2, 4, 8, 16)]
    assert all(later < earlier for earlier, later in zip(errors, errors[1:]))
    a = np.tril(np.ones((n, n)))
    v = np.ones(n)
    for _ in range(60):
        half = np.diag(np.sqrt(v))
        v = np.diag(np.real(sqrtm(half @ a.T @ a @ half)))
    half, back = np.diag(np.sqrt(v)), np.diag(1 / np.sqrt(v))
    x = back @ np.real(sqrtm(half @ a.T @ a @ half)) @ back
    c = cholesky(x)  # upper triangular with C^T C = X
    b = a @ np.linalg.inv(c)
    optimum = np.sqrt((b**2).sum() / n) * np.linalg.norm(c, axis=0).max()
    assert optimum <= errors[-1] <= 1.05 * optimum


@pytest.mark.parametrize("bands", [1, 2, 4, 9])
@pytest.mark.parametrize("separation", [1, 2, 3, 4])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_sensitivity_equals_brute_force_over_participations(bands, separation, most):
    n = 9
    for c in (banded.square_root(bands), banded.optimised(bands, n)):
        expected = brute_force(dense(c, n), separation, most)
        assert banded.sensitivity(c, n, separation, most) == pytest.approx(expected, rel=1e-10)


def test_sensitivity_of_bands_within_the_separation_is_the_root_of_k():
    c = banded.square_root(4)
    assert banded.sensitivity(c, 100, min_separation=20) == pytest.approx(np.sqrt(5) * np.linalg.norm(c))


def test_coefficients_that_increase_are_refused():
    with pytest.raises(ValueError, match="must not increase"):
        banded.sensitivity(np.array([1.0, 2.0]), 4)
    with pytest.raises(ValueError, match="bands: 5 is more than the 4 rounds"):
        banded.optimised(5, 4)


@pytest.mark.parametrize("restart", [None, 4, 3])
@pytest.mark.parametrize("separation", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_sensitivity_of_trees_bounds_brute_force(restart, separation, most):
    n = 9
    exact = brute_force(tree_matrix(n, restart), separation, most)
    bound = tree.sensitivity(n, restart, separation, most)
    assert exact <= bound + 1e-12
    if most == 1:
        assert bound == pytest.approx(exact)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 100])
def test_sensitivity_of_one_participation_equals_that_of_dp_accounting(n):
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant([8.0], accounting.NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(accounting.SingleEpochTreeAggregationDpEvent(3.0, [n]))
    other = rdp.RdpAccountant([8.0], accounting.NeighboringRelation.REPLACE_SPECIAL)
    other.compose(accounting.GaussianDpEvent(3.0 / tree.sensitivity(n, participations=1)))
    assert accountant.get_epsilon(1e-6) == pytest.approx(other.get_epsilon(1e-6))


def draws(seed, n):
    """A draw of one-element noise, and the dense z of level 0, with later levels by key."""
    numbers = {}

    def draw(round_, number):
        generator = np.random.default_rng([seed, round_, number])
        numbers[round_, number] = generator.standard_normal(3)
        return [torch.tensor(numbers[round_, number], dtype=torch.float64)]

    return draw, numbers


@pytest.mark.parametrize("bands", [1, 2, 5, 9])
def test_banded_stream_is_the_inverse_times_the_draws(bands):
    n, c = 9, banded.square_root(bands)
    draw, numbers = draws(1, n)
    stream = BandedStream(draw, c)
    noise = np.stack([stream.at(t)[0].numpy() for t in range(n)])
    z = np.stack([numbers[t, 0] for t in range(n)])
    np.testing.assert_allclose(noise, np.linalg.inv(dense(c, n)) @ z, atol=1e-12)


@pytest.mark.parametrize("honaker", [False, True])
@pytest.mark.parametrize("restart", [None, 8, 5])
def test_tree_stream_is_the_pseudo_inverse_of_each_prefix(honaker, restart):
    """Without Honaker a prefix is the sum of its nodes; with it, least squares on each complete subtree."""
    n = 13
    draw, numbers = draws(2, n)
    stream = TreeStream(draw, restart, honaker)
    prefix = np.cumsum([stream.at(t)[0].numpy() for t in range(n)], axis=0)
    finished = np.zeros(3)
    for t in range(n):
        start = 0 if restart is None else t - t % restart
        if start and start == t:
            finished = prefix[t - 1]
        expected, at = finished.copy(), start
        for level in reversed(range(5)):
            width = 1 << level
            if (t + 1 - start) & width:
                expected += estimate(numbers, at, level, honaker)
                at += width
        np.testing.assert_allclose(prefix[t], expected, atol=1e-12)


def estimate(numbers, at, level, honaker):
    """The noise of the sum of rounds at .. at + 2^level - 1, from all nodes below, by generalised least squares."""
    if not honaker:
        return numbers[at + (1 << level) - 1, level]
    width = 1 << level
    rows, noise = [], []
    for lower in range(level + 1):
        for first in range(0, width, 1 << lower):
            rows.append([float(first <= t < first + (1 << lower)) for t in range(width)])
            noise.append(numbers[at + first + (1 << lower) - 1, lower])
    return np.ones(width) @ np.linalg.pinv(np.array(rows)) @ np.array(noise)


@pytest.mark.parametrize("honaker", [False, True])
@pytest.mark.parametrize("restart", [None, 8, 5])
def test_tree_variances_equal_those_of_unit_draws(honaker, restart):
    """Push one unit of noise at a time through the stream; the squares of the prefix sums add up to the variance."""
    n = 13
    draw, numbers = draws(0, n)
    stream = TreeStream(draw, restart, honaker)
    [stream.at(t) for t in range(n)]
    total, changes = np.zeros(n), np.zeros(n)
    for chosen in list(numbers):
        unit = TreeStream(lambda t, level: [torch.tensor([float((t, level) == chosen)]).double()], restart, honaker)
        noise = np.array([float(unit.at(t)[0]) for t in range(n)])
        total += np.cumsum(noise) ** 2
        changes += noise**2
    np.testing.assert_allclose(tree.variances(n, restart, honaker), total, rtol=1e-12)
    single = [tree.increment_variance(t % (restart or n), honaker) for t in range(n)]
    np.testing.assert_allclose(single, changes, rtol=1e-12)


def test_tree_error_by_hand():
    # 4 rounds, 3 levels; prefix sums of 1, 1, 2, 1 nodes
    assert tree.mean_error(4, honaker=False, participations=1) ** 2 == pytest.approx(3 * 5 / 4)
    # Honaker: variances 1, 2/3, 2/3 + 1, 4/7
    assert tree.variances(4).tolist() == pytest.approx([1, 2 / 3, 5 / 3, 4 / 7])


@pytest.mark.parametrize("make", [lambda d: BandedStream(d, banded.square_root(4)), lambda d: TreeStream(d, 6)])
def test_any_order_of_rounds_gives_the_same_bits(make):
    draw, _ = draws(3, 12)
    stream = make(draw)
    whole = [stream.at(t)[0] for t in range(12)]
    for t in (7, 8, 3, 11, 11):  # a resumed run begins anywhere
        assert torch.equal(stream.at(t)[0], whole[t])
    assert torch.equal(make(draw).at(9)[0], whole[9])
