"""Partitions from files and lists, their held-out rows, and flwr-datasets' partitioners compared with ours."""

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fl
from fl.data.dataset import Dataset
from fl.data.folder import data_folder
from fl.data.partition import Partition
from fl.errors import ConfigError
from partitions.dirichlet import Dirichlet
from partitions.file import File, from_lists, from_owners, read
from partitions.flwr_datasets import Flwr, as_flwr

DATA = Dataset({"x": np.zeros((8, 1)), "y": np.arange(8) % 3}, clients=np.arange(8) // 4)


def views(partition: Partition) -> list[tuple[list[int], list[int]]]:
    """Return (train, test) rows of each client."""
    both = [[partition.view_rows(c, view).tolist() for view in ("train", "test")] for c in range(partition.num_clients)]
    return [(train, test) for train, test in both]


EXPECTED = [([0, 5], [2]), ([1, 7], [6, 3])]


def test_the_forms_of_a_file_say_the_same(tmp_path):
    client, is_test = np.array([0, 1, 0, 1, -1, 0, 1, 1]), np.array([0, 0, 1, 1, 0, 0, 1, 0], bool)
    np.savez(tmp_path / "a.npz", client=client.astype(np.int8), is_test=is_test)
    np.savez(tmp_path / "b.npz", indices=[0, 5, 2, 1, 7, 6, 3], offsets=[0, 3, 7], test=[1, 2])
    (tmp_path / "c.json").write_text(json.dumps({"train": [[0, 5], [1, 7]], "test": [[2], [6, 3]]}))
    for name in "b.npz", "c.json":
        assert views(File(path=str(tmp_path / name)).split(DATA)) == EXPECTED
    assert views(File(path=str(tmp_path / "a.npz")).split(DATA)) == [([0, 5], [2]), ([1, 7], [3, 6])]  # rows ascend
    (tmp_path / "d.json").write_text("[[0, 5], [1, 7]]")
    assert (
        views(read(tmp_path / "d.json"))
        == views(File(lists=((0, 5), (1, 7))).split(DATA))
        == [([0, 5], []), ([1, 7], [])]
    )


def test_a_path_is_found_in_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DATA", str(tmp_path))
    (tmp_path / "parts.json").write_text("[[3]]")
    assert views(read("parts.json")) == [([3], [])]
    with pytest.raises(ValueError, match=f"path: other.json is neither in .* nor in the data folder {tmp_path}"):
        read("other.json")


def test_the_published_partition_of_pooled_mnist():
    path = data_folder() / "mnist" / "pfllib_dir0.1_20clients.npz"
    if not path.is_file():
        pytest.skip("FL_DATA names no folder with mnist")
    pooled = Dataset({"x": np.zeros((70000, 1)), "y": np.zeros(70000)})
    partition = File(path="mnist/pfllib_dir0.1_20clients.npz").split(pooled)
    assert (partition.num_clients, partition.test.sum(), partition.covers(70000)) == (20, 17508, True)
    with pytest.raises(ValueError, match="path: row 69999 exceeds the 60000 rows of the training set; .* pool"):
        File(path=str(path)).split(Dataset({"x": np.zeros((60000, 1))}))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: File(), "path: give either `path`"),
        (lambda: File(path="a.npz", lists=((1,),)), "path: give either `path`"),
        (lambda: File(lists=((1, 8),)).split(DATA), "lists: row 8 exceeds the 8 rows"),
        (lambda: File(lists=((1, 2), (2, 3))).split(DATA), "row 2 is given 2 times"),
        (lambda: File(lists=((1, -2),)).split(DATA), "indices: -2..1 exceed"),
        (lambda: File(lists=()).split(DATA), "lists: there are none"),
        (lambda: from_lists([[1]], [[2], [3]]), "test: 2 lists, but 1 lists of train"),
        (lambda: from_lists([[0.5]]), "lists: .* are not row numbers"),
        (lambda: from_owners(np.zeros(3), np.zeros(2)), "is_test: "),
        (lambda: read(__file__), "must end in .npz or .json"),
    ],
)
def test_what_is_no_partition_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_client_with_test_rows_only_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", client=[0, 1, 1] + 5 * [-1], is_test=[1, 0, 1] + 5 * [0])
    with pytest.raises(ValueError, match="test: client 0 has test rows but no training rows"):
        File(path=str(tmp_path / "a.npz")).split(DATA)


# -- validation rows beside the partition's test rows -----------------------------------------------------------------
def test_val_comes_from_the_rows_that_do_not_test():
    brought = Partition(np.arange(30), np.array([0, 12, 12, 30]), test=np.array([2, 0, 8]))
    held = brought.hold_out(0.3, 0.0, seed=5)
    held.check(30)
    assert_array_equal(held.val, [3, 0, 3])  # 30 % of 10, 0 and 10
    assert_array_equal(held.test, [2, 0, 8])
    assert sorted(held.view_rows(0, "test")) == [10, 11] and sorted(held.view_rows(2, "test")) == list(range(22, 30))
    others = np.concatenate([held.view_rows(0, "train"), held.view_rows(0, "val")])
    assert sorted(others) == list(range(10)) and len(held.view_rows(0, "val")) == 3
    assert held.hold_out(0.0, 0.0, seed=5) is held
    with pytest.raises(ValueError, match="test: 0.1 with a partition that has its own test rows"):
        brought.hold_out(0.1, 0.1, seed=5)


def test_a_run_tests_on_the_rows_that_the_file_names(tmp_path):
    rows = np.random.default_rng(0).permutation(1438)[:400]
    client, is_test = np.full(1438, -1), np.zeros(1438, bool)
    client[rows] = np.arange(400) % 4
    is_test[rows[:100]] = True
    np.savez(tmp_path / "p.npz", client=client, is_test=is_test)
    config = {
        "rounds": 1,
        "data": "digits",
        "partition": {"name": "file", "path": str(tmp_path / "p.npz")},
        "splits": {"val": 0.1},
        "model": "softmax",
        "cohort": {"size": 4},
        "strategy": "fedavg",
        "client": {"lr": 0.1},
        "execution": {"executor": "serial"},
    }
    right = 100 * fl.run(config, out=tmp_path / "run").metrics[-1]["clients/accuracy_weighted"]  # of 100 test rows
    assert 0 < right < 100 and right == pytest.approx(round(right), abs=1e-6)
    with pytest.raises(ConfigError, match="splits.test: 0.2 with a partition that has its own test rows"):
        fl.run(config | {"splits": {"val": 0.1, "test": 0.2}}, out=tmp_path / "other")


# -- flwr-datasets ----------------------------------------------------------------------------------------------------
def test_without_the_extra_it_says_how_to_get_it():
    with pytest.raises(ValueError, match="partitioner: 'Iid' is not module:Class"):
        Flwr(partitioner="Iid", arguments={}).split(DATA)
    try:
        import datasets  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ValueError, match=r"pip install 'fl\[flwr-datasets\]'"):
            as_flwr(Dirichlet(clients=2, alpha=1.0))


def test_theirs_as_ours():
    theirs = pytest.importorskip("flwr_datasets.partitioner")
    part = Flwr(partitioner="flwr_datasets.partitioner:PathologicalPartitioner", arguments={
        "num_partitions": 3, "num_classes_per_partition": 1, "class_assignment_mode": "deterministic"})  # fmt: skip
    parts = [sorted(train) for train, _ in views(part.split(DATA))]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]
    natural = Flwr(partitioner="flwr_datasets.partitioner:NaturalIdPartitioner", arguments={"partition_by": "client"})
    assert views(natural.split(DATA)) == [([0, 1, 2, 3], []), ([4, 5, 6, 7], [])]
    with pytest.raises(ValueError, match="arguments: .* do not suit .*IidPartitioner"):
        Flwr(partitioner="flwr_datasets.partitioner:IidPartitioner", arguments={"alpha": 1}).split(DATA)
    assert theirs.IidPartitioner.__name__ == "IidPartitioner"


def test_ours_as_theirs():
    pytest.importorskip("flwr_datasets")
    datasets = pytest.importorskip("datasets")
    labels = np.random.default_rng(0).integers(0, 5, 300)
    table = datasets.Dataset.from_dict({"image": np.arange(300), "label": labels})
    ours = Dirichlet(clients=6, alpha=0.5, seed=3)
    expected = ours.split(Dataset({"x": np.zeros((300, 1)), "y": labels}))
    for theirs in (as_flwr(ours, table), as_flwr(expected, table)):
        assert theirs.num_partitions == 6
        for c in range(6):
            assert_array_equal(theirs.load_partition(c)["image"], expected.view_rows(c, "train"))
    with pytest.raises(ValueError, match="partition_id: 6 is not one of 0..5"):
        theirs.load_partition(6)
    later = as_flwr(ours)
    later.dataset = table
    assert len(later.load_partition(0)) == expected.offsets[1]
