"""Data sets, their loaders, and the arithmetic of partitions."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fl.data.dataset import Dataset
from fl.data.grouping import group_by, hash_order
from fl.data.partition import Partition
from fl.data.sets.digits import Digits
from fl.data.sets.noise import LogNormal, RandomData
from fl.data.sets.synthetic import Synthetic
from fl.registry import lookup, names


# -- data sets --------------------------------------------------------------------------------------------------------
def test_arrays_become_contiguous_float32_and_int64():
    x = np.arange(12.0).reshape(3, 4)[:, ::2]
    data = Dataset({"x": x, "y": np.array([1, 0, 1], np.int8)}, clients=np.array([7, 7, -2], np.int32))
    assert data.train["x"].dtype == np.float32 and data.train["x"].flags.c_contiguous
    assert data.labels.dtype == np.int64 and len(data) == 3
    assert_array_equal(data.train["x"], [[0, 2], [4, 6], [8, 10]])


def test_token_inputs_and_real_targets_keep_their_kind():
    data = Dataset({"x": np.zeros((2, 5), np.int64), "y": np.array([0.5, 1.5])})
    assert data.train["x"].dtype == np.int64 and data.train["y"].dtype == np.float32


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train": {"y": np.zeros(2)}}, "train: there is no 'x'"),
        ({"train": {"x": np.zeros(3), "y": np.zeros(2)}}, "train: arrays differ in length"),
        ({"train": {"x": np.zeros((3, 2))}, "test": {"x": np.zeros((3, 4))}}, "does not match train"),
        ({"train": {"x": np.zeros(3)}, "clients": np.zeros(2, int)}, "clients: int64 \\(2,\\) is not one integer"),
        ({"train": {"x": np.zeros(3)}, "clients": np.zeros(3)}, "clients: float64"),
    ],
)
def test_datasets_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Dataset(**arguments)


def test_labels_of_unlabelled_data():
    with pytest.raises(ValueError, match="no labels"):
        _ = Dataset({"x": np.zeros(3)}).labels


def test_digest_by_hand_and_what_it_depends_on():
    x, y = np.array([1.5, 2.0], np.float32), np.array([0, 1])
    expected = hashlib.sha256(
        b"train x float32 (2,)\n" + x.tobytes() + b"train y int64 (2,)\n" + y.tobytes()
    ).hexdigest()
    assert Dataset({"y": y, "x": x}).digest() == expected
    others = [
        Dataset({"x": x, "y": y[::-1]}),
        Dataset({"x": x, "y": y}, test={"x": x, "y": y}),
        Dataset({"x": x, "y": y}, clients=y),
        Dataset({"x": x[:, None], "y": y}),
    ]
    assert len({expected, *(d.digest() for d in others)}) == 5


# -- loaders ----------------------------------------------------------------------------------------------------------
def test_loaders_are_registered():
    assert {"digits", "synthetic", "noise"} <= set(names("data"))
    assert lookup("data", "digits") is Digits


@pytest.mark.parametrize("loader", [Digits, Synthetic, RandomData])
def test_the_seed_decides(loader):
    assert loader(seed=1).load().digest() == loader(seed=1).load().digest() != loader(seed=2).load().digest()


def test_digits_are_split_by_class_without_loss():
    from sklearn.datasets import load_digits

    raw, data = load_digits(), Digits(test=0.2).load()
    rows = np.concatenate([data.train["x"], data.test["x"]])
    assert data.train["x"].shape[1:] == (1, 8, 8) and len(rows) == 1797
    assert (rows.min(), rows.max()) == (0, 1)

    def ordered(images):
        return images[np.lexsort(images.T)]

    assert_array_equal(ordered(rows.reshape(-1, 64) * 16), ordered(raw.data))
    classes = np.bincount(raw.target)
    assert_array_equal(np.bincount(data.test["y"]), [round(0.2 * n) for n in classes])
    assert Digits(test=0.0).load().test is None


def test_synthetic_follows_its_definition():
    """A tenth of each client's rows are test rows; feature j has variance j^-1.2 around the client's mean."""
    data = Synthetic(clients=20, alpha=0.0, beta=0.0, test=0.0, seed=3).load()
    x, sizes = data.train["x"], np.bincount(data.clients)
    assert x.shape[1] == 60 and sizes.min() >= 50 and data.labels.max() <= 9
    mine = x[data.clients == sizes.argmax()].astype(np.float64)
    error = 5 * np.sqrt(2 / len(mine))  # five standard errors of the variance
    np.testing.assert_allclose(mine.var(0), np.arange(1, 61) ** -1.2, rtol=error)
    split = Synthetic(clients=20, alpha=0.0, beta=0.0, test=0.1, seed=3).load()
    assert_array_equal(np.bincount(split.clients), sizes - sizes // 10)
    assert_array_equal(split.train["x"][:45], x[:45])


def test_synthetic_beta_shifts_the_inputs_of_clients():
    def spread(beta):
        data = Synthetic(clients=50, beta=beta).load()
        return np.std([data.train["x"][data.clients == c].mean() for c in range(50)])

    # the grand mean of a client is B_k + N(0, 1/60): deviation sqrt(beta^2 + 1/60)
    assert spread(0.0) == pytest.approx(np.sqrt(1 / 60), rel=0.5)
    assert spread(3.0) == pytest.approx(np.sqrt(9 + 1 / 60), rel=0.5)


def test_noise_is_standard_normal_with_natural_ids():
    data = RandomData(shape=(2, 5), classes=3, clients=40, samples=50).load()
    x = data.train["x"]
    assert x.shape == (2000, 2, 5) and x.dtype == np.float32
    assert abs(x.mean()) < 5 / np.sqrt(x.size) and abs(x.var() - 1) < 5 * np.sqrt(2 / x.size)
    assert_array_equal(np.bincount(data.clients), np.full(40, 50))
    assert set(data.labels) == {0, 1, 2}
    # labels are the largest of linear scores, so a linear model must fit them
    from sklearn.linear_model import LogisticRegression

    assert (
        LogisticRegression(max_iter=1000).fit(x.reshape(2000, 10), data.labels).score(x.reshape(2000, 10), data.labels)
        > 0.95
    )


def test_noise_sizes_are_log_normal_within_bounds():
    sizes = np.bincount(RandomData(clients=4000, shape=(1,), samples=LogNormal(lognormal=0.5, mean=100)).load().clients)
    assert sizes.mean() == pytest.approx(100 - 0.5, rel=0.05)  # rounding down takes half a sample on average
    assert np.log(sizes).std() == pytest.approx(0.5, rel=0.05)
    sizes = np.bincount(
        RandomData(clients=500, shape=(1,), samples=LogNormal(lognormal=1, mean=20, low=10, high=30)).load().clients
    )
    assert (sizes.min(), sizes.max()) == (10, 30)


@pytest.mark.parametrize(
    "loader, message",
    [
        (Digits(test=1.0), "test: 1.0 is not in"),
        (Synthetic(clients=0), "clients: 0 is not positive"),
        (Synthetic(alpha=-1.0), "alpha: -1.0 is negative"),
        (RandomData(classes=0), "classes: 0 is not positive"),
        (RandomData(samples=0), "samples: 0 leaves nothing"),
        (RandomData(samples=LogNormal(lognormal=1, mean=0)), "mean: 0 is not positive"),
    ],
)
def test_loaders_refuse(loader, message):
    with pytest.raises(ValueError, match=message):
        loader.load()


# -- partitions -------------------------------------------------------------------------------------------------------
def by_hand() -> Partition:
    return Partition(
        np.array([4, 0, 5, 1, 3]), np.array([0, 3, 3, 5]), val=np.array([1, 0, 0]), test=np.array([1, 0, 1])
    )


def test_views_by_hand():
    partition = by_hand()
    views = {(c, v): partition.view_rows(c, v).tolist() for c in range(3) for v in ("train", "val", "test")}
    assert views == {
        **{(0, "train"): [4], (0, "val"): [0], (0, "test"): [5]},
        **{(1, "train"): [], (1, "val"): [], (1, "test"): []},
        **{(2, "train"): [1], (2, "val"): [], (2, "test"): [3]},
    }
    starts, sizes = partition.train_slices()
    assert_array_equal(starts, [0, 3, 3])
    assert_array_equal(sizes, [1, 0, 1])
    assert partition.num_clients == 3 and partition.empty_clients.tolist() == [1]
    partition.check(6)
    assert not partition.covers(6)  # row 2 belongs to no client
    with pytest.raises(ValueError, match="client: 3 is not one of 0..2"):
        partition.view_rows(3, "train")
    with pytest.raises(ValueError, match="view: 'dev' is not one of"):
        partition.view_rows(0, "dev")


@pytest.mark.parametrize(
    "indices, offsets, held_out, message",
    [
        ([0, 1, 1], [0, 1, 3], [0, 0], "row 1 is given 2 times"),
        ([0, 1, 4], [0, 1, 3], [0, 0], "exceed the 4 rows of the data set"),
        ([0, 1, -1], [0, 1, 3], [0, 0], "exceed"),
        ([0, 1, 2], [0, 2, 1, 3], [0, 0, 0], "offsets"),
        ([0, 1, 2], [0, 2], [0], "offsets"),
        ([0, 1, 2], [0, 1, 3], [0, 3], "client 1 holds out more than its 2 rows"),
        ([0, 1, 2], [0, 1, 3], [0], "1 and 1 counts for 2 clients"),
    ],
)
def test_what_is_no_partition_is_refused(indices, offsets, held_out, message):
    held_out = np.array(held_out)
    with pytest.raises(ValueError, match=message):
        Partition(np.array(indices), np.array(offsets), held_out, np.zeros_like(held_out)).check(4)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=20),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 2**64 - 1),
)
def test_hold_out_keeps_every_row_with_its_client(sizes, val, test, seed):
    val, test = val / 20, test / 20
    rows = sum(sizes)
    before = Partition(np.arange(rows)[::-1].copy(), np.concatenate([[0], np.cumsum(sizes)]))
    after = before.hold_out(val, test, seed)
    after.check(rows)
    assert after.covers(rows)
    for c, n in enumerate(sizes):
        views = [after.view_rows(c, v) for v in ("train", "val", "test")]
        assert sorted(np.concatenate(views)) == sorted(before.view_rows(c, "train"))
        assert len(views[0]) >= min(n, 1)
        assert (len(views[1]), len(views[2])) == (int(val * n), int(test * n))


def test_held_out_rows_do_not_depend_on_the_other_clients():
    many = Partition(np.arange(60), np.array([0, 20, 40, 60])).hold_out(0.2, 0.3, seed=5)
    alone = Partition(np.arange(20, 40), np.array([0, 20])).hold_out(0.2, 0.3, seed=5)
    for view in ("train", "val", "test"):
        assert_array_equal(many.view_rows(1, view), alone.view_rows(0, view))
    other = Partition(np.arange(60), np.array([0, 20, 40, 60])).hold_out(0.2, 0.3, seed=6)
    assert not np.array_equal(many.indices, other.indices)


@pytest.mark.parametrize("val, test", [(0.5, 0.5), (-0.1, 0.0), (0.0, 1.0), (float("nan"), 0.0)])
def test_hold_out_refuses(val, test):
    with pytest.raises(ValueError, match="not fractions"):
        by_hand().hold_out(val, test, seed=0)


def test_grouped_and_by_hash_are_stable_sorts():
    order, offsets = group_by(np.array([2, 0, 2, 0, 3]), 5)
    assert_array_equal(order, [1, 3, 0, 2, 4])
    assert_array_equal(offsets, [0, 2, 2, 4, 5, 5])
    assert_array_equal(hash_order(np.array([3 << 60, 1 << 60, 3 << 60, 0], np.uint64)), [3, 1, 0, 2])
    assert len(hash_order(np.empty(0, np.uint64))) == 0
