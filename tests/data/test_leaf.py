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


# -- files that do not fit --------------------------------------------------------------------------------------------
def content(**users) -> dict:
    """Return LEAF's file of users, name=(x, y)."""
    data = {u: {"x": x, "y": y} for u, (x, y) in users.items()}
    return {"users": list(data), "num_samples": [len(own["y"]) for own in data.values()], "user_data": data}


ROW = [0.1] * 9


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (content(a=([ROW] * 8, [0] * 7), b=([ROW] * 7, [0] * 8)), "t.json, user 'a': 8 of x and 7 of y"),
        (
            content(a=([ROW], [0])) | {"users": ["a", "c"], "num_samples": [1, 1]},
            "user 'c' of 'users' is not in 'user_",
        ),
        (content(a=([ROW], [0]), b=([ROW], [1])) | {"users": ["a"]}, "user 'b' of 'user_data' is not in 'users'"),
        (content(a=([ROW], [0])) | {"users": ["a", "a"], "num_samples": [1, 1]}, "user 'a' is in 'users' 2 times"),
        (content(a=([ROW], [0])) | {"num_samples": [2]}, "t.json, user 'a': 'num_samples' is 2, and there are 1 sam"),
        (content(a=([ROW], [0])) | {"num_samples": [1, 1]}, "'num_samples' has 2 entries for 1 users"),
        ({"user_data": {"a": {"x": [ROW]}}}, "user 'a': there are no lists 'x' and 'y'"),
        ({"user_data": ["a"]}, "t.json is not a file of LEAF"),
        (
            content(a=([ROW], [0]), b=([ROW[:8]], [0])),
            "t.json, user 'b': samples of shape .8,., and those of .*user 'a'",
        ),
        (content(a=([ROW], [0]), b=([ROW, ROW[:8]], [0, 1])), "t.json, user 'b': x is not a table of numbers"),
        (content(a=([ROW], [0]), b=([ROW, ROW], [0, "1"])), "t.json, user 'b': y mixes words and numbers"),
        (content(a=([ROW], [None])), "user 'a': y has missing labels"),
        (content(a=([], [])), "no user of .*train has samples"),
    ],
)
def test_users_that_do_not_fit(raw, message, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/t.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        Leaf(path=str(tmp_path), kind="table").load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "t.json is not a complete JSON file: it is empty"),
        (json.dumps(content(a=([ROW], [0]))).encode()[:60], "t.json is not a complete JSON file: .*line 1 column"),
        (json.dumps(content(a=([ROW], [0]))).encode("utf-16"), "t.json is not a complete JSON file: .*utf-8"),
    ],
)
def test_broken_files_are_named(text, message, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/s.json").write_text(json.dumps(content(b=([ROW], [0]))))
    (tmp_path / "train/t.json").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        Leaf(path=str(tmp_path), kind="table").load()


def test_a_byte_order_mark_is_taken(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/t.json").write_text(json.dumps(content(a=([ROW], [1]))), encoding="utf-8-sig")
    assert Leaf(path=str(tmp_path), kind="table").load().labels.tolist() == [1]


def test_a_user_in_two_files_has_the_samples_of_both(write):
    write("train", "a.json", {"u": ([[0.0], [1.0]], [0, 1]), "v": ([[2.0]], [2])})
    write("train", "b.json", {"u": ([[3.0]], [0])})
    data = Leaf(path="mine", kind="table").load()
    assert data.train["x"][:, 0].tolist() == [0, 1, 3, 2]
    assert data.labels.tolist() == [0, 1, 0, 2] and data.clients.tolist() == [0, 0, 0, 1]


def test_labels_that_are_words(write):
    write("train", "a.json", {"u": ([[0.0], [1.0]], ["dog", "cat"])})
    write("test", "a.json", {"u": ([[2.0]], ["eel"]), "new": ([[3.0]], ["dog"])})
    data = Leaf(path="mine", kind="table").load()
    assert data.labels.tolist() == [1, 0, 2] and data.test["y"].tolist() == [1]
    write("train", "a.json", {"u": ([[0.0], [1.0]], ["3", "7"])})
    write("test", "a.json", {"u": ([[2.0]], ["3"])})
    assert Leaf(path="mine", kind="table").load().labels.tolist() == [0, 1, 0]


def test_texts_of_sent140(write):
    """A sample is [id, date, query, user, text]. Texts are padded with spaces to the longest one."""
    tweets = [["1", "Mon", "NO_QUERY", "ann", "I am happy"], ["2", "Tue", "NO_QUERY", "ann", "sad"]]
    write("train", "a.json", {"ann": (tweets, [1, 0])})
    write("test", "a.json", {"bob": ([["3", "Wed", "NO_QUERY", "bob", "so so"]], [1])})
    data = Leaf(path="mine", kind="text").load()
    assert data.train["x"].tolist() == [encode("I am happy").tolist(), encode("sad       ").tolist()]
    assert data.labels.tolist() == [1, 0] and data.test["x"].tolist() == [encode("so so     ").tolist()]
    write("train", "a.json", {"ann": ([["1", "Mon"]], [1])})
    with pytest.raises(ValueError, match=r"user 'ann': \['1', 'Mon'\] is neither a text nor a list whose element 4"):
        Leaf(path="mine", kind="text").load()
