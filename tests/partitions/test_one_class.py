"""One class per client, tests on all classes, and their labels own or other."""

import numpy as np
import pytest

from fl.data.dataset import Dataset
from fl.data.partition import Partition
from partitions.one_class import OneClass
from partitions.own_or_other import OwnOrOther, own_classes

DRAW = np.random.default_rng(0)
LABELS = DRAW.permutation(np.repeat([2, 5, 9], [60, 50, 41]))
DATA = Dataset({"x": np.arange(151.0)[:, None], "y": LABELS})


def tables(partition: Partition) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of training and test rows of the classes 2, 5 and 9 at each client, (N, 3) each."""
    return tuple(
        np.array([[np.sum(LABELS[partition.view_rows(k, view)] == c) for c in (2, 5, 9)] for k in range(clients)])
        for clients in [partition.num_clients]
        for view in ("train", "test")
    )


@pytest.mark.parametrize("clients", [1, 2, 3, 7])
def test_client_c_trains_on_class_c_mod_k_and_is_tested_on_all_classes(clients):
    partition = OneClass(clients=clients, test=0.3).split(DATA)
    partition.check(151)
    train, test = tables(partition)
    assert test.sum(0).tolist() == [18, 15, 12]  # floor(.3 n)
    assert (test.max(0) - test.min(0) <= 1).all() and test.sum(1).max() - test.sum(1).min() <= 1
    for k in range(clients):
        assert np.flatnonzero(train[k]).tolist() == [k % 3]
    for c, left in enumerate([42, 35, 29][:clients]):
        shares = train[c::3, c]
        assert shares.sum() == left and shares.max() - shares.min() <= 1


def test_rows_bounds_the_training_rows_only():
    whole, few = OneClass(clients=3).split(DATA), OneClass(clients=3, rows=5).split(DATA)
    assert tables(few)[0].sum(1).tolist() == [5, 5, 5]
    assert np.array_equal(tables(few)[1], tables(whole)[1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"clients": 0}, "clients: 0 is not in 1..151"),
        ({"clients": 150}, "leave client 101 no training row, because class 9 has 33 beside its test rows"),
        ({"clients": 3, "test": 1.0}, "test: 1.0"),
        ({"clients": 3, "rows": 0}, "rows: 0"),
    ],
)
def test_impossible_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OneClass(**arguments).split(DATA)


@pytest.mark.parametrize("clients", [3, 7])
def test_labels_of_test_rows_say_own_or_other(clients):
    partition = OneClass(clients=clients, test=0.3).split(DATA)
    y = OwnOrOther().apply(DATA, partition).train["y"]
    for k in range(clients):
        own, test = (2, 5, 9)[k % 3], partition.view_rows(k, "test")
        assert np.array_equal(y[test], (LABELS[test] == own).astype(int))
    rest = np.setdiff1d(np.arange(151), partition.rows_of("test"))
    assert np.array_equal(y[rest], LABELS[rest])


def test_the_own_class_is_the_most_frequent_one_of_training_rows():
    labels = np.array([3, 3, 1, 1, 1, 3, 1, 3])
    # client 0 trains on 3, 3, 1 and is tested on 1, 1; client 1 has a tie; client 2 has a test row only
    partition = Partition(np.arange(8), np.array([0, 5, 7, 8]), test=np.array([2, 0, 1]))
    assert own_classes(labels, partition).tolist() == [3, 1, 1]
