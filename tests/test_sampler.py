"""Samplers: cohorts are ascending distinct ids, depend on (seed, round) only, and have the stated probabilities."""

import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fl.method.min_separation import MinSeparation
from fl.method.sampler import Cyclic, Fixed, Poisson, Uniform, Weighted
from fl.registry import names

SIZES = np.arange(1, 101)
SAMPLERS = [
    Uniform(size=10),
    Uniform(fraction=0.1),
    Poisson(rate=0.1),
    MinSeparation(separation=5, rate=0.5),
    Weighted(size=10),
    Cyclic(size=10),
    Fixed(clients=(4, 99, 0)),
]


def cohort(sampler, round_=0, seed=0, sizes=SIZES) -> np.ndarray:
    return sampler.sample(sampler.init(len(sizes)), round_, seed, sizes)[1]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_cohorts_are_ascending_distinct_ids(sampler):
    for round_ in range(20):
        ids = cohort(sampler, round_)
        assert ids.dtype == np.int64 and (np.diff(ids) > 0).all()
        assert ids.min(initial=0) >= 0 and ids.max(initial=0) < 100
        assert_array_equal(ids, cohort(sampler, round_))


@pytest.mark.parametrize("sampler", SAMPLERS[:5], ids=repr)
def test_seed_and_round_are_the_address(sampler):
    draws = {tuple(cohort(sampler, round_, seed)) for round_ in range(3) for seed in range(3)}
    assert len(draws) == 9


def test_all_are_registered():
    assert {"uniform", "poisson", "min_separation", "weighted", "cyclic", "fixed"} <= set(names("cohort"))


def test_uniform_takes_everyone_equally_often():
    """1,000 rounds of 10 in 100: a client's count has mean 100 and deviation sqrt(1000 x 0.1 x 0.9) = 9.5."""
    counts = np.bincount(np.concatenate([cohort(Uniform(size=10), r) for r in range(1000)]), minlength=100)
    assert np.abs(counts - 100).max() < 4.5 * 9.5
    assert_array_equal(cohort(Uniform(fraction=1.0)), np.arange(100))
    assert len(cohort(Uniform(fraction=0.001))) == 1


def test_clients_of_min_separation_rest_between_participations():
    """5 subsets of 20 clients, each drawn with probability 1/2: cohorts have mean 10 and variance 20 / 4 = 5."""
    sampler, last = MinSeparation(separation=5, rate=0.5), np.full(100, -5)
    lengths = []
    for round_ in range(2000):
        ids = cohort(sampler, round_)
        assert (round_ - last[ids] >= 5).all()
        last[ids] = round_
        lengths.append(len(ids))
    assert np.mean(lengths) == pytest.approx(10, abs=5 * np.sqrt(5 / 2000))
    assert np.var(lengths) == pytest.approx(5, rel=0.2)
    everyone = [cohort(MinSeparation(separation=5), round_) for round_ in range(5)]
    assert_array_equal(np.sort(np.concatenate(everyone)), np.arange(100))
    assert_array_equal(cohort(MinSeparation(separation=1, rate=0.1), 7), cohort(Poisson(rate=0.1), 7))


def test_poisson_cohorts_are_binomial():
    """Sizes have mean 10 and variance 100 x 0.1 x 0.9 = 9; each client takes part with probability 0.1."""
    cohorts = [cohort(Poisson(rate=0.1), r) for r in range(2000)]
    lengths = [len(c) for c in cohorts]
    assert np.mean(lengths) == pytest.approx(10, abs=5 * np.sqrt(9 / 2000))
    assert np.var(lengths) == pytest.approx(9, rel=0.2)
    assert np.abs(np.bincount(np.concatenate(cohorts), minlength=100) - 200).max() < 4.5 * np.sqrt(180)
    assert_array_equal(cohort(Poisson(rate=1.0)), np.arange(100))
    assert len(cohort(Poisson(rate=1e-9))) == 0


def test_weighted_draws_one_after_another():
    """Two clients of sizes 1, 2, 3 are drawn without replacement: P({0,1}) = 1/6 2/5 + 2/6 1/4, and so on."""
    sizes = np.array([1, 2, 3, 0])
    expected = {
        (0, 1): 1 / 6 * 2 / 5 + 2 / 6 * 1 / 4,
        (0, 2): 1 / 6 * 3 / 5 + 3 / 6 * 1 / 3,
        (1, 2): 2 / 6 * 3 / 4 + 3 / 6 * 2 / 3,
    }
    seen = [tuple(cohort(Weighted(size=2), r, sizes=sizes)) for r in range(4000)]
    for pair, probability in expected.items():
        assert seen.count(pair) / 4000 == pytest.approx(probability, abs=0.03)
    assert_array_equal(cohort(Weighted(size=3), sizes=sizes), [0, 1, 2])


def test_cyclic_by_hand():
    rounds = [cohort(Cyclic(size=3), r, sizes=np.ones(5)).tolist() for r in range(3)]
    assert rounds == [[0, 1, 2], [0, 3, 4], [1, 2, 3]]


def test_fixed_is_sorted():
    assert_array_equal(cohort(Fixed(clients=(4, 99, 0))), [0, 4, 99])


def test_a_million_clients_cost_next_to_nothing():
    sizes, start = np.ones(1_000_000, np.int64), time.process_time()
    for round_ in range(100):
        cohort(Uniform(size=100), round_, sizes=sizes)
        cohort(Poisson(rate=1e-4), round_, sizes=sizes)
    assert time.process_time() - start < 1  # a pass over all clients would take at least 2 ms each time, a sort 50 ms


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Uniform(size=200).check(100), "size: 200 clients of a population of 100"),
        (lambda: Uniform(size=0).check(100), "size: 0 is not positive"),
        (lambda: Uniform(), "give one of the two"),
        (lambda: Uniform(size=1, fraction=0.5), "give one of the two"),
        (lambda: Uniform(fraction=1.5), "fraction: 1.5 is not in"),
        (lambda: Poisson(rate=0.0), "rate: 0.0 is not in"),
        (lambda: Weighted(size=101).init(100), "size: 101 clients of a population of 100"),
        (
            lambda: cohort(Weighted(size=2), sizes=np.array([0, 3, 0])),
            "size: 2 clients of 1 that have training samples",
        ),
        (lambda: Cyclic(size=6).init(5), "size: 6 clients of a population of 5"),
        (lambda: Fixed(clients=(1, 5)).init(5), r"clients: \(1, 5\) are not all in 0..4"),
        (lambda: Fixed(clients=(1, 1)).init(5), "names a client twice"),
        (lambda: Fixed(clients=()).init(5), "is empty"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
