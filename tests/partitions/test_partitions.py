"""Laws of partitioners: parts are disjoint, cover all rows, and have the requested sizes and skew; seeds decide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fl
from fl.config.config import resolve
from fl.data.dataset import Dataset
from fl.data.partition import Partition
from fl.registry import lookup, names
from fl.simulation.build import load_data
from partitions.dirichlet import dirichlet, proportions
from partitions.iid import iid
from partitions.min_size import repaired
from partitions.natural import natural

LABELS = np.random.default_rng(0).integers(0, 10, 3000)


def sizes_of(offsets) -> np.ndarray:
    return np.diff(offsets)


def skew(labels, indices, offsets) -> float:
    """Return the mean total-variation distance between each client's label distribution and the global one."""
    classes = labels.max() + 1
    overall = np.bincount(labels, minlength=classes) / len(labels)
    parts = [np.bincount(labels[p], minlength=classes) / len(p) for p in np.split(indices, offsets[1:-1])]
    return float(np.mean([0.5 * np.abs(p - overall).sum() for p in parts]))


@pytest.mark.parametrize(
    "name, options", [("iid", {"clients": 7}), ("dirichlet", {"clients": 7, "alpha": 0.3}), ("natural", {})]
)
def test_registered_partitions_are_disjoint_and_cover(name, options):
    assert name in names("partition")
    data = Dataset({"x": np.zeros((3000, 1)), "y": LABELS}, clients=LABELS * 5 - 9)
    partition = lookup("partition", name)(**options).split(data)
    partition.check(3000)
    assert partition.covers(3000) and len(partition.empty_clients) == 0
    assert partition.indices.dtype == partition.offsets.dtype == np.int64


# -- iid --------------------------------------------------------------------------------------------------------------
@given(st.integers(1, 200), st.data())
def test_iid_shares_are_equal(rows, data):
    clients = data.draw(st.integers(1, rows))
    indices, offsets = iid(rows, clients, seed=data.draw(st.integers(0, 5)))
    assert sorted(indices) == list(range(rows))
    assert set(sizes_of(offsets)) <= {rows // clients, -(-rows // clients)} and offsets[-1] == rows


def test_iid_is_decided_by_the_seed():
    assert_array_equal(iid(100, 3, 1)[0], iid(100, 3, 1)[0])
    assert not np.array_equal(iid(100, 3, 1)[0], iid(100, 3, 2)[0])


def test_iid_has_no_label_skew():
    """In n random rows the proportion of a class deviates by about sqrt(p (1-p) / n)."""
    expected = 0.5 * 10 * np.sqrt(2 / np.pi) * np.sqrt(0.1 * 0.9 / 300)
    assert skew(LABELS, *iid(3000, 10)) == pytest.approx(expected, rel=0.3)


# -- natural ----------------------------------------------------------------------------------------------------------
def test_natural_by_hand():
    indices, offsets = natural(np.array([9, -4, 9, 7, -4]))
    assert_array_equal(indices, [1, 4, 3, 0, 2])
    assert_array_equal(offsets, [0, 2, 3, 5])
    indices, offsets = natural(np.array([9, -4, 9, 7, -4]), clients=2)
    assert_array_equal(indices, [1, 4, 3])
    assert_array_equal(offsets, [0, 2, 3])


# -- dirichlet --------------------------------------------------------------------------------------------------------
@given(
    labels=st.lists(st.integers(-3, 4), min_size=1, max_size=120).map(np.array),
    alpha=st.sampled_from([1e-4, 0.1, 1.0, 1e4]),
    seed=st.integers(0, 2**63),
    data=st.data(),
)
def test_dirichlet_meets_every_feasible_minimum(labels, alpha, seed, data):
    clients = data.draw(st.integers(1, len(labels)))
    min_size = data.draw(st.integers(0, len(labels) // clients))
    indices, offsets = dirichlet(labels, clients, alpha, min_size, seed)
    Partition(indices, offsets).check(len(labels))
    assert sorted(indices) == list(range(len(labels))) and len(offsets) == clients + 1
    assert sizes_of(offsets).min() >= min_size


def test_smaller_alpha_means_more_skew():
    skews = [skew(LABELS, *dirichlet(LABELS, 10, alpha, min_size=1)) for alpha in (0.05, 0.3, 3.0, 100.0)]
    assert skews == sorted(skews, reverse=True) and skews[0] > 0.6 and skews[-1] < 0.1


def test_dirichlet_is_decided_by_the_seed():
    assert_array_equal(dirichlet(LABELS, 20, 0.5, 1, 3)[0], dirichlet(LABELS, 20, 0.5, 1, 3)[0])
    assert not np.array_equal(dirichlet(LABELS, 20, 0.5, 1, 3)[0], dirichlet(LABELS, 20, 0.5, 1, 4)[0])


def test_proportions_have_the_moments_of_a_dirichlet():
    """Dir(a) over N clients has mean 1/N and variance (N-1) / (N^2 (N a + 1))."""
    generator = np.random.default_rng(0)
    for alpha in (0.05, 0.5, 5.0):
        shares = np.array([proportions(generator, 4, alpha) for _ in range(4000)])
        np.testing.assert_allclose(shares.sum(1), 1)
        np.testing.assert_allclose(shares.mean(0), 1 / 4, atol=0.03)
        np.testing.assert_allclose(shares.var(0), 3 / (16 * (4 * alpha + 1)), rtol=0.1)


def test_proportions_do_not_underflow():
    shares = proportions(np.random.default_rng(0), 100, 1e-4)
    assert shares.max() == pytest.approx(1) and np.isfinite(shares).all()


def test_repair_by_hand():
    """Sizes 9, 0, 7, 2, 1 with a minimum of 2: three rows are missing.

    Cutting the largest down to 7 frees two rows of client 0. Cutting down to 6 would free four rows of clients 0 and 2,
    one too many, so client 0 keeps 7.
    """
    offsets = np.array([0, 9, 9, 16, 18, 19])
    order, after = repaired(np.arange(19), offsets, min_size=2)
    assert_array_equal(sizes_of(after), [7, 2, 6, 2, 2])
    parts = [p.tolist() for p in np.split(order, after[1:-1])]
    assert parts == [[0, 1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13, 14], [16, 17], [15, 18]]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=15), st.data())
def test_repair_takes_from_the_largest_only(sizes, data):
    min_size = data.draw(st.integers(0, sum(sizes) // len(sizes)))
    order, offsets = repaired(np.arange(sum(sizes)), np.concatenate([[0], np.cumsum(sizes)]), min_size)
    before, after = np.array(sizes), sizes_of(offsets)
    assert sorted(order) == list(range(sum(sizes)))
    assert_array_equal(after[before < min_size], min_size)
    givers = after < before
    if givers.any():
        level = after[givers].min()
        assert after[givers].max() <= level + 1 and (before[~givers] <= level + 1).all()


def test_a_minimum_already_met_changes_nothing():
    assert_array_equal(dirichlet(LABELS, 5, 10.0, 0)[0], dirichlet(LABELS, 5, 10.0, 2)[0])


def test_the_last_rows_of_a_client_are_like_its_others():
    """Repair gives the last rows of a client away, which must not be all of one class.

    The count of a class in n random rows has the deviation sqrt(n p q).
    """
    labels = np.repeat([0, 1], 1500)
    indices, offsets = dirichlet(labels, 3, alpha=5.0)
    for rows in np.split(indices, offsets[1:-1]):
        share, tail = labels[rows].mean(), labels[rows[-len(rows) // 3 :]]
        assert abs(tail.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(tail))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: iid(10, 0), "clients: 0 is not positive"),
        (lambda: iid(10, 11), "clients: 11 is more than the 10 rows"),
        (lambda: dirichlet(LABELS, 5, -1), r"alpha: -1 is not in \(0, inf\)"),
        (lambda: dirichlet(LABELS, 5, 0.0), r"alpha: 0.0 is not in \(0, inf\)"),
        (
            lambda: dirichlet(LABELS, 5, float("inf")),
            r"alpha: inf is not in \(0, inf\); 'iid' gives equal shares",
        ),
        (lambda: dirichlet(LABELS, 0, 1.0), "clients: 0 is not positive"),
        (lambda: dirichlet(LABELS, 5, 1.0, -1), "min_size: -1 is negative"),
        (
            lambda: dirichlet(LABELS, 100, 1.0, 31),
            "min_size: 31 for each of 100 clients is 3100 of 3000 rows; at most 30",
        ),
        (lambda: dirichlet(LABELS.astype(float), 5, 1.0), "labels: float64"),
        (lambda: natural(LABELS, 0), "clients: 0 is not positive"),
        (lambda: natural(LABELS, 11), "clients: 11 is more than the 10 of the data set"),
        (lambda: lookup("partition", "natural")().split(Dataset({"x": np.zeros(3)})), "use 'iid' or 'dirichlet'"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- rows that the data keep for validation and tests -----------------------------------------------------------------
HELD = {
    "x": np.arange(14.0).reshape(7, 2), "y": np.array([0, 1, 0, 1, 0, 1, 0]),
    "clients": np.array([9, 9, 9, 9, 4, 4, 4]), "held": np.array([0, 0, 1, 2, 2, 0, 1]),
}  # fmt: skip


def test_data_may_keep_rows_for_validation_and_tests():
    """The last row in time is the test row, and the one before it the validation row."""
    config = {"data": {"train": {n: HELD[n] for n in "xy"}, "clients": HELD["clients"], "held": HELD["held"]},
              "model": "softmax", "strategy": "fedavg", "cohort": {"size": 1}, "partition": "natural"}  # fmt: skip
    with pytest.raises(fl.ConfigError, match=r"splits.val: 0.1 and test: 0.0 with data that say .*; set both to 0"):
        load_data(resolve(config))
    _, (period,) = load_data(resolve(config | {"splits": {"val": 0}}))
    views = [[period.partition.view_rows(c, view).tolist() for view in ("train", "val", "test")] for c in (0, 1)]
    assert views == [[[5], [6], [4]], [[0, 1], [2], [3]]]
    _, (others,) = load_data(resolve(config | {"partition": {"name": "iid", "clients": 3}, "splits": {"val": 0}}))
    assert sorted(others.partition.indices.tolist()) == [0, 1, 5]  # partitions without owners leave held rows out


@pytest.mark.parametrize("held", [[0, 1, 3, 0, 0, 0, 0], [0, 1], [0.5] * 7])
def test_other_marks_of_held_rows_are_refused(held):
    with pytest.raises(ValueError, match="held: .* is not one bool for each of 7 rows, nor one of 0"):
        Dataset({"x": HELD["x"]}, held=np.array(held))
