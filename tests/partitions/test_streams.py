"""Streams of classes and domains, and MNIST: rows per client, test rows, labels and outputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fl
from fl.data.dataset import Dataset
from fl.data.folder import data_folder, find
from fl.data.partition import Partition
from fl.data.sets.mnist import MNIST
from fl.tasks.supervised import Classification
from partitions.classes import Classes, Slice, restricted
from partitions.domains import Domains
from partitions.iid import Iid

rng = np.random.default_rng(0)
Y, TEST_Y = np.arange(120) % 6, np.arange(60) % 6
DATA = Dataset(
    {"x": rng.normal(size=(120, 3)), "y": Y, "place": np.arange(120) // 40 * 7},
    {"x": rng.normal(size=(60, 3)), "y": TEST_Y, "place": np.arange(60) // 20 * 7},
)


def periods(stream, partition=None):
    split = (partition or Iid(clients=4)).split
    return stream.periods(DATA, split, Classification())


def rows(period):
    return np.sort(period.partition.indices)


@pytest.mark.parametrize("stream", [Classes(tasks=3), Classes(tasks=2, order="seeded"), Domains(tasks=3, by="place")])
def test_every_row_is_in_one_stage_and_one_test(stream):
    _, parts = periods(stream)
    assert np.array_equal(np.sort(np.concatenate([rows(s) for s in parts])), np.arange(120))
    assert np.array_equal(np.sort(np.concatenate([s.test for s in parts])), np.arange(60))
    assert [s.rounds for s in parts] == [10] * stream.tasks
    for period in parts:
        period.partition.check(120)


def test_stages_have_their_classes():
    for head in ("per_task", "shared", "joint"):
        _, parts = periods(Classes(tasks=3, head=head))
        assert (
            [sorted({*Y[rows(s)]}) for s in parts]
            == [sorted({*TEST_Y[s.test]}) for s in parts]
            == [[0, 1], [2, 3], [4, 5]]
        )


def test_labels_and_scenarios():
    asked = {"per_task": ("task", Y), "shared": ("domain", Y % 2), "joint": ("class", Y)}
    for head, (scenario, expected) in asked.items():
        stream = Classes(tasks=3, head=head)
        data, parts = periods(stream)
        assert stream.scenario == scenario and np.array_equal(data.train["y"], expected)
        assert np.array_equal(data.test["y"], expected[:60])
        assert isinstance(parts[1].task, Slice) == (head == "per_task")
    assert Domains(tasks=3, by="place").scenario == "domain"


def test_a_seeded_order_numbers_the_labels_anew():
    seen = set()
    for seed in range(5):
        data, parts = periods(Classes(tasks=3, head="joint", order="seeded", seed=seed))
        for t, period in enumerate(parts):
            assert {*data.train["y"][rows(period)]} == {*data.test["y"][period.test]} == {2 * t, 2 * t + 1}
        assert len({*zip(Y, data.train["y"])}) == 6  # the new labels are a permutation of the old ones
        seen.add(tuple(data.train["y"][:6]))
    assert len(seen) > 1


def test_a_slice_asks_of_its_own_outputs():
    task = Slice(Classification(), 2, 4)
    outputs, y = torch.tensor([[9.0, 9, 1, 3, 9], [9, 9, 5, 4, 9]]), torch.tensor([3, 3])
    expected = F.cross_entropy(outputs[:, 2:4], torch.tensor([1, 1]), reduction="none")
    assert torch.equal(task.loss(outputs, {"y": y}), expected)
    found = {}
    for name, metric in task.metrics().items():
        assert metric.batched
        acc = metric.measure(outputs, {"y": y}, torch.zeros(2, dtype=torch.int64), 1)
        found[name] = metric.each(acc, 1)[0]
    assert found["accuracy"] == 0.5 and found["loss"] == pytest.approx(float(expected.mean()))
    assert task.num_outputs({"y": np.arange(6)}) == 6 and task.kernel is None


def test_restriction_by_hand():
    partition = Partition(np.array([5, 0, 3, 1, 4]), np.array([0, 2, 2, 5]))
    kept = restricted(partition, np.array([1, 0, 0, 1, 1, 0], bool))
    assert kept.indices.tolist() == [0, 3, 4] and kept.offsets.tolist() == [0, 1, 1, 3]


def test_a_client_may_miss_a_period_but_not_all(tmp_path):
    """Each client has a single class. In a period only the clients of its classes have rows, and the run works."""

    class ByLabel:
        def split(self, dataset):
            order = np.argsort(dataset.labels, kind="stable")
            return Partition(order, np.concatenate([[0], np.cumsum(np.bincount(dataset.labels))]))

    _, parts = periods(Classes(tasks=3), ByLabel())
    assert [np.flatnonzero(np.diff(s.partition.offsets)).tolist() for s in parts] == [[0, 1], [2, 3], [4, 5]]
    config = {
        "data": DATA,
        "partition": ByLabel(),
        "stream": {"name": "classes", "tasks": 3, "rounds": 1, "head": "per_task"},
        "splits": {"val": 0},
        "model": {"name": "mlp", "hidden": [4]},
        "cohort": {"size": 3},
        "strategy": {"name": "fot", "head": ["3.weight"]},
        "execution": {"executor": "serial"},
    }
    result = fl.run(config, out=tmp_path)
    assert {f"task{t}/accuracy" for t in range(3)} < set(result.metrics[-1]) and "stream/fgt" in result.metrics[-1]


def test_domains_drop_the_array_that_says_which():
    data, parts = periods(Domains(tasks=3, by="place"))
    assert set(data.train) == set(data.test) == {"x", "y"}
    assert [s.name for s in parts] == ["place=0", "place=7", "place=14"]
    assert np.array_equal(rows(parts[1]), np.arange(40, 80)) and np.array_equal(parts[2].test, np.arange(40, 60))


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: periods(Classes(tasks=4)), "tasks: 4 does not divide the 6 classes"),
        (lambda: Classes(tasks=2, head="own"), "head: 'own' is not one of"),
        (lambda: Classes(tasks=2, order="random"), "order: 'random' is not one of"),
        (
            lambda: periods(Domains(tasks=2, by="place")),
            r"tasks: 2 is not 3, the number of values of 'place': \[0, 7, 14\]",
        ),
        (lambda: periods(Domains(tasks=2, by="hospital")), "by: 'hospital' is not an integer array"),
        (lambda: periods(Domains(tasks=2, by="x")), "by: 'x' is not an integer array"),
    ],
)
def test_what_cannot_be_is_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


# -- MNIST ------------------------------------------------------------------------------------------------------------
def test_a_missing_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"data: mnist/mnist.npz is not in {tmp_path}; .*FL_DATA"):
        MNIST().load()


def test_mnist_is_read_as_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    pixels = rng.integers(0, 256, (12, 28, 28), dtype=np.uint8)
    parts = {"train": slice(0, 8), "test": slice(8, 12)}
    stored = {"x": pixels, "y": np.arange(12) % 10, "writer": np.arange(12) // 3, "hsf": np.arange(12) % 2 * 4}
    np.savez(tmp_path / "mnist/mnist.npz", **{f"{n}_{p}": a[at] for n, a in stored.items() for p, at in parts.items()})
    data = MNIST().load()
    assert data.train["x"].shape == (8, 1, 28, 28) and data.train["x"].dtype == np.float32
    np.testing.assert_array_equal(data.train["x"][3, 0] * np.float32(255), pixels[3])
    assert data.clients.tolist() == [0, 0, 0, 1, 1, 1, 2, 2] and data.test["hsf"].tolist() == [0, 4, 0, 4]
    few, more = MNIST(train=3, test=2).load(), MNIST(train=5).load()
    np.testing.assert_array_equal(few.train["x"], more.train["x"][:3])
    assert len(few.test["y"]) == 2 and len(few.clients) == 3
    with pytest.raises(ValueError, match="train: 9 is not in 1..8"):
        MNIST(train=9).load()


@pytest.mark.skipif(not (data_folder() / "mnist/mnist.npz").is_file(), reason="the data folder has no MNIST")
def test_the_real_mnist():
    assert find("mnist", "mnist.npz").is_file()
    data = MNIST(train=2000, test=500).load()
    assert np.bincount(data.train["y"]).min() > 150 and 0.12 < data.train["x"].mean() < 0.14
    _, parts = Domains(tasks=2, by="hsf").periods(data, Iid(clients=4).split, Classification())
    assert sum(len(s.partition.indices) for s in parts) == 2000
