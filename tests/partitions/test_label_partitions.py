"""Partitions by label and by size: computed by hand, in closed form, and compared with flwr-datasets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fl.data.folder import data_folder
from fl.data.grouping import apportion, class_codes, deal_classes, shuffled_groups
from fl.data.partition import Partition
from partitions.dirichlet import dirichlet
from partitions.extended_dirichlet import extended_dirichlet
from partitions.inner_dirichlet import inner_dirichlet, log_mixtures, served
from partitions.pathological import class_holders, equal_shares, pathological
from partitions.pfllib import pfllib
from partitions.quantity import quantity
from partitions.shards import shards

LABELS = np.random.default_rng(0).integers(0, 10, 3000)


def counts_of(labels, indices, offsets) -> np.ndarray:
    """Count the rows of each class 0..K-1 of each client, (N, K)."""
    parts = np.split(indices, offsets[1:-1])
    return np.array([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


# -- tools ------------------------------------------------------------------------------------------------------------
def test_coded_by_hand():
    for labels in ([7, -2, 7, 4], [7, -2, 7, 4 * 10**6]):
        classes, codes = class_codes(np.array(labels))
        assert_array_equal(classes, sorted(set(labels)))
        assert_array_equal(classes[codes], labels)
    with pytest.raises(ValueError, match="labels: float64"):
        class_codes(np.zeros(3))


@given(st.lists(st.integers(0, 6), max_size=60).map(lambda x: np.array(x, np.int64)), st.integers(0, 9))
def test_shuffled_groups_are_groups(owners, seed):
    order, offsets = shuffled_groups(owners, 7, seed)
    for c in range(7):
        assert sorted(order[offsets[c] : offsets[c + 1]]) == np.flatnonzero(owners == c).tolist()


def test_groups_are_shuffled_uniformly():
    """Each of 4 rows is first in a quarter of 2,000 draws, within 4 standard deviations."""
    first = [shuffled_groups(np.zeros(4, np.int64), 1, seed)[0][0] for seed in range(2000)]
    assert np.abs(np.bincount(first) - 500).max() < 4 * np.sqrt(2000 * 3 / 16)


def test_dealt_gives_what_is_counted():
    codes = np.array([0, 1, 0, 1, 1, 0, 0])
    counts = np.array([[1, 2], [0, 0], [2, 1]])
    indices, offsets = deal_classes(codes, counts, 3)
    assert_array_equal(counts_of(codes, indices, offsets), counts)
    assert len(set(indices)) == 6  # one row of class 0 belongs to no client
    with pytest.raises(ValueError, match="class 1 has 1 rows too few"):
        deal_classes(codes, counts + np.array([[0, 1], [0, 0], [0, 0]]), 3)


def test_apportioned_by_hand():
    """10 in proportions 1 : 1 : 4.5 is 1.54, 1.54, 6.92. The largest remainders get two more: .92 and the first .54."""
    assert_array_equal(apportion(np.array([1, 1, 4.5]), 10), [2, 1, 7])


# -- inner dirichlet --------------------------------------------------------------------------------------------------
@given(
    labels=st.lists(st.integers(-3, 4), min_size=1, max_size=120).map(np.array),
    alpha=st.sampled_from([1e-4, 0.1, 1.0, 1e4]),
    seed=st.integers(0, 2**63),
    data=st.data(),
)
def test_inner_dirichlet_has_every_feasible_size(labels, alpha, seed, data):
    sizes, left = [], len(labels)
    while left and len(sizes) < 12:
        sizes.append(data.draw(st.integers(0, left)))
        left -= sizes[-1]
    indices, offsets = inner_dirichlet(labels, sizes, alpha, seed)
    Partition(indices, offsets).check(len(labels))
    assert np.diff(offsets).tolist() == sizes


def test_served_by_hand():
    """Three clients need 4 rows each. Two want class 0 only, which has 6 rows; so they get 2 rows of class 1."""
    logs = np.log(np.array([[1.0, 1e-300], [1.0, 1e-300], [1e-300, 1.0]]))
    counts = served(np.random.default_rng(0), np.array([4, 4, 4]), np.array([6, 6]), logs)
    assert_array_equal(counts.sum(0), [6, 6])
    assert_array_equal(counts.sum(1), 4)
    assert_array_equal(counts[2], [0, 4])
    assert sorted(counts[:2, 0]) == [2, 4]


def test_mixtures_have_the_moments_of_a_dirichlet():
    """Dir(a_1..a_K), A = sum a: mean a_k / A, variance a_k (A - a_k) / (A^2 (A + 1))."""
    a = np.array([0.2, 0.5, 3.0])
    logs = log_mixtures(np.random.default_rng(0), 40000, a)
    shares = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    np.testing.assert_allclose(shares.mean(0), a / a.sum(), atol=0.01)
    np.testing.assert_allclose(shares.var(0), a * (a.sum() - a) / (a.sum() ** 2 * (a.sum() + 1)), rtol=0.05)


def test_few_clients_have_the_mixtures_they_drew():
    """With enough rows every client gets its mixture: E sum_k q_k^2 = (alpha + 1) / (K alpha + 1) for equal classes."""
    labels = np.repeat(np.arange(10), 5000)
    shares = counts_of(labels, *inner_dirichlet(labels, [50] * 200, 0.3)) / 50
    drawn = (0.3 + 1) / (10 * 0.3 + 1)
    expected = drawn + (1 - drawn) / 50  # two draws from 50 rows are the same row with probability 1/50
    assert (shares**2).sum(1).mean() == pytest.approx(expected, rel=0.1)


def test_a_balanced_dirichlet_has_equal_sizes():
    indices, offsets = dirichlet(LABELS, 7, 0.1, balanced=True)
    assert sorted(indices) == list(range(3000))
    assert set(np.diff(offsets)) == {428, 429}


# -- pathological -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["random", "deterministic", "first-deterministic"])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_pathological_clients_have_exactly_k_classes(mode, k):
    counts = counts_of(LABELS, *pathological(LABELS, 23, k, mode, seed=4))
    assert ((counts > 0).sum(1) == k).all()
    for column, total in zip(counts.T, np.bincount(LABELS)):
        shares = column[column > 0]
        assert not len(shares) or (shares.sum() == total and shares.max() - shares.min() <= 1)


def test_pathological_modes_by_hand():
    assert_array_equal(class_holders(4, 3, 2, "deterministic"), [[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    first = class_holders(12, 5, 2, "first-deterministic")
    assert first[np.arange(12), np.arange(12) % 5].all() and (first.sum(1) == 2).all()


def test_random_classes_are_drawn_evenly():
    """A fraction k / K of 5,000 clients has a given class, within 4 standard deviations."""
    held = class_holders(5000, 10, 3)
    assert np.abs(held.mean(0) - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / 5000)


def test_equal_shares_by_hand():
    assert_array_equal(
        equal_shares(np.array([[1, 0], [1, 0], [1, 0]], bool), np.array([8, 5])), [[3, 0], [3, 0], [2, 0]]
    )


# -- extended dirichlet -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("clients, k", [(4, 3), (5, 2), (40, 1), (40, 4), (3, 10)])
def test_extended_dirichlet_covers_with_k_classes_each(clients, k):
    indices, offsets = extended_dirichlet(LABELS, clients, k, 0.2, min_size=12)
    assert sorted(indices) == list(range(3000))
    assert ((counts_of(LABELS, indices, offsets) > 0).sum(1) == k).all()
    assert np.diff(offsets).min() >= 12


def test_extended_dirichlet_of_large_alpha_shares_equally():
    counts = counts_of(LABELS, *extended_dirichlet(LABELS, 30, 2, 1e9))
    for column in counts.T:
        shares = column[column > 0]
        assert shares.max() - shares.min() <= 2


@pytest.mark.slow
def test_extended_dirichlet_shares_have_a_dirichlets_variance():
    """For K = k = 1 the share of each of N clients has the variance (N - 1) / (N^2 (N a + 1))."""
    labels, n, a = np.zeros(20000, np.int64), 4, 0.5
    shares = np.concatenate([np.diff(extended_dirichlet(labels, n, 1, a, 0, seed)[1]) / 20000 for seed in range(600)])
    assert shares.var() == pytest.approx((n - 1) / (n**2 * (n * a + 1)), rel=0.12)


# -- shards -----------------------------------------------------------------------------------------------------------
def test_shards_as_in_the_paper():
    """60,000 digits, 100 clients, two shards of 300 each: a client has 600 rows of at most 2 labels.

    This holds because 300 divides the 6,000 rows of a label.
    """
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 6000))
    indices, offsets = shards(labels, 100)
    counts = counts_of(labels, indices, offsets)
    assert sorted(indices) == list(range(60000)) and set(np.diff(offsets)) == {600}
    assert set(counts.ravel()) == {0, 300, 600}
    both = (counts == 600).any(1).mean()  # both shards have one label: the second is one of 19 among the other 199
    assert abs(both - 19 / 199) < 4 * np.sqrt(19 / 199 * 180 / 199 / 100)


def test_shards_that_do_not_come_out_even_differ_by_one_row_each():
    sizes = np.diff(shards(LABELS[:1009], 20, 3)[1])  # 60 shards of 16 or 17
    assert sizes.sum() == 1009 and sizes.min() >= 48 and sizes.max() <= 51


# -- quantity ---------------------------------------------------------------------------------------------------------
def test_power_law_by_hand():
    """Ranks 1, 2, 3, 4 have the shares 1, 1/2, 1/3, 1/4; their sum is 25/12."""
    sizes = sorted(np.diff(quantity(25000, 4, "power_law", 1.0)[1]), reverse=True)
    assert sizes == [12000, 6000, 4000, 3000]


def test_lognormal_sizes_have_the_spread_asked_for():
    sizes = np.diff(quantity(2_000_000, 2000, "lognormal", 0.7)[1])
    assert np.log(sizes).std() == pytest.approx(0.7, rel=4 / np.sqrt(2 * 2000))


@pytest.mark.parametrize("law", ["lognormal", "power_law"])
def test_quantity_covers_and_keeps_the_least_size(law):
    for skew in (0.0, 1.0, 5.0):
        indices, offsets = quantity(1000, 60, law, skew, min_size=4, seed=2)
        assert sorted(indices) == list(range(1000)) and np.diff(offsets).min() >= 4
        assert skew or np.ptp(np.diff(offsets)) <= 1


# -- all --------------------------------------------------------------------------------------------------------------
ALL = {
    "inner_dirichlet": lambda seed: inner_dirichlet(LABELS, [100] * 20, 0.5, seed),
    "balanced": lambda seed: dirichlet(LABELS, 20, 0.5, 1, seed, True),
    "extended_dirichlet": lambda seed: extended_dirichlet(LABELS, 20, 3, 0.5, 1, seed),
    "pathological": lambda seed: pathological(LABELS, 20, 2, seed=seed),
    "shards": lambda seed: shards(LABELS, 20, 2, seed),
    "lognormal": lambda seed: quantity(3000, 20, "lognormal", 1.0, 1, seed),
    "power_law": lambda seed: quantity(3000, 20, "power_law", 1.0, 1, seed),
    "pfllib": lambda seed: pfllib(LABELS, 5, 0.5, seed)[:2],
}


@pytest.mark.parametrize("name", ALL)
def test_decided_by_the_seed_and_disjoint(name):
    one, again, other = ALL[name](1), ALL[name](1), ALL[name](2)
    Partition(*one).check(3000)
    assert_array_equal(one[0], again[0])
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"pfllib"}))
def test_rows_of_a_client_lie_in_random_order(name):
    """Half of the row numbers exceed the next one, within 4 deviations (variance (n + 1) / 12, Knuth)."""
    indices, offsets = ALL[name](3)
    rising = sum(int((np.diff(part) > 0).sum()) for part in np.split(indices, offsets[1:-1]))
    pairs = len(indices) - 20
    assert abs(rising - pairs / 2) < 4 * np.sqrt((pairs + 40) / 12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: inner_dirichlet(LABELS, [2000, 1001], 1.0), "sizes: their sum 3001 is more than the 3000 rows"),
        (lambda: inner_dirichlet(LABELS, [3, -1], 1.0), "sizes: "),
        (lambda: inner_dirichlet(LABELS, [], 1.0), "sizes: "),
        (lambda: inner_dirichlet(LABELS, [3], float("nan")), r"alpha: nan is not in \(0, inf\)"),
        (lambda: dirichlet(LABELS, 5, 0.0, balanced=True), r"alpha: 0.0 is not in \(0, inf\)"),
        (lambda: extended_dirichlet(LABELS, 5, 11, 1.0), "classes: 11 is not in 1..10"),
        (lambda: extended_dirichlet(LABELS, 4, 2, 1.0), "classes: 2 for each of 4 clients .* at least 3"),
        (lambda: extended_dirichlet(LABELS, 5, 2, -1.0), r"alpha: -1.0 is not in \(0, inf\)"),
        (lambda: extended_dirichlet(LABELS, 50, 2, 1.0, 100), "min_size: 50 rows of class"),
        (lambda: pathological(LABELS, 0, 2), "clients: 0 is not in 1..3000"),
        (lambda: pathological(LABELS, 5, 0), "num_classes_per_partition: 0 is not in 1..10"),
        (lambda: pathological(LABELS, 5, 2, "first"), "class_assignment_mode: 'first' is not one of"),
        (lambda: pathological(np.arange(10), 8, 2), "clients: .* hold class"),
        (lambda: shards(LABELS, 0), "clients: 0 is not positive"),
        (lambda: shards(LABELS, 5, 0), "num_shards_per_partition: 0 is not positive"),
        (lambda: shards(LABELS, 2000), "clients: 2000 with 2 shards each need more than the 3000 rows"),
        (lambda: quantity(10, 11), "clients: 11 is not in 1..10"),
        (lambda: quantity(10, 2, "pareto"), "law: 'pareto' is not one of"),
        (lambda: quantity(10, 2, skew=-1.0), "skew: -1.0"),
        (lambda: quantity(10, 2, min_size=6), "min_size: 6 for each of 2 clients is 12 of 10 rows; at most 5"),
        (lambda: pfllib(LABELS, 20, 0.0), r"alpha: 0.0 is not in \(0, inf\)"),
        (lambda: pfllib(LABELS, 1000), "clients: 1000 is not in 1..750"),
        (lambda: pfllib(LABELS, 300, 0.01, tries=3), "alpha: 0.01 left one of 300 clients with fewer than 5 rows in 3"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- pfllib -----------------------------------------------------------------------------------------------------------
def test_pfllib_makes_the_published_partition():
    """Compare client and split (train or test) of each of the 70,000 rows."""
    folder = data_folder() / "mnist"
    if not (folder / "pfllib_dir0.1_20clients.npz").is_file():
        pytest.skip("FL_DATA names no folder with mnist")
    with np.load(folder / "mnist.npz") as mnist:
        labels = np.concatenate([mnist["y_train"], mnist["y_test"]])
    indices, offsets, tests = pfllib(labels)
    client, is_test = np.empty(70000, np.int64), np.zeros(70000, bool)
    for c in range(20):
        rows = indices[offsets[c] : offsets[c + 1]]
        client[rows] = c
        is_test[rows[len(rows) - tests[c] :]] = True
    with np.load(folder / "pfllib_dir0.1_20clients.npz") as published:
        assert_array_equal(client, published["client"])
        assert_array_equal(is_test, published["is_test"])


# -- compared with flwr-datasets --------------------------------------------------------------------------------------
def test_pathological_agrees_with_flwr_datasets():
    """In deterministic modes only the choice of rows is random, so the counts per class and client are equal."""
    theirs = pytest.importorskip("flwr_datasets.partitioner").PathologicalPartitioner
    from fl.data.dataset import Dataset
    from partitions.flwr_datasets import from_flwr

    data = Dataset({"x": np.zeros((3000, 1)), "y": LABELS})
    for k in (1, 3):
        arguments = {"num_partitions": 23, "num_classes_per_partition": k, "class_assignment_mode": "deterministic"}
        their = from_flwr(theirs(partition_by="y", **arguments), data)
        ours = pathological(LABELS, 23, k, "deterministic")
        assert_array_equal(counts_of(LABELS, *ours), counts_of(LABELS, their.indices, their.offsets))
