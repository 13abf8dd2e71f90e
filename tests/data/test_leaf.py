"""LEAF's JSON files: users as clients, their test samples, and users with test samples only."""

import json

import numpy as np
import pytest

from fl.data.chars import encode
from fl.data.sets.leaf import Leaf
from partitions.natural import Natural


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DATA", str(tmp_path))

    def to(part: str, name: str, users: dict) -> None:
        folder = tmp_path / "mine" / part
        folder.mkdir(parents=True, exist_ok=True)
        data = {u: {"x": x, "y": y} for u, (x, y) in users.items()}
        sizes = [len(own["y"]) for own in data.values()]
        (folder / name).write_text(json.dumps({"users": list(data), "num_samples": sizes, "user_data": data}))

    return to


def pixels(value: float) -> list[float]:
    return [value] * 783 + [1.0]


def test_images_of_two_files(write):
    write("train", "a.json", {"f2": ([pixels(0.2), pixels(0.3)], [5, 61]), "nobody": ([], [])})
    write("train", "b.json", {"f1": ([pixels(0.1)], [0])})
    write("test", "a.json", {"f2": ([pixels(0.25)], [7]), "new": ([pixels(0.9)], [3])})
    data = Leaf(path="mine", kind="image").load()
    assert data.train["x"].shape == (4, 1, 28, 28) and data.train["x"].dtype == np.float32
    np.testing.assert_allclose(data.train["x"][:, 0, 0, 0], [0.1, 0.2, 0.3, 0.25])
    assert np.all(data.train["x"][:, 0, 27, 27] == 1)
    assert data.labels.tolist() == [0, 5, 61, 7] and data.clients.tolist() == [0, 1, 1, 1]
    assert data.test["y"].tolist() == [3] and data.test["x"].shape == (1, 1, 28, 28)
    partition = Natural().split(data)
    assert [partition.view_rows(c, "test").tolist() for c in (0, 1)] == [[], [3]]


def test_texts(write):
    write("train", "a.json", {"HAMLET": (["To be, or", "o be, or "], [" ", "n"])})
    data = Leaf(path="mine", kind="text").load()
    assert data.train["x"].tolist() == [encode("To be, or").tolist(), encode("o be, or ").tolist()]
    assert data.labels.tolist() == encode(" n").tolist()
    assert data.test is None and data.held is None


def test_refusals(write):
    with pytest.raises(ValueError, match="kind: 'audio' is not one of"):
        Leaf(path="mine", kind="audio")
    with pytest.raises(ValueError, match="path: there is no train/.*set FL_DATA"):
        Leaf(path="mine", kind="text").load()
    write("train", "a.json", {"a": (["abc", "ab"], ["d", "c"])})
    with pytest.raises(ValueError, match="the texts are 2 to 3 characters long"):
        Leaf(path="mine", kind="text").load()
    write("train", "a.json", {"a": ([[0.0] * 60], [1])})
    with pytest.raises(ValueError, match="60 numbers are not a square image"):
        Leaf(path="mine", kind="image").load()
    assert Leaf(path="mine", kind="table").load().train["x"].shape == (1, 60)
