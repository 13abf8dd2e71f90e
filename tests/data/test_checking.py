"""What users bring is checked once, before round 0: labels by the task, features, test sets, partitions, dtypes."""

import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

import fl
from fl.config.config import resolve
from fl.data.checking import checked, column_extremes
from fl.data.dataset import Dataset
from fl.data.forms import as_dataset
from fl.data.partition import Partition
from fl.data.section import Data
from fl.data.sets.file import File
from fl.data.sets.mapped import Mapped
from fl.errors import ConfigError
from fl.simulation.build import load_data, set_up_run
from fl.tasks.language import LanguageModelling
from fl.tasks.multilabel import Multilabel
from fl.tasks.supervised import Classification, Regression
from fl.tasks.task import Task
from tests import process

N = 60
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
Y = np.arange(N) % 3
CONFIG = {
    "seed": 0,
    "rounds": 1,
    "partition": {"name": "iid", "clients": 4},
    "model": "mlp",
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "client": {"epochs": 1, "batch": 8, "lr": 0.1},
    "execution": {"executor": "serial"},
}


def set_up(data, **changes):
    config = resolve(CONFIG | changes | {"data": "digits"})
    return set_up_run(replace(config, data=Data(part=as_dataset(data))))


def label(y, task, where="train"):
    """Return y after the check of a data set that has these labels in one part."""
    good = {Classification: Y, Regression: Y, Multilabel: np.eye(3, dtype=int)[Y]}.get(type(task), np.ones((N, 2), int))
    parts = {part: {"x": X, "y": good} for part in ("train", "test", "server")}
    if where == "train":
        parts["test"]["y"] = parts["server"]["y"] = y
    parts[where]["y"] = y
    return getattr(checked(Dataset(**parts), task), where)["y"]


def with_value(value, row=17, y=Y, count=1):
    y = y.astype(np.result_type(y, type(value)))
    y[row : row + count] = value
    return y


# -- labels of classification -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["train", "test", "server"])
@pytest.mark.parametrize(
    ("y", "message"),
    [
        (with_value(-1), "y has -1 in row 17 (1 of 60 values is wrong); classes are numbered from 0"),
        (with_value(-100, count=3), "y has -100 in row 17 (3 of 60 values are wrong); classes"),
        (with_value(-1.0), "y has -1 in row 17 (1 of 60"),
        (with_value(0.5), "y has 0.5 in row 17 (1 of 60 values is wrong); classes are whole numbers"),
        (with_value(np.nan), "y has nan in row 17 (1 of 60"),
        (with_value(np.inf), "y has inf in row 17"),
        (Y * 10**9, "y has 3 different values up to 2000000000 (row 2), which would need 2000000001 outputs; number"),
        (Y * 1e9, "y has 3 different values up to 2000000000 (row 2)"),
    ],
)
def test_labels_that_are_no_classes(where, y, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        label(y, Classification(), where)
    assert str(error.value).startswith(f"{where} y")


@pytest.mark.parametrize(
    "y",
    [Y.astype(float), Y.astype(np.uint8), Y[:, None], Y[:, None].astype(np.float32), np.array(list("abc"))[Y]]
    + [np.array(["cat", "dog", "eel"], object)[Y], np.array([b"1", b"2", b"3"])[Y], Y.astype(object)],
)
def test_labels_with_one_meaning(y):
    found = label(y, Classification())
    assert found.dtype == np.int64
    assert_array_equal(found, Y)


def test_bools_are_two_classes():
    assert_array_equal(label(Y > 0, Classification()), (Y > 0).astype(int))


def test_words_have_one_number_in_all_parts():
    words = as_dataset((X, np.array(["b", "a", "b"])[Y], X[:2], np.array(["c", "a"])))
    assert words.labels.tolist()[:3] == [1, 0, 1] and words.test["y"].tolist() == [2, 0]
    assert words.words == ("a", "b", "c")
    owners = as_dataset({"train": {"x": X, "y": Y}, "clients": np.array(["w", "v", "w"])[Y]})
    assert owners.clients.tolist()[:3] == [1, 0, 1]


def test_a_shape_and_dtype_in_all_parts():
    data = checked(as_dataset((X, Y, X[:4].astype(int), Y[:4, None].astype(float))), Classification())
    assert data.test["y"].tolist() == [0, 1, 2, 0] and data.test["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", None, "b"], "data: train.y has None in row 1, which is not a word (1 such entries)"),
        ([1, 2, None], "data: train.y has None in row 2, which is not a number"),
        ([1, "a", 2], "data: train.y has 'a' in row 1, which is not a number"),
    ],
)
def test_labels_that_are_objects(y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        as_dataset((X[:3], np.array(y, object)))


@pytest.mark.parametrize("suffix", ["npz", "mapped", "parquet", "csv", "function"])
def test_words_from_every_loader(suffix, tmp_path):
    words, path = np.array(["cat", "dog", "eel"])[Y], tmp_path / f"a.{suffix}"
    if suffix == "npz":
        np.savez(path, x=X, y=words)
    elif suffix == "mapped":
        path.mkdir()
        np.save(path / "x.npy", X)
        np.save(path / "y.npy", words)
    elif suffix == "function":
        return assert_array_equal(as_dataset((X, words)).labels, Y)
    else:
        import pyarrow as pa
        from pyarrow import csv, parquet

        table = pa.table({f"x{i}": X[:, i] for i in range(6)} | {"y": words})
        (csv.write_csv if suffix == "csv" else parquet.write_table)(table, path)
    data = (Mapped if suffix == "mapped" else File)(path=str(path)).load()
    assert_array_equal(data.labels, Y)
    np.testing.assert_allclose(data.train["x"], X, rtol=1e-6)


def test_ids_with_gaps_are_logged(caplog):
    with caplog.at_level(logging.WARNING):
        label(Y * 100_000, Classification())
    assert caplog.messages == ["data: y has 3 classes, but the model gets 200001 outputs; number them from 0"]


def test_labels_that_are_missing():
    for task in (Classification(), Regression(), Multilabel(), LanguageModelling()):
        with pytest.raises(ValueError, match=r"train has no 'y' in \['x'\]; this task needs labels"):
            checked(Dataset({"x": X}), task)
    public = checked(Dataset({"x": X, "y": Y}, server={"x": X}), Classification())
    assert list(public.server) == ["x"]
    assert len(checked(Dataset({"x": X}), Task())) == N  # a user's task may learn without labels


# -- labels of other tasks --------------------------------------------------------------------------------------------
def test_targets_of_regression_become_real():
    for y in (Y, Y > 0, Y.astype(float), Y[:, None]):
        found = label(y, Regression())
        assert found.dtype == np.float32
        assert_array_equal(found, y.astype(np.float32))
    with pytest.raises(ValueError, match=r"test y has nan in row 17 \(1 of 60 numbers is not finite\)"):
        label(with_value(np.nan), Regression(), "test")
    with pytest.raises(ValueError, match="train y has inf in row 17 .*float32 holds numbers up to"):
        label(with_value(1e300), Regression())
    with pytest.raises(ValueError, match="y has words .'a', 'b'.*this task needs numbers"):
        checked(as_dataset((X, np.array(["a", "b"])[Y % 2])), Regression())


def test_multilabel_takes_zero_and_one():
    two = np.eye(3, dtype=int)[Y]
    for y in (two, two > 0, two.astype(float)):
        assert_array_equal(label(y, Multilabel()), two)
    for value in (2, -1, 0.5, np.nan):
        wrong = two.astype(np.result_type(two, type(value)))
        wrong[5, 2] = value
        with pytest.raises(ValueError, match=rf"test y has {value} in row 5, column 2 \(1 of 180 values is wrong\)"):
            label(wrong, Multilabel(), "test")


def test_tokens():
    y = np.array([[3, -1], [7, -100]] * (N // 2))
    assert_array_equal(label(y.astype(float), LanguageModelling()), y)
    with pytest.raises(ValueError, match="train y has 7 in row 1, column 0 .30 of 120 .* vocabulary of 5 tokens"):
        label(y, LanguageModelling(vocabulary=5))
    with pytest.raises(ValueError, match="train y has -5 in row 0, column 1"):
        label(np.where(y == -1, -5, y), LanguageModelling())


# -- features ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["train", "test", "server"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_features_that_are_not_finite(where, value):
    x = X.astype(np.float64)
    x[17, 4], x[20] = value, value
    parts = {part: {"x": X, "y": Y} for part in ("train", "test", "server")}
    parts[where] = {"x": x, "y": Y}
    shown = np.float32(value) if np.isnan(value) or np.isinf(value) else np.inf
    with pytest.raises(ValueError, match=rf"{where} x has {shown} in row 17, column 4 \(7 of 360 numbers are not"):
        checked(Dataset(**parts), Classification())


def test_mapped_features_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("fl.data.checking.BLOCK", 16)
    for row in (0, 30, 59):
        x = X.copy()
        x[row, 5] = np.nan
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "y.npy", Y)
        data = Mapped(path=str(tmp_path)).load()
        with pytest.raises(ValueError, match=rf"train x has nan in row {row}, column 5 \(1 of 360 numbers is"):
            checked(data, Classification())
    np.save(tmp_path / "x.npy", X)
    data = Mapped(path=str(tmp_path)).load()
    assert checked(data, Classification()).train["x"] is data.train["x"]


def test_features_of_one_dimension(tmp_path):
    assert checked(as_dataset((X[:, 0], Y)), Classification()).train["x"].shape == (N, 1)
    assert set_up((X[:, 0], Y)).dataset.train["x"].shape == (N, 1)
    with pytest.raises(ConfigError, match=r"data: x int64 \(60,\) is one number per row, .*make it \(rows, 1\)"):
        set_up((np.arange(N), Y))
    (tmp_path / "m.py").write_text("from torch import nn\ndef net(shape, outputs): return nn.Linear(shape[0], outputs)")
    with pytest.raises(ConfigError, match="data: x is one number per row"):
        set_up((np.arange(N), Y), model=f"{tmp_path}/m.py:net")
    with pytest.raises(ConfigError, match="model: char_lstm takes ids .length,., a sample is"):
        set_up((np.arange(N), Y), model="char_lstm")


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, bool])
@pytest.mark.parametrize("model", ["mlp", "softmax", "cnn_tiny"])
def test_whole_numbers_for_a_model_of_real_numbers(dtype, model):
    x = (np.arange(N * 64).reshape(N, 1, 8, 8) % 5).astype(dtype)
    found = set_up((x, Y, x[:5], Y[:5]), model=model).dataset
    assert found.train["x"].dtype == found.test["x"].dtype == np.float32
    assert_array_equal(found.train["x"], x)


def test_ids_stay_whole_numbers():
    ids = (np.arange(N * 4).reshape(N, 4) % 9).astype(np.int8)
    model = {"name": "char_lstm", "vocabulary": 9}
    assert set_up((ids, Y), model=model).dataset.train["x"].dtype == np.int8
    ids[7, 3], ids[9, 0] = 20, 9
    with pytest.raises(ConfigError, match=r"data: train x has 20 in row 7, column 3 \(2 of 240 values are wrong\); "):
        set_up((ids, Y), model=model)
    with pytest.raises(ConfigError, match="takes no number above 8 .IndexError: .*set a larger model.vocabulary"):
        set_up((ids, Y), model=model)
    ids[7, 3], ids[9, 0] = -1, 0
    with pytest.raises(ConfigError, match=r"x has -1 in row 7, column 3 \(1 of 240.*takes no number below 0 .*from 0"):
        set_up((ids, Y), model=model)


class Lookup(nn.Module):
    """Embeds ids; what comes first is a linear layer, and ids may be floats."""

    def __init__(self, shape, outputs, embed=nn.functional.embedding):
        super().__init__()
        self.head, self.e = nn.Linear(4, outputs), nn.Parameter(torch.randn(9, 4))
        self.embed = embed

    def forward(self, x):
        return self.head(self.embed(x.long(), self.e).mean(1))


class OneHot(Lookup):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs, lambda x, e: nn.functional.one_hot(x, 9).float() @ e)


class Indexed(Lookup):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs, lambda x, e: e[x])


class TwoTables(nn.Module):
    """Column 0 has 100 ids, column 1 has 9, and the rest are numbers."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.a, self.b, self.l = nn.Embedding(100, 2), nn.Embedding(9, 2), nn.Linear(6, outputs)

    def forward(self, x):
        ids = x[:, :2].long()
        return self.l(torch.cat([self.a(ids[:, 0]), self.b(ids[:, 1]), x[:, 2:].float()], 1))


@pytest.mark.parametrize("where", ["train", "test", "server"])
@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.float32])
@pytest.mark.parametrize("model", [Lookup, OneHot, Indexed])
def test_ids_beyond_any_vocabulary(model, dtype, where):
    """The numbers that a model does not take are found by calling it, in all parts."""
    good = (np.arange(N * 4).reshape(N, 4) % 9).astype(dtype)
    parts = {part: {"x": good, "y": Y} for part in ("train", "test", "server")}
    assert set_up(parts, model=model).dataset.train["x"].dtype == good.dtype
    bad = good.copy()
    bad[33, 2], bad[50, 1:] = 12, 9
    parts[where] = {"x": bad, "y": Y}
    message = rf"data: {where} x has 12 in row 33, column 2 \(4 of 240 values are wrong\); .*no number above 8 "
    with pytest.raises(ConfigError, match=message):
        set_up(parts, model=model)


def test_a_column_may_have_a_vocabulary_of_its_own():
    x = np.stack([np.arange(N), np.arange(N) % 9, np.arange(N) * 1000, -np.arange(N)], 1)
    set_up((x, Y), model=TwoTables)
    x[40:, 1] = 10
    with pytest.raises(ConfigError, match=r"x has 10 in row 40, column 1 \(20 of 240 .*no number above 8"):
        set_up((x, Y), model=TwoTables)


def test_rows_that_the_model_takes_are_not_refused():
    """The largest numbers of the columns together fail here, but no row of the data does."""

    class Sum(Lookup):
        def forward(self, x):
            return self.head(self.e[x.sum(1)])

    set_up((np.eye(4, dtype=int)[np.arange(N) % 4] * 5, Y), model=Sum)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_whole_numbers_for_an_own_model_of_real_numbers(dtype):
    """The first layer with parameters is not the first one that is called."""

    class Own(nn.Module):
        def __init__(self, shape, outputs):
            super().__init__()
            self.scale, self.l = nn.Parameter(torch.ones(outputs)), nn.Linear(shape[0], outputs)

        def forward(self, x):
            return self.scale * self.l(x)

    x = (X > 0).astype(dtype)
    found = set_up((x, Y), model=Own).dataset.train["x"]
    assert found.dtype == np.float32
    assert_array_equal(found, x)


def test_mapped_whole_numbers_are_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((N, 6), np.int64))
    np.save(tmp_path / "y.npy", Y)
    with pytest.raises(ConfigError, match="data: x is int64, and the model takes float32; mapped .*save float32"):
        set_up_run(resolve(CONFIG | {"data": {"name": "mapped", "path": str(tmp_path)}}))


def test_column_extremes(monkeypatch):
    monkeypatch.setattr("fl.data.checking.BLOCK", 16)
    low, high = column_extremes(X)
    assert_array_equal(low, X.min(0))
    assert_array_equal(high, X.max(0))


# -- rows -------------------------------------------------------------------------------------------------------------
def test_a_test_set_without_rows_is_none(caplog):
    for data in ((X, Y, X[:0], Y[:0]), {"train": {"x": X, "y": Y}, "server": {"x": X[:0], "y": Y[:0]}}):
        with caplog.at_level(logging.WARNING):
            found = as_dataset(data)
        assert found.test is None and found.server is None
    assert caplog.messages == [f"data: {part} has no rows; it is left out" for part in ("test", "server")]
    with pytest.raises(ConfigError, match="data: train has no rows"):
        set_up((X[:0], Y[:0]))


# -- partitions -------------------------------------------------------------------------------------------------------
class Own:
    def __init__(self, indices, offsets=(0, 30, 60), **flags):
        self.indices, self.offsets = indices, offsets
        vars(self).update(flags)

    def split(self, dataset):
        return Partition(self.indices, np.array(self.offsets))


def partition(part):
    config = resolve(CONFIG | {"data": "digits", "partition": part})
    return load_data(replace(config, data=Data(part=as_dataset((X, Y)))))[1][0].partition


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Own(np.arange(60) % 20), "partition.indices: row 0 is given 3 times; .*20 of 60 rows are given several times"),
        (Own(np.arange(50), (0, 30, 50)), "partition.indices: 10 of 60 rows belong to no client, the first is row 50"),
        (Own(np.arange(60) + 0.5), "partition.indices: 0.5 at position 0 is not a whole number"),
        (Own(np.arange(60), (0, 30.5, 60)), "partition.offsets: 30.5 at position 1"),
        (Own(np.arange(60) + 1), r"partition.indices: 1..60 exceed the 60 rows"),
        (Own(np.arange(60) > 1), r"partition.indices: bool \(60,\) is not one whole number per entry"),
        (Own(np.arange(60), (0, 70, 60)), "partition.offsets: not ascending"),
    ],
)
def test_partitions_that_are_refused(part, message):
    with pytest.raises(ConfigError, match=message):
        partition(part)


def test_partitions_that_are_taken():
    assert partition(Own(np.arange(60.0))).indices.dtype == np.int64
    assert partition(Own(list(range(60)))).indices.dtype == np.int64
    assert len(partition(Own(np.arange(60) % 20, overlaps=True, leaves_rows=True)).indices) == 60
    assert len(partition(Own(np.arange(50), (0, 30, 50), leaves_rows=True)).indices) == 50
    with pytest.raises(ConfigError, match="row 0 is given 3 times"):
        partition(Own(np.arange(60) % 20, leaves_rows=True))

    class Lists:
        def split(self, dataset):
            return [[0, 1], [2, 3]]

    with pytest.raises(ConfigError, match="partition: Lists.split returned list, not a Partition"):
        partition(Lists())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"client": np.arange(40) % 4}, "partition.client: 40 entries for the 60 rows of the training set"),
        ({"client": np.arange(60) % 4 + 0.5}, "partition.client: 0.5 at position 0 is not a whole number"),
        ({"indices": [0.5, 0.7], "offsets": [0, 1, 2]}, "partition.indices: 0.5 at position 0"),
    ],
)
def test_partitions_in_files(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    (tmp_path / "a.json").write_text(json.dumps({name: list(map(float, a)) for name, a in arrays.items()}))
    for name in ("a.npz", "a.json"):
        with pytest.raises(ConfigError, match=message):
            partition({"name": "file", "path": str(tmp_path / name)})


def test_a_partition_file_of_whole_floats(tmp_path):
    np.savez(tmp_path / "a.npz", client=np.arange(60.0) % 4)
    found = partition({"name": "file", "path": str(tmp_path / "a.npz")})
    assert_array_equal(np.sort(found.indices[: found.offsets[1]]), np.arange(0, 60, 4))


# -- runs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("plan", ["auto", "loop", "stacked", "compiled"])
def test_plans_agree_on_converted_labels(task, plan, tmp_path):
    """Labels as whole floats (classes), and whole numbers (targets), train as the labels that they mean."""
    execution = {"executor": "serial", "plan": plan}
    given, meant = (Y.astype(float), Y) if task == "classification" else (Y, Y.astype(np.float32))
    digests = []
    for i, y in enumerate((given, meant)):
        np.savez(tmp_path / f"{i}.npz", x=X, y=y)
        config = CONFIG | {"data": str(tmp_path / f"{i}.npz"), "task": task, "execution": execution}
        digests.append(fl.run(config, out=tmp_path / f"run{i}").digest)
    assert digests[0] == digests[1]


def test_a_refusal_has_exit_code_2(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=with_value(-1))
    config = CONFIG | {"data": str(tmp_path / "a.npz")}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    done = process.fl("run", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "data: train y has -1 in row 17 (1 of 60 values is wrong)" in done.stderr
