"""`data=` takes map-style data sets of torch and of Hugging Face: read once if deterministic, else at each access."""

import logging
import os
import random
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.testing import assert_allclose, assert_array_equal
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import fl
from fl.config.config import resolve
from fl.data.forms import as_dataset
from fl.data.temporary import is_temporary, temporary_array
from fl.errors import ConfigError
from fl.tensors.pickling import pack, unpack
from fl.tensors.random import hash64
from tests.process import python

N = 60
X = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)
SMALL = {
    "rounds": 2,
    "partition": {"name": "iid", "clients": 6},
    "model": "softmax",
    "strategy": "fedavg",
    "cohort": {"size": 3},
    "client": {"lr": 0.1, "batch": 4, "epochs": 2},
    "execution": {"executor": "serial"},
}


class Rows(Dataset):
    """Rows of a function."""

    def __init__(self, row, count=N):
        self.row, self.count = row, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.row(i)


def label(i):
    return int(Y[i])


def noise():
    """Of all three global generators."""
    return torch.rand(4).numpy() + np.float32(np.random.rand()) + np.float32(random.random())


def shaken(i):
    return torch.from_numpy(X[i] + noise()), label(i)


class OnlyMethods:
    """A data set without torch's base class."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], label(i)


# -- deterministic data sets ------------------------------------------------------------------------------------------
FORMS = {
    "tensors": lambda: TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
    "arrays of float64": lambda: Rows(lambda i: (X[i].astype(np.float64), np.int64(Y[i]))),
    "lists": lambda: Rows(lambda i: [X[i].tolist(), label(i)]),
    "named": lambda: Rows(lambda i: {"x": X[i], "y": label(i)}),
    "other names": lambda: Rows(lambda i: {"values": torch.from_numpy(X[i]), "label": label(i), "file": "a.png"}),
    "words": lambda: Rows(lambda i: (X[i], ("cat", "dog")[label(i)])),
    "no base class": OnlyMethods,
    "subsets": lambda: ConcatDataset([Subset(Rows(lambda i: (X[i], label(i))), range(a, a + 30)) for a in (0, 30)]),
    "dict of arrays": lambda: {"x": X, "y": Y},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_is_its_arrays(form):
    assert as_dataset(FORMS[form]()).digest() == as_dataset((X, Y)).digest()


def test_a_run_takes_data_sets_and_dicts_as_it_takes_arrays(tmp_path):
    wanted = fl.run({**SMALL, "data": (X, Y)}, out=tmp_path / "0").digest
    for i, data in enumerate((FORMS["tensors"](), {"x": X, "y": Y}, {"train": FORMS["named"]()}, OnlyMethods), 1):
        assert fl.run({**SMALL, "data": data}, out=tmp_path / str(i)).digest == wanted
    assert fl.run({**SMALL, "data": "digits"}, data={"x": X, "y": Y}, out=tmp_path / "over").digest == wanted
    both = {"train": {"x": X[:40], "y": Y[:40]}, "test": {"x": X[40:], "y": Y[40:]}}
    pair = tuple(Subset(FORMS["tensors"](), rows) for rows in (range(40), range(40, 60)))
    rows = [fl.run({**SMALL, "data": d}, out=tmp_path / f"pair{i}").metrics[-1] for i, d in enumerate((both, pair))]
    assert "eval/loss" in rows[0] and rows[0]["eval/loss"] == rows[1]["eval/loss"]


def test_images_of_pillow_are_channels_first_in_0_to_1():
    from PIL import Image

    grey = np.arange(N * 12, dtype=np.uint8).reshape(N, 3, 4)
    colour = np.stack([grey, grey // 2, 255 - grey], -1)
    read = as_dataset(Rows(lambda i: (Image.fromarray(colour[i]), label(i)))).train["x"]
    assert_array_equal(read, colour.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    single = as_dataset(Rows(lambda i: {"image": Image.fromarray(grey[i]), "label": label(i), "id": i}))
    assert_array_equal(single.train["x"], grey[:, None].astype(np.float32) / np.float32(255))
    assert_array_equal(single.labels, Y)
    palette = as_dataset(Rows(lambda i: (Image.fromarray(colour[i]).quantize(), 0), 3)).train["x"]  # 12 colours fit
    assert_array_equal(palette, read[:3])


def test_whole_numbers_are_converted_for_a_linear_model(tmp_path, caplog):
    whole = (X * 10).astype(np.int16)
    data = Rows(lambda i: (torch.from_numpy(whole[i]), label(i)))
    with caplog.at_level(logging.WARNING):
        read, given = (fl.run({**SMALL, "data": d}, out=tmp_path / n) for d, n in ((data, "a"), ((whole, Y), "b")))
    assert read.digest == given.digest and "x is int16" in caplog.text


def test_features_are_mapped_and_the_file_goes_with_them():
    data = as_dataset(FORMS["tensors"]())
    array = data.train["x"]
    path = Path(str(array.filename))
    assert is_temporary(array) and path.parent == Path(tempfile.gettempdir())
    assert len(pack(data.training_tensors()["x"])[0]) < 1000  # travels as its place
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    del data, array
    assert not path.exists()
    leftover = path.with_name(path.name.replace(str(os.getpid()), "99999999"))  # no process has this number
    leftover.touch()
    temporary_array((2,), np.dtype(np.float32))
    assert not leftover.exists()


def test_a_run_reads_a_data_set_once_and_moves_no_generator(tmp_path):
    reads = []
    data = Rows(lambda i: reads.append(i) or (X[i], label(i)))
    states = torch.get_rng_state(), random.getstate()
    config = resolve({**SMALL, "data": data, "baselines": ["local", "centralised"]})
    fl.run(config, out=tmp_path / "run")
    assert reads.count(7) <= 3  # once for all runs, and twice if it is one of the rows that are looked at
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]


REFUSED = {
    "ragged": (lambda i: (np.zeros(4 + (i > 7)), 0), r"x in row 8 has the shape \(5,\), and in row 0 \(4,\)"),
    "types": (lambda i: (np.zeros(4, np.float32 if i > 7 else np.int32), 0), "x in row 8 is float32, and in row 0 int"),
    "no x": (lambda i: (None if i == 3 else X[i], 0), "x in row 3 is None"),
    "no y": (lambda i: (X[i], None if i == 3 else label(i)), "train.y has None in row 3, which is not a number"),
    "text": (lambda i: ("a film", 0), "x in row 0 is the text 'a film'; texts need a tokenizer"),
    "object": (lambda i: (object(), 0), "x in row 0 is object, not numbers or an image"),
    "nan": (lambda i: (X[i] if i != 5 else X[i] * np.nan, label(i)), "train x has nan in row 5, column 0"),
    "three": (lambda i: (X[i], label(i), i), r"an item of Rows is tuple of 3 \(ndarray, int, int\); return \(x, y\)"),
    "error": (lambda i: (X[i], {False: 0}[i == 50]), "row 50 of Rows cannot be read: KeyError: True"),
    "two": (lambda i: {"a": X[i], "b": X[i], "label": 0}, r"several of the columns a \(array\), b \(array\), label"),
    "texts": (lambda i: {"review": "good", "label": 1}, "none of the columns .* is x; texts need a tokenizer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_are_refused(case, tmp_path):
    row, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        fl.run({**SMALL, "data": Rows(row)}, out=tmp_path / "run")


class Stream(IterableDataset):
    def __iter__(self):
        yield X[0]


class NoLength(Dataset):
    def __getitem__(self, i):
        return X[i], 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Stream(), "load it as a map-style data set"),
        (DataLoader(Rows(shaken)), "give its `dataset`"),
        (NoLength(), "NoLength has no number of rows .*define __len__"),
        (Rows(shaken, 0), "train has no rows"),
        ((Rows(shaken),) * 3, "3 data sets are not"),
        ({"train": Rows(shaken), "clients": "who"}, "are not dicts, so they have no names"),
        ({"train": {"x": X, "y": Y}, "clients": "who"}, "'who' is no column of train, which has arrays"),
        ({"train": {"x": X, "y": Y}, "target": "y"}, r"a dict of \['target', 'train'\] is not"),
        ({"validation": Rows(shaken)}, r"a dict of the data sets \['validation'\]"),
    ],
)
def test_values_that_are_no_map_style_data(value, message):
    with pytest.raises(ValueError, match=message):
        as_dataset(value)


def test_an_empty_test_set_is_left_out_and_names_choose_columns():
    row = lambda i: {"a": X[i], "b": label(i), "who": f"w{i % 5}"}  # noqa: E731
    data = as_dataset({"train": Rows(row), "test": Rows(row, 0), "clients": "who", "target": "b"})
    assert data.test is None and data.clients.tolist() == [i % 5 for i in range(N)]
    assert_array_equal(data.train["x"], X)


# -- random data sets -------------------------------------------------------------------------------------------------
def drawn(word):
    """What `noise` gives after seeding with a word, from generators of their own."""
    torch_noise = torch.rand(4, generator=torch.Generator().manual_seed(word >> 1)).numpy()
    numpy_noise = np.random.RandomState(word & 0xFFFFFFFF).rand()
    return torch_noise + np.float32(numpy_noise) + np.float32(random.Random(word).random())


def test_training_draws_rows_by_seed_client_participation_phase_epoch_and_row(tmp_path):
    """Two epochs of full batches of one client, computed by hand."""
    config = {**SMALL, "data": Rows(shaken), "task": "regression", "seed": 3, "rounds": 1}
    config |= {"partition": {"name": "iid", "clients": 1}, "cohort": {"size": 1}, "splits": {"val": 0.0}}
    config["client"] = {"lr": 0.1, "batch": "full", "epochs": 2}
    model = fl.run({**config, "client": {"lr": 0.0}}, out=tmp_path / "start").model
    w, b = (model[name].numpy().astype(np.float64) for name in model)
    for epoch in range(2):
        x = np.stack([X[row] + drawn(int(hash64(3, 0, 0, 0, epoch, "rows", row))) for row in range(N)])
        error = (x @ w.T + b)[:, 0] - Y
        w, b = w - 0.1 * (error @ x) / N, b - 0.1 * error.mean()
    trained = fl.run(config, out=tmp_path / "run").model
    assert_allclose(np.concatenate([trained[name].numpy().ravel() for name in trained]), [*w[0], *b], rtol=1e-5)


def test_evaluation_sees_fixed_rows():
    data = as_dataset(Rows(shaken))
    assert_array_equal(data.train["x"], [X[i] + drawn(int(hash64("rows", "train", i))) for i in range(N)])
    torch.manual_seed(5)
    np.random.seed(5)
    assert (
        as_dataset((Rows(shaken), Rows(shaken, 20))).digest() == as_dataset((Rows(shaken), Rows(shaken, 20))).digest()
    )


def test_a_row_that_rarely_draws_is_found():
    rare = as_dataset(Rows(lambda i: (X[i] + (np.random.rand() if i == 41 else 0), label(i))))
    assert rare.notes == ["the data set is random, so training reads its rows at each access"]
    assert rare.source is not None and as_dataset(Rows(lambda i: (X[i], label(i)))).source is None


def test_plans_agree_and_runs_repeat(tmp_path):
    config = {
        **SMALL,
        "data": Rows(shaken),
        "partition": {"name": "dirichlet", "clients": 6, "alpha": 1.0, "min_size": 3},
    }
    plans = [{"plan": "auto"}, {"plan": "auto"}, {"plan": "loop"}, {"plan": "flat"}, {"plan": "loop", "micro_batch": 2}]
    models = [
        fl.run({**config, "execution": {"executor": "serial"} | plan}, out=tmp_path / str(i)).model
        for i, plan in enumerate(plans)
    ]
    flat = [torch.cat([tensor.flatten() for tensor in model.values()]) for model in models]
    assert torch.equal(flat[0], flat[1])
    for other in flat[2:]:
        assert_allclose(flat[0], other, atol=1e-6)
    plain = fl.run({**config, "data": as_dataset(Rows(shaken)).train}, out=tmp_path / "plain").model
    assert max((plain[name] - models[0][name]).abs().max() for name in plain) > 1e-3  # stored rows train differently


class OwnGenerator(Rows):
    def __init__(self):
        super().__init__(None)
        self.generator = np.random.default_rng(0)

    def __getitem__(self, i):
        return X[i] + self.generator.random(), label(i)


class OwnTorchGenerator(OwnGenerator):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def __getitem__(self, i):
        return X[i] + torch.rand(4, generator=self.generator).numpy(), label(i)


class Counting(OwnGenerator):
    reads = 0

    def __getitem__(self, i):
        self.reads += 1
        return X[i] + self.reads, label(i)


class Remembering(OwnGenerator):
    def __init__(self):
        super().__init__()
        self.seen = {}

    def __getitem__(self, i):
        return self.seen.setdefault(i, X[i] + noise()), label(i)


class Closed(OwnGenerator):
    def __init__(self):
        super().__init__()
        self.generator = threading.Lock()

    def __getitem__(self, i):
        return X[i] + noise(), label(i)


@pytest.mark.parametrize("data_set", [OwnGenerator, OwnTorchGenerator, Counting, Remembering])
def test_draws_that_cannot_be_addressed_are_refused(data_set):
    with pytest.raises(
        ValueError, match=f"train: row 1 of {data_set.__name__} differs between two reads with the same"
    ):
        as_dataset(data_set())


def test_a_random_data_set_that_cannot_travel_is_refused():
    with pytest.raises(
        ValueError, match="Closed are random, and Closed cannot be sent to worker processes .*TypeError"
    ):
        as_dataset(Closed())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"train": Rows(shaken), "normalise": True}}, "data.normalise: training draws the rows again"),
        ({"shift": "noise"}, "shift: changes rows, and training draws the rows"),
        ({"stream": {"name": "permuted", "tasks": 2, "rounds": 1}, "rounds": 2}, "stream: changes rows, and training"),
    ],
)
def test_settings_that_change_stored_rows_are_refused(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fl.run({**SMALL, "data": Rows(shaken), **change}, out=tmp_path / "run")


def test_a_selection_of_rows_draws_the_rows_that_it_selects():
    data = resolve({**SMALL, "data": {"train": Rows(shaken), "long_tail": 3}}).data.load()
    arrays = data.training_tensors()
    assert len(data) < N
    row = int(data.source.rows[-1])
    got = arrays.source.draw(arrays, np.array([len(data) - 1]), 1, 2)
    assert_array_equal(got["x"][0], X[row] + drawn(int(hash64(1, 2, "rows", row))))
    assert got["y"].tolist() == [Y[row]]


def test_labels_that_are_words_keep_their_numbers_when_rows_are_drawn():
    data = as_dataset(Rows(lambda i: (X[i] + noise(), ("dog", "cat")[label(i)])))
    arrays = unpack(*pack(data.training_tensors()))  # as a worker gets it
    assert arrays.source.draw(arrays, np.arange(N), 0)["y"].tolist() == (1 - Y).tolist()


# -- files of a user --------------------------------------------------------------------------------------------------
SOURCE = """
import random

import numpy as np
import torch
from torch.utils.data import Dataset

from helper import shake


class Shaken(Dataset):
    def __init__(self, rows=60, broken=False):
        draw = np.random.default_rng(0)
        self.x, self.broken = draw.normal(size=(rows, 4)).astype(np.float32), broken

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if self.broken and i == 9:
            return {}["nosuch"]
        return shake(torch.from_numpy(self.x[i])), int(self.x[i].sum() > 0)


def pair(rows=40):
    return Shaken(rows), Shaken(20)
"""
HELPER = """
import random, numpy, torch

def shake(x):
    return x + torch.rand(4) + numpy.random.rand() + random.random()
"""


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "mine.py").write_text(SOURCE)
    return tmp_path / "mine.py"


@pytest.mark.parametrize("data", ["Shaken", {"name": "pair", "rows": 50}])
def test_a_resumed_run_draws_the_same_rows(data, user_file, tmp_path):
    data = {"name": data} if isinstance(data, str) else dict(data)
    data["name"] = f"{user_file}:{data['name']}"
    whole = fl.run({**SMALL, "data": data, "rounds": 4}, out=tmp_path / "whole")
    fl.run({**SMALL, "data": data, "rounds": 2}, out=tmp_path / "part")
    assert fl.resume(tmp_path / "part", rounds=4).digest == whole.digest
    assert yaml.safe_load((tmp_path / "part" / "config.yaml").read_text())["data"] == data


def test_an_error_in_a_row_shows_the_users_line(user_file, tmp_path):
    config = {**SMALL, "data": {"name": f"{user_file}:Shaken", "broken": True}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    code = f"from fl.cli.app import main; import sys; sys.argv = ['fl', 'run', '{tmp_path}/c.yaml']; main()"
    done = python(code, folder=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert './mine.py, line 21: return {}["nosuch"]' in lines[0]
    assert "row 9 of Shaken cannot be read: KeyError: 'nosuch'" in lines[1]


def test_what_was_given_as_an_object_is_named_when_it_is_resumed(tmp_path):
    fl.run({**SMALL, "data": Rows(shaken)}, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="data: Rows was given as a Python object, which config.yaml cannot hold"):
        fl.resume(tmp_path / "run", rounds="+1")
    first = fl.run({**SMALL, "data": OnlyMethods}, out=tmp_path / "class")
    assert fl.resume(tmp_path / "class", rounds="+1").digest != first.digest  # a class can be imported again


@pytest.mark.ray
def test_workers_draw_the_same_rows(user_file, tmp_path):
    given = {"object": Rows(shaken), "file": f"{user_file}:Shaken"}
    for name, workers in (("file", 2), ("object", 2), ("object", 1)):
        config = {**SMALL, "data": given[name]}
        ray = {"executor": "ray", "workers": workers}
        found = fl.run({**config, "execution": ray}, out=tmp_path / f"{name}{workers}").digest
        assert found == fl.run(config, out=tmp_path / f"{name}{workers}serial").digest


# -- Hugging Face -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def hugging_face():
    return pytest.importorskip("datasets", reason="needs the extra fl[hub]")


@pytest.fixture
def pictures(hugging_face):
    from PIL import Image

    pixels = np.arange(N * 30, dtype=np.uint8).reshape(N, 3, 10)
    columns = {"img": [Image.fromarray(p) for p in pixels], "fine": Y.tolist(), "id": list(range(N))}
    columns |= {"note": ["good"] * N, "who": [f"w{i % 5}" for i in range(N)], "vector": X.tolist()}
    found = hugging_face.Dataset.from_dict(columns)
    types = found.features | {"fine": hugging_face.ClassLabel(num_classes=2)}
    return hugging_face.Dataset.from_dict(columns, features=hugging_face.Features(types)), pixels


def test_columns_are_chosen_by_their_features(pictures):
    data, pixels = pictures
    for given in (data, data.with_format("torch"), data.with_format("numpy", columns=["img", "fine", "id"])):
        read = as_dataset(given)
        assert_array_equal(read.train["x"], pixels[:, None].astype(np.float32) / np.float32(255))
        assert_array_equal(read.labels, Y)
    named = as_dataset({"train": data, "features": "vector", "target": "id", "clients": "who"})
    assert_array_equal(named.train["x"], X)
    assert named.labels.tolist() == list(range(N)) and named.clients.tolist() == [i % 5 for i in range(N)]
    assert_array_equal(as_dataset({"train": data, "features": ["id", "fine"]}).train["x"], np.stack([range(N), Y], 1))


def test_dicts_of_hugging_face(pictures, hugging_face, tmp_path, caplog):
    data, pixels = pictures
    parts = hugging_face.DatasetDict({"train": data, "validation": data.select(range(20)), "more": data})
    read = as_dataset(parts)
    assert len(read) == N and len(read.test["x"]) == 20 and "the parts ['more'] are not used" in caplog.text
    x = pixels[:, None].astype(np.float32) / np.float32(255)
    arrays = fl.run({**SMALL, "data": (x, Y, x[:20], Y[:20])}, out=tmp_path / "arrays").digest
    assert fl.run({**SMALL, "data": parts}, out=tmp_path / "dict").digest == arrays


def test_ids_of_tokens_stay_whole_numbers(hugging_face):
    ids = as_dataset(
        hugging_face.Dataset.from_dict({"input_ids": [[1, 2], [3, 4]], "mask": [[1, 1]] * 2, "label": [0, 1]})
    )
    assert ids.train["x"].tolist() == [[1, 2], [3, 4]] and ids.train["x"].dtype == np.int64


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["a", "b"], "label": [0, 1]},
            r"none of the columns text \(text\), label \(number\) is x; texts need",
        ),
        ({"input_ids": [[1], [2, 3]], "label": [0, 1]}, r"the lists of column 'input_ids' differ in length"),
        ({"input_ids": [[1], None], "label": [0, 1]}, r"column 'input_ids' has missing values"),
        ({"x": [[1.0], [2.0]], "label": [0, None]}, "column 'label' has 1 missing values"),
        ({"a": [1.0, 2.0], "b": [1.0, 2.0], "label": [0, 1]}, r'give data=\{"train": ..., "features": NAME\}'),
    ],
)
def test_columns_that_are_refused(hugging_face, columns, message):
    with pytest.raises(ValueError, match=message):
        as_dataset(hugging_face.Dataset.from_dict(columns))


def test_a_stream_of_hugging_face_is_refused(pictures):
    with pytest.raises(ValueError, match="without streaming"):
        as_dataset(pictures[0].to_iterable_dataset())


def flipped(batch):
    turns = [1 if np.random.rand() < 0.5 else -1 for _ in batch["img"]]
    return {"x": [np.asarray(x, np.float32)[:, ::t] for x, t in zip(batch["img"], turns)], "y": batch["fine"]}


def test_a_random_transform_of_hugging_face(pictures, tmp_path):
    data = pictures[0].with_transform(flipped)
    assert as_dataset(data).source is not None
    runs = [fl.run({**SMALL, "data": data}, out=tmp_path / str(i)).digest for i in range(2)]
    assert runs[0] == runs[1]
