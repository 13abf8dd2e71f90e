"""Interactions: held rows by time, and null data that keep sizes and, where they say so, popularity."""

import numpy as np
import pytest

from fl.data.folder import data_folder
from fl.data.interactions import held_by_time, permuted_items, uniform_items
from fl.data.sets.interactions import Interactions
from fl.data.sets.movielens import MovieLens
from partitions.natural import Natural

FILE = data_folder() / "movielens_latest_small" / "ml_latest_small.npz"
needs_file = pytest.mark.skipif(not FILE.is_file(), reason="no MovieLens file")
SUBSET = {"users": 150, "min_user": 30, "max_user": 200, "min_item": 3}


def by_user(dataset):
    """Return the items of each user in the order of time."""
    users = dataset.train["user"]
    return [dataset.train["x"][users == user] for user in np.unique(users)]


def test_the_last_row_is_for_tests_and_the_one_before_for_validation():
    assert held_by_time(np.repeat([0, 1, 2, 3], [4, 3, 2, 1])).tolist() == [0, 0, 1, 2, 0, 1, 2, 0, 2, 0]


def test_uniform_items_are_different_and_equally_likely():
    users = np.repeat(np.arange(2000), 3)
    x = uniform_items(users, 10, 0).reshape(-1, 3)
    assert all(len(set(row)) == 3 for row in x.tolist())
    assert abs(np.bincount(x.ravel(), minlength=10) - 600).max() < 5 * np.sqrt(2000 * 0.3 * 0.7)


def test_permuted_items_keep_popularity_and_are_different_for_a_user():
    data = Interactions(users=50, items=40, per_user=15, popular=2.0)
    real, null = data.load(), Interactions(users=50, items=40, per_user=15, popular=2.0, shuffle="permuted").load()
    np.testing.assert_array_equal(np.bincount(real.train["x"]), np.bincount(null.train["x"]))
    assert all(len(set(row.tolist())) == 15 for row in by_user(null))
    assert any(set(a.tolist()) != set(b.tolist()) for a, b in zip(by_user(real), by_user(null)))
    with pytest.raises(ValueError, match="use 'uniform'"):  # one user, one item
        permuted_items(np.array([0, 0]), np.array([1, 1]), 0)


def test_a_strong_taste_shows_in_the_choices():
    alike = Interactions(users=300, items=30, per_user=5, popular=3.0, sharp=0.0).load().train["x"]
    share = np.sort(np.bincount(alike, minlength=30))[::-1] / 300
    assert share[0] > 0.8 and share[-1] < 0.1
    with pytest.raises(ValueError, match="per_user: 30"):
        Interactions(items=30, per_user=30)


@needs_file
def test_movielens_has_the_counts_of_its_readme_and_of_the_subset():
    full = MovieLens().load()
    assert len(full) == 100_836 and len(by_user(full)) == 610 and full.train["x"].max() == 9723
    some = MovieLens(**SUBSET).load()
    assert (len(by_user(some)), some.train["x"].max() + 1, len(some)) == (150, 1089, 9796)
    assert np.bincount(some.train["x"]).min() == 3


@needs_file
def test_movielens_is_ordered_by_time():
    with np.load(FILE) as stored:
        mine = stored["user"] == 0
        times, items = stored["timestamp"][mine], stored["item"][mine]
    dataset = MovieLens(users=1).load()
    assert len(dataset) == len(items)
    first = items[times == times.min()]
    rows = np.unique(items, return_inverse=True)[1]  # numbers of the loader
    assert set(dataset.train["x"][: len(first)]) == set(rows[times == times.min()])
    assert dataset.train["x"][-1] in rows[times == times.max()]
    partition = Natural().split(dataset)
    assert partition.view_rows(0, "test").tolist() == [len(items) - 1]
    assert partition.view_rows(0, "val").tolist() == [len(items) - 2]


@needs_file
@pytest.mark.parametrize("shuffle", ["uniform", "permuted"])
def test_null_data_of_movielens(shuffle):
    real, null = MovieLens(**SUBSET).load(), MovieLens(**SUBSET, shuffle=shuffle).load()
    np.testing.assert_array_equal(real.train["user"], null.train["user"])
    assert all(len(set(row.tolist())) == len(row) for row in by_user(null))
    counts = [np.bincount(d.train["x"], minlength=1089) for d in (real, null)]
    assert (counts[0] == counts[1]).all() == (shuffle == "permuted")


@needs_file
def test_filters_that_leave_no_user_are_refused():
    with pytest.raises(ValueError, match="leave no user"):
        MovieLens(min_user=3000).load()
