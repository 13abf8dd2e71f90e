"""Vertical partitions by importance and by correlation: paper values, closed forms and exhaustive search."""

from itertools import permutations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fl.data.dataset import Dataset
from fl.data.parties import check_columns
from partitions.vertical import (
    alpha_of,
    beta_of,
    equal_shares,
    icor,
    importance_of,
    importance_owners,
    linear_shapley,
    pcor,
    shapley,
    spearman,
    split_by_correlation,
)
from partitions.vertical.correlation import VerticalCorrelation, all_splits, splits_of
from partitions.vertical.importance import VerticalImportance, stick_breaking

DRAWS = 4000


def correlated(columns: int, rows: int = 300, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, 3)) @ generator.normal(size=(3, columns)) + generator.normal(
        size=(rows, columns)
    )


def data(x: np.ndarray) -> Dataset:
    return Dataset({"x": x.astype(np.float32), "y": np.arange(len(x)) % 2})


def parties_of(owners: np.ndarray, parties: int) -> list[np.ndarray]:
    return [np.flatnonzero(owners == party) for party in range(parties)]


# -- importance -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.2, 1.0, 3.0)])
def test_stick_breaking_has_the_moments_of_a_dirichlet_distribution(weights):
    generator, w = np.random.default_rng(1), np.array(weights)
    shares = np.array([stick_breaking(weights, generator) for _ in range(DRAWS)])
    mean = w / w.sum()
    variance = mean * (1 - mean) / (w.sum() + 1)
    assert_allclose(shares.sum(1), 1)
    assert_allclose(shares.mean(0), mean, atol=4 * np.sqrt(variance.max() / DRAWS))
    assert_allclose(shares.var(0), variance, rtol=0.12)


def test_tiny_weights_give_all_to_one_party():
    shares = stick_breaking([1e-9] * 4, np.random.default_rng(0))
    assert_allclose(np.sort(shares), [0, 0, 0, 1])


def test_numbers_of_columns_have_the_mean_and_the_variance_of_the_law_of_total_variance():
    """n ~ Binomial(D, q), q ~ Dirichlet: Var(n / D) = m (1 - m) / D (1 - 1/(W + 1)) + m (1 - m) / (W + 1)."""
    weights, columns, generator = (1.0, 2.0), 20, np.random.default_rng(2)
    found = np.array([(importance_owners(columns, weights, generator, empty=True) == 0).mean() for _ in range(DRAWS)])
    m, within = 1 / 3, (1 / 3) * (2 / 3) / 4
    variance = (m * (1 - m) - within) / columns + within
    assert found.mean() == pytest.approx(m, abs=4 * np.sqrt(variance / DRAWS))
    assert found.var() == pytest.approx(variance, rel=0.1)


def test_each_party_has_a_column_and_all_columns_are_distributed():
    for seed in range(30):
        columns = VerticalImportance(parties=4, alpha=0.01, seed=seed).party_columns(data(np.zeros((3, 6))))
        check_columns(columns, 6)
        assert sorted(np.concatenate(columns).tolist()) == list(range(6))
    with pytest.raises(ValueError, match="7 is more than the 6 columns"):
        importance_owners(6, [1.0] * 7, np.random.default_rng(0))
    with pytest.raises(ValueError, match="3 numbers for 2 parties"):
        VerticalImportance(parties=2, weights=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="give either `alpha`"):
        VerticalImportance(parties=2)


def test_shapley_values_of_a_linear_model_and_of_an_interaction():
    generator = np.random.default_rng(3)
    x, coefficients = generator.normal(size=(5, 4)), generator.normal(size=(4, 2))
    found = shapley(lambda rows: rows @ coefficients, x, x, generator, permutations=1)
    assert_allclose(found, linear_shapley(x, coefficients), atol=1e-12)
    # f = x0 x1 with background 0: both columns get half of it
    pair = shapley(lambda rows: rows[:, 0] * rows[:, 1], np.array([[2.0, 3.0, 9.0]]), np.zeros((1, 3)), generator, 1)
    assert_allclose(pair[0, :, 0], [3.0, 3.0, 0.0])


def test_alpha_is_recovered_over_many_draws():
    """The importance of a party is its share of the columns if all columns are equally important."""
    generator = np.random.default_rng(4)
    for alpha in (0.3, 1.0, 5.0):
        shares = np.array([stick_breaking([alpha] * 4, generator) for _ in range(DRAWS)])
        assert alpha_of(shares) == pytest.approx(alpha, rel=0.1)
    assert alpha_of(np.ones(3)) == np.inf


def test_importance_of_parties_adds_up_their_columns():
    values = np.array([[[1.0, 3.0], [-2.0, 0.0]], [[1.0, -3.0], [2.0, 0.0]]])  # (N, D, K): means 2 and 1
    assert importance_of(values, [np.array([1]), np.array([0])]).tolist() == [1.0, 2.0]


# -- correlation ------------------------------------------------------------------------------------------------------
def test_rank_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(5).integers(0, 4, (50, 5)).astype(float)  # many ties
    assert_allclose(spearman(x), stats.spearmanr(x).statistic, atol=1e-12)


def test_pcor_on_paper():
    assert pcor(np.eye(4)) == 0.0  # equal singular values
    assert pcor(np.ones((3, 3))) == pytest.approx(1.0)  # 3, 0, 0: standard deviation sqrt(3)
    assert pcor(np.ones((1, 5))) == 0.0
    block = np.random.default_rng(6).normal(size=(3, 2))
    assert pcor(block) == pytest.approx(pcor(block.T)) and pcor(block) >= 0


def test_icor_does_not_depend_on_order_names_or_monotone_maps():
    x = correlated(6)
    columns = [np.array([0, 1]), np.array([2, 3, 4]), np.array([5])]
    value = icor(spearman(x), columns)
    assert icor(spearman(x), [np.array([4, 2, 3]), np.array([5]), np.array([1, 0])]) == pytest.approx(value)
    assert icor(spearman(np.column_stack([np.exp(x[:, :3]), -(x[:, 3:] ** 3)])), columns) == pytest.approx(value)


def test_minimum_and_maximum_on_eight_columns_are_those_of_an_exhaustive_search():
    """All 8! orders, cut into parties of 3, 3 and 2."""
    matrix = spearman(correlated(8))
    cuts = lambda order: [np.sort(part) for part in (order[:3], order[3:6], order[6:])]  # noqa: E731
    every = {tuple(map(tuple, cuts(np.array(order)))) for order in permutations(range(8))}
    values = [icor(matrix, [np.array(own) for own in split]) for split in every]
    found = [icor(matrix, parties_of(split_by_correlation(matrix, 3, beta), 3)) for beta in (0.0, 1.0)]
    assert_allclose(found, [min(values), max(values)], atol=1e-12)
    assert len(every) == 560 and len(list(all_splits([3, 3, 2]))) == 280  # two parties of equal size swap names


@pytest.mark.parametrize("columns", [8, 14])
def test_a_larger_beta_has_no_smaller_icor(columns):
    matrix = spearman(correlated(columns))
    values = []
    for beta in np.linspace(0, 1, 6):
        own = parties_of(split_by_correlation(matrix, 3, beta, tries=60), 3)
        check_columns(own, columns)
        assert list(map(len, own)) == [len(part) for part in np.array_split(np.arange(columns), 3)]
        values.append(icor(matrix, own))
    assert np.all(np.diff(values) >= 0) and values[-1] > values[0]
    betas = [beta_of(value, values[0], values[-1]) for value in values]
    assert_allclose(betas, np.linspace(0, 1, 6), atol=0.1)


def test_the_search_finds_blocks_of_equal_columns():
    """Three blocks of four equal columns: the minimum has a block in each party."""
    x = np.repeat(np.random.default_rng(7).normal(size=(200, 3)), 4, axis=1)
    splits = splits_of(spearman(x), 3, starts=3, tries=300)
    blocks = icor(spearman(x), [np.arange(4), np.arange(4, 8), np.arange(8, 12)])
    assert splits.icor.min() == pytest.approx(blocks)
    found = parties_of(splits.nearest(0.0), 3)
    assert sorted(tuple(own) for own in found) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]


def test_the_partition_uses_training_rows_and_its_seed():
    x = correlated(12)
    parts = [VerticalCorrelation(parties=3, beta=0.5, seed=seed, tries=40) for seed in (0, 0, 1)]
    one, same, other = ([own.tolist() for own in part.party_columns(data(x))] for part in parts)
    assert one == same != other
    with pytest.raises(ValueError, match="not vectors"):
        parts[0].party_columns(data(np.zeros((4, 2, 3))))
    assert_array_equal(np.sort(np.concatenate(equal_shares(7, 2))), np.arange(7))
