"""Data of the user: functions, files, and the hub."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml
from numpy.testing import assert_array_equal

import fl
from fl import registry
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.dataset import Dataset
from fl.data.forms import as_dataset
from fl.data.sets.file import File
from fl.data.sets.hub import Hub
from fl.data.sets.mapped import Mapped
from fl.data.words import codes
from fl.errors import ConfigError
from tests.process import python

X, Y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2])


# -- return values of functions ---------------------------------------------------------------------------------------
def test_forms_of_arrays():
    whole = Dataset({"x": X[:4], "y": Y[:4]}, {"x": X[4:], "y": Y[4:]})
    assert as_dataset(whole) is whole
    assert as_dataset((X[:4], Y[:4], X[4:], Y[4:])).digest() == whole.digest()
    assert as_dataset({"train": {"x": X[:4], "y": Y[:4]}, "test": {"x": X[4:], "y": Y[4:]}}).digest() == whole.digest()
    alone = Dataset({"x": X, "y": Y}).digest()
    assert as_dataset((X, Y)).digest() == as_dataset({"x": X.tolist(), "y": Y.tolist()}).digest() == alone
    with_all = as_dataset(
        {"train": {"x": X, "y": Y}, "test": None, "clients": [5, 5, 5, 9, 9, 9], "server": {"x": X, "y": Y}}
    )
    assert with_all.clients.tolist() == [5, 5, 5, 9, 9, 9] and with_all.test is None and len(with_all.server["x"]) == 6


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "data: NoneType is not a Dataset, "),
        (X, "data: ndarray is not"),
        ((X, Y, X), "data: a tuple of 3 is not"),
        ({"images": X, "labels": Y}, r"data: a dict of \['images', 'labels'\] is not"),
        ({"train": {"x": X, "y": Y}, "tset": {"x": X, "y": Y}}, r"data: a dict of \['train', 'tset'\] is not"),
        ({"train": (X, Y)}, "data: train is tuple, not a dict of arrays"),
        ({"train": []}, "data: train is list, not a dict of arrays .* a configuration file names a data set"),
        ({"x": [["a"], ["b"]], "y": [0, 1]}, r"data: train.x is <U1 \(2, 1\), not an array of numbers"),
        ({"x": X, "y": ["a", "b", None, "a", "b", "c"]}, "data: train.y has None in row 2, which is not a word"),
        ({"x": [[1, 2], [3]], "y": [0, 1]}, "data: train.x is not an array"),
        ({"x": X, "y": 3}, r"data: train.y is int64 \(\), not an array"),
        ({"x": X, "y": Y[:5]}, "train: arrays differ in length"),
    ],
)
def test_anything_else_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        as_dataset(value)


SOURCE = """
import numpy as np
from fl.data.dataset import Dataset

def arrays(rows=40):
    x = np.arange(rows * 3.0).reshape(rows, 3) / rows
    return {"x": x, "y": np.arange(rows) % 2}

def dataset(rows=40):
    a = arrays(rows)
    return Dataset(a, clients=np.arange(rows) // 10)

def wrong():
    return [1, 2]
"""
TINY = {
    "rounds": 1,
    "partition": {"name": "iid", "clients": 4},
    "model": "softmax",
    "strategy": "fedavg",
    "cohort": {"size": 2},
    "client": {"lr": 0.1},
    "execution": {"executor": "serial"},
}


@pytest.mark.parametrize("name", ["arrays", "dataset"])
def test_a_function_in_a_file_beside_the_configuration(tmp_path, name):
    (tmp_path / "my_data.py").write_text(SOURCE)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(TINY | {"data": {"name": f"./my_data.py:{name}", "rows": 20}}))
    full = {"name": f"{tmp_path}/my_data.py:{name}", "rows": 20}
    assert resolve(read(tmp_path / "c.yaml")).to_dict()["data"] == full
    result = fl.run(tmp_path / "c.yaml", out=tmp_path / "run")
    assert len(result.metrics) == 1
    assert len(fl.resume(tmp_path / "run", rounds="+1").metrics) == 2


def test_a_function_that_returns_no_data(tmp_path):
    (tmp_path / "my_data.py").write_text(SOURCE)
    with pytest.raises(ConfigError, match="data: list is not a Dataset, "):
        fl.run(TINY | {"data": f"{tmp_path}/my_data.py:wrong"}, out=tmp_path / "run")


# -- files ------------------------------------------------------------------------------------------------------------
def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_npz_in_its_two_forms(tmp_path):
    flat = File(path=npz(tmp_path / "a.npz", x=X, y=Y, clients=Y)).load()
    assert_array_equal(flat.train["x"], X)
    assert flat.clients.tolist() == Y.tolist() and flat.test is None
    split = File(path=npz(tmp_path / "b.npz", x_train=X, y_train=Y, x_test=X[:2], y_test=Y[:2])).load()
    assert split.test["y"].tolist() == [0, 1] and split.clients is None
    words = File(path=npz(tmp_path / "c.npz", x_train=X, y_train=Y, clients=np.array(list("bbaacc")))).load()
    assert words.clients.tolist() == [1, 1, 0, 0, 2, 2] and words.test is None


def test_pixels_need_a_scale(tmp_path):
    path = npz(tmp_path / "a.npz", x=np.array([[0, 51], [255, 102]], np.uint8), y=[0, 1])
    with pytest.raises(ValueError, match="scale: x is uint8; set 255"):
        File(path=path).load()
    assert_array_equal(File(path=path, scale=255).load().train["x"], np.array([[0, 0.2], [1, 0.4]], np.float32))
    assert_array_equal(File(path=path, scale=1).load().train["x"], [[0, 51], [255, 102]])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "label": Y}, r"path: the file has \['label', 'x'\]; it needs x, y \[clients\], or x_train"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "it needs"),
        ({"x": X, "y": Y, "z": Y}, r"\['x', 'y', 'z'\]"),
        ({"x": X, "y": np.array([0, "a", 2, 3, 4, None], object)}, "holds Python objects"),
    ],
)
def test_npz_that_is_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        File(path=npz(tmp_path / "a.npz", **arrays)).load()


def table(path, **columns):
    parquet.write_table(pa.table(columns), path)
    return str(path)


def test_parquet_of_columns_and_of_lists(tmp_path):
    columns = {"age": [30, 40, 50], "label": ["no", "yes", "no"], "income": [1.5, 2.5, 3.5], "site": ["b", "a", "b"]}
    path = table(tmp_path / "a.parquet", **columns)
    data = File(path=path, target="label", clients="site").load()
    assert_array_equal(data.train["x"], [[30, 1.5], [40, 2.5], [50, 3.5]])
    assert data.train["x"].dtype == np.float32
    assert data.labels.tolist() == [0, 1, 0] and data.clients.tolist() == [1, 0, 1]
    one = File(path=path, target="label", features=("income",), test=table(tmp_path / "t.parquet", **columns)).load()
    assert_array_equal(one.test["x"], [[1.5], [2.5], [3.5]])
    lists = File(path=table(tmp_path / "l.parquet", v=[[1, 2], [3, 4]], y=[0.5, 1.5])).load()
    assert_array_equal(lists.train["x"], [[1, 2], [3, 4]])
    assert_array_equal(lists.train["y"], np.array([0.5, 1.5], np.float32))


def test_csv_is_read_as_parquet_is(tmp_path):
    columns = {"age": [30, 40, 50], "label": ["no", "yes", "no"], "income": [1.5, 2.5, 3.5], "site": ["b", "a", "b"]}
    lines = [",".join(map(str, row)) for row in (columns, *zip(*columns.values()))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    arguments = {"target": "label", "clients": "site"}
    text = File(path=str(tmp_path / "a.csv"), test=str(tmp_path / "a.csv"), **arguments).load()
    path = table(tmp_path / "a.parquet", **columns)
    assert text.digest() == File(path=path, test=path, **arguments).load().digest()
    assert text.labels.tolist() == [0, 1, 0] and text.clients.tolist() == [1, 0, 1]
    (tmp_path / "a.csv").write_text("\ufeffa,y\n1,0\n2,1\n")  # a spreadsheet's file
    assert_array_equal(File(path=str(tmp_path / "a.csv")).load().train["x"], [[1], [2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y\n1,0\n2,\n", "target: column 'y' has 1 missing values"),
        ("a,y\n1,cat\n2,\n", "target: column 'y' has 1 missing values"),
        ("a,y\nNA,0\n2,1\n", "features: column 'a' has 1 missing values"),
        ("a,y\nword,0\n", "features: column 'a' is string, not numbers"),
        ("a;y\n1;0\n", r"target: 'y' is not one of the columns \['a;y'\]"),
        ("a,y\n1,0,3\n", "path: .*a.csv cannot be read: .*Expected 2 columns, got 3"),
        ("", "path: .*a.csv cannot be read: Empty CSV file"),
        ("a,a,y\n1,0,3\n", "path: .*a.csv has several columns with the name 'a'"),
    ],
)
def test_csv_that_is_refused(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        File(path=str(tmp_path / "a.csv")).load()


def test_lists_are_rows_of_labels(tmp_path):
    path = table(tmp_path / "a.parquet", a=[1.0, 2.0], y=[[0, 1], [1, 1]])
    assert File(path=path).load().labels.tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match=r"target: the lists of column 'y' differ in length, \[1, 2\]"):
        File(path=table(tmp_path / "a.parquet", a=[1.0, 2.0], y=[[0, 1], [1]])).load()


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"a": [1.0]}, {}, r"target: 'y' is not one of the columns \['a'\]"),
        ({"a": [1.0], "y": [0]}, {"clients": "who"}, "clients: 'who' is not one of the columns"),
        ({"a": [1.0], "y": [0]}, {"features": ("b",)}, "features: 'b' is not one of"),
        ({"a": ["word"], "y": [0]}, {}, "features: column 'a' is string, not numbers"),
        ({"a": [1.0, None], "y": [0, 1]}, {}, "features: column 'a' has 1 missing values"),
        ({"a": [1.0, 2.0], "y": [0, None]}, {}, "target: column 'y' has 1 missing values"),
        ({"a": [[1.0], [1.0, 2.0]], "y": [0, 1]}, {}, r"features: the lists of column 'a' differ in length, \[1, 2\]"),
        ({"y": [0]}, {}, r"features: no column is left in \['y'\]"),
    ],
)
def test_parquet_that_is_refused(tmp_path, columns, arguments, message):
    with pytest.raises(ValueError, match=message):
        File(path=table(tmp_path / "a.parquet", **columns), **arguments).load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "a.tsv"}, "path: 'a.tsv' must end in .npz, .parquet or .csv"),
        ({"path": "a.npz", "target": "label"}, "target: 'label' is for .parquet"),
        ({"path": "a.npz", "scale": 0.0}, "scale: 0.0 is not positive"),
    ],
)
def test_files_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        File(**arguments)


def test_a_missing_file_names_both_places(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"path: none.npz is neither in .* nor in the data folder {tmp_path}"):
        File(path="none.npz").load()


def test_a_name_that_ends_as_a_file_is_one(tmp_path, monkeypatch):
    """The path is relative to the folder of the YAML file, and is resolved to the full path."""
    path = npz(tmp_path / "my.npz", x=X, y=Y)
    text = yaml.safe_dump(TINY) + "data: "
    for i, written in enumerate(("my.npz", "{name: ./my.npz}", "{name: file, path: my.npz}")):
        (tmp_path / f"{i}.yaml").write_text(text + written)
        config = resolve(read(tmp_path / f"{i}.yaml"))
        assert config.data.part == File(path=path)
        assert config.to_dict()["data"]["name"] == "file" and resolve(config.to_dict()).data == config.data
    (tmp_path / "digits.yaml").write_text(text + "{name: digits, seed: 1}")
    monkeypatch.chdir(tmp_path)
    for key in ("data", "data.name"):
        assert resolve(read("digits.yaml", {key: "my.npz"})).data.part == File(path=path)


def test_codes_number_words_alike():
    train, test = codes(np.array(["b", "a"]), np.array(["c", "b"]))
    assert train.tolist() == [1, 0] and test.tolist() == [2, 1]
    assert codes(np.array([7, 3]))[0].tolist() == [7, 3]


# -- hub --------------------------------------------------------------------------------------------------------------
def test_hub_without_its_package():
    code = (
        "import sys; sys.modules['datasets'] = None\nfrom fl.data.sets.hub import Hub\nHub(path='ylecun/mnist').load()"
    )
    done = python(code)
    assert done.stderr.splitlines()[-1] == "ValueError: name: hub needs the package datasets; pip install 'datasets>=3'"


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra fl[hub]")
    pixels = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
    colour = np.arange(4 * 6 * 5 * 3, dtype=np.uint16).reshape(4, 6, 5, 3).astype(np.uint8)
    columns = {
        "image": list(pixels),
        "rgb": list(colour),
        "label": [3, 1, 0, 3],
        "a": [1, 2, 3, 4],
        "who": list("yxyx"),
    }
    types = datasets.Dataset.from_dict({"a": [1]}).features | {"label": datasets.ClassLabel(num_classes=4)}
    types |= {"image": datasets.Image(), "rgb": datasets.Image(), "who": datasets.Value("string")}
    whole = datasets.Dataset.from_dict(columns, features=datasets.Features(types))
    datasets.DatasetDict({"train": whole, "test": whole.select([2])}).save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved"), pixels, colour


def test_hub_reads_images_numbers_and_clients(saved):
    path, pixels, colour = saved
    data = Hub(path=path, clients="who").load()
    assert data.train["x"].shape == (4, 1, 6, 5) and data.train["x"].dtype == np.float32
    assert_array_equal(data.train["x"][:, 0], pixels.astype(np.float32) / np.float32(255))
    assert data.labels.tolist() == [3, 1, 0, 3] and data.clients.tolist() == [1, 0, 1, 0]
    assert data.test["y"].tolist() == [0]
    rgb = Hub(path=path, features=("rgb",), test=None).load()
    assert rgb.test is None
    assert_array_equal(rgb.train["x"], colour.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    assert_array_equal(Hub(path=path, features=("a", "label")).load().train["x"], [[1, 3], [2, 1], [3, 0], [4, 3]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": "training"}, r"train: 'training' is not one of the parts \['test', 'train'\]"),
        ({"target": "y"}, "target: 'y' is not one of the columns"),
        ({"features": ("who",)}, "features: column 'who' is string"),
        ({"features": ("image", "rgb")}, "features: .*a single column"),
        ({"features": ("pixels",)}, "features: 'pixels' is not one of"),
    ],
)
def test_hub_refuses(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        Hub(path=saved[0], **arguments).load()


def test_hub_reads_a_folder_of_parquet_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs the extra fl[hub]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "parts").mkdir()
    table(tmp_path / "parts/train.parquet", a=[1.0, 2.0, 3.0], label=["x", "z", "x"])
    table(tmp_path / "parts/test.parquet", a=[4.0], label=["y"])
    data = Hub(path=str(tmp_path / "parts"), features=("a",)).load()
    assert_array_equal(data.train["x"], [[1], [2], [3]])
    assert data.labels.tolist() == [0, 2, 0] and data.test["y"].tolist() == [1]


# -- docs -------------------------------------------------------------------------------------------------------------
DOCS = (Path(fl.__file__).parent.parent / "docs/data.md").read_text()


def test_the_table_has_every_data_set():
    assert [name for name in registry.names("data") if f"| `{name}` |" not in DOCS] == []


def test_the_function_of_the_docs(tmp_path):
    (tmp_path / "my_data.py").write_text(re.search(r"```python\n(.*?)```", DOCS, re.S)[1])
    data = resolve(TINY | {"data": {"name": f"{tmp_path}/my_data.py:load", "rows": 200}}).data.load()
    assert (len(data), len(data.test["y"])) == (180, 20)


def test_the_configurations_of_the_docs(tmp_path):
    npz(tmp_path / "my_data.npz", x=X, y=Y)
    table(tmp_path / "patients.parquet", age=[30, 40], disease=[0, 1], hospital=["b", "a"])
    rows = []
    for i, block in enumerate(re.findall(r"```yaml\n(.*?)```", DOCS, re.S)):
        (tmp_path / f"{i}.yaml").write_text(yaml.safe_dump(TINY) + block)
        loader = resolve(read(tmp_path / f"{i}.yaml")).data.part
        rows.append(len(loader.load()) if isinstance(loader, File) else loader)
    assert rows == [6, 2, Mapped(path="my_set"), Hub(path="ylecun/mnist", revision="main")]
