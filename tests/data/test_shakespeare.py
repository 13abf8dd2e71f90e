"""Shakespeare: the vocabulary, windows by hand, test rows, and a run on the real roles."""

import gzip
import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.chars import VOCABULARY, decode, encode, next_windows, sequence_windows
from fl.data.dataset import Dataset
from fl.data.folder import data_folder
from fl.data.sets.shakespeare import Shakespeare
from partitions.natural import Natural
from partitions.permuted import Permuted

FILE = data_folder() / "shakespeare" / "shakespeare_by_role.jsonl.gz"
needs_data = pytest.mark.skipif(not FILE.is_file(), reason="FL_DATA names no folder with shakespeare")


@pytest.fixture
def roles(tmp_path, monkeypatch):
    """Write three roles: one of 5 speeches, one of one speech, one too short for a sample of length 4."""
    speeches = [["abcdefgh", "ij", "kl", "mnop", "qrstuvw"], ["zyxwvu"], ["a"]]
    lines = [json.dumps({"play": "p", "role": str(i), "speeches": s}) for i, s in enumerate(speeches)]
    (tmp_path / "shakespeare").mkdir()
    with gzip.open(tmp_path / "shakespeare" / FILE.name, "wt") as file:
        file.write("\n".join(lines))
    monkeypatch.setenv("FL_DATA", str(tmp_path))


def test_the_vocabulary_is_that_of_leaf():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 80
    assert encode("\nTo be}").tolist() == [0, 44, 67, 1, 54, 57, 79]  # A is 25, a 53
    assert decode(encode(VOCABULARY)) == VOCABULARY
    assert decode(encode("a\tb|c$d\u00e9e\U0001f600f")) == "a b c d e f"


def test_windows_by_hand():
    ids = np.arange(7, dtype=np.int8)
    x, y = next_windows(ids, 3, 2)
    assert x.tolist() == [[0, 1, 2], [2, 3, 4]] and y.tolist() == [3, 5]
    assert [len(part) for part in next_windows(ids[:3], 3, 1)] == [0, 0]
    x, y = sequence_windows(ids, 4, 4)
    assert x.tolist() == [[0, 1, 2, 3], [4, 5, 6, 1]]  # 1 is the space
    assert y.tolist() == [[1, 2, 3, 4], [5, 6, -1, -1]]
    assert sequence_windows(ids[:5], 4, 4)[1].tolist() == [[1, 2, 3, 4]]
    assert len(sequence_windows(ids[:1], 4, 4)[0]) == len(sequence_windows(ids[:0], 4, 4)[0]) == 0
    # windows do not overlap, so each character except the first is a target once
    _, y = sequence_windows(np.arange(100, dtype=np.int8), 8, 8)
    assert y[y >= 0].tolist() == list(range(1, 100))


def test_the_last_fifth_of_the_speeches_is_for_testing(roles):
    data = Shakespeare(length=4, stride=3).load()
    # role 0: the first 4 speeches "abcdefgh\nij\nkl\nmnop" are training text, the fifth is test text;
    # role 1: its only speech is training text; role 2 has no sample
    texts = [decode(x) + "|" + VOCABULARY[y] for x, y in zip(data.train["x"], data.train["y"])]
    assert texts == ["abcd|e", "defg|h", "gh\ni|j", "ij\nk|l", "kl\nm|n", "qrst|u", "zyxw|v"]
    assert data.clients.tolist() == [0, 0, 0, 0, 0, 0, 1] and data.test is None
    assert np.flatnonzero(data.held).tolist() == [5]
    partition = Natural().split(data)
    assert [partition.view_rows(c, "test").tolist() for c in (0, 1)] == [[5], []]
    assert [partition.view_rows(c, "train").tolist() for c in (0, 1)] == [[0, 1, 2, 3, 4], [6]]


def test_the_options(roles):
    assert Shakespeare(length=4, stride=3, min_samples=2).load().clients.tolist() == [0] * 6
    few = Shakespeare(length=4, stride=1, max_samples=2).load()
    assert few.clients.tolist() == [0, 0, 0, 0, 1, 1] and few.held.tolist() == [False, False, True, True, False, False]
    one = Shakespeare(length=4, clients=1, server_test=0).load()
    assert len(set(one.clients)) == 1
    asked = Shakespeare(length=4, stride=1, server_test=3).load()  # all windows: "qrstu", "rstuv", "stuvw"
    assert [decode(x) for x in asked.test["x"]] == ["qrst", "rstu", "stuv"]
    for arguments, message in [
        ({"clients": 3}, "clients: 3 is more than the 2 roles"),
        ({"min_samples": 50}, "min_samples: no role has 50"),
        ({"server_test": 9}, r"server_test: 9 is not in 0\.\.1"),
    ]:
        with pytest.raises(ValueError, match=message):
            Shakespeare(length=4, **arguments).load()
    for arguments in ({"length": 0}, {"stride": -1}, {"target": "words"}, {"server_test": -1}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            Shakespeare(**arguments)


def test_held_rows():
    rows = np.arange(6.0)[:, None]
    held = np.array([True, False, False, True, False, False])
    data = Dataset({"x": rows}, clients=np.array([7, 7, 3, 3, 7, 3]), held=held)
    partition = Natural().split(data)  # ids ascend: 3 has the rows 2, 3, 5 and 7 has 0, 1, 4
    views = [partition.view_rows(c, view).tolist() for c in (0, 1) for view in ("train", "test")]
    assert views == [[2, 5], [3], [1, 4], [0]]
    partition.check(6)
    assert [partition.hold_out(0.5, 0, 0).view_rows(c, "test").tolist() for c in (0, 1)] == [[3], [0]]
    with pytest.raises(ValueError, match="has its own test rows"):
        partition.hold_out(0, 0.2, 0)
    one = Natural(clients=1).split(data)
    assert one.indices.tolist() == [2, 5, 3] and one.test.tolist() == [1]
    assert data.digest() != Dataset(data.train, clients=data.clients).digest()
    with pytest.raises(ValueError, match="held: bool .5,. is not one bool for each of 6 rows"):
        Dataset({"x": rows}, held=held[:5])
    _, periods = Permuted(tasks=2, rounds=1).periods(data, Natural().split, None)
    assert [period.partition.view_rows(0, "test").tolist() for period in periods] == [[3], [9]]


# -- the real text ----------------------------------------------------------------------------------------------------
@needs_data
def test_the_real_roles():
    data = Shakespeare(target="sequence").load()
    with gzip.open(FILE, "rt") as file:
        roles = [json.loads(line)["speeches"] for line in file]
    wanted = tested = clients = 0
    for speeches in roles:
        cut = max(1, len(speeches) * 4 // 5)
        train, test = "\n".join(speeches[:cut]), "\n".join(speeches[cut:])
        if len(train) > 1:
            wanted, tested, clients = wanted + len(train) - 1, tested + max(len(test) - 1, 0), clients + 1
    y = data.train["y"]
    assert ((y[~data.held] >= 0).sum(), (y[data.held] >= 0).sum()) == (wanted, tested)
    assert data.train["x"].dtype == np.int8 and data.train["x"].shape[1] == 80
    assert len(roles) == 1339 and len(set(data.clients)) == clients
    largest = np.bincount(data.clients).argmax()
    mine = data.train["x"][(data.clients == largest) & ~data.held].reshape(-1)
    text = "\n".join(roles[largest][: len(roles[largest]) * 4 // 5])
    assert_array_equal(mine[: len(text) - 1], encode(text)[:-1])


@needs_data
def test_two_rounds_on_real_roles(tmp_path):
    settings = {
        "rounds": 2,
        "data": {"name": "shakespeare", "clients": 6, "min_samples": 20, "max_samples": 20, "length": 20},
        "partition": "natural",
        "model": {"name": "char_lstm", "hidden": 8},
        "strategy": "fedavg",
        "cohort": {"name": "uniform", "size": 3},
        "client": {"name": "sgd", "batch": 10, "lr": 0.5},
        "execution": {"executor": "serial"},
    }
    rows = fl.run(settings, out=tmp_path).metrics
    assert len(rows) == 2 and 0 < rows[-1]["clients/accuracy_mean"] < 1 and "eval/loss" not in rows[-1]
    assert rows[0]["train/loss"] == pytest.approx(np.log(79), rel=0.1)  # the initial model guesses at random
    plan = resolve(read(tmp_path / "config.yaml")).execution
    assert (plan.plan, plan.chunk) == ("loop", 1)
