"""Data sets and partitions that users bring."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.robustness.case import Case, Changes, Status
from experiments.robustness.networks import Ids, OneHotIds
from fl.data.partition import Partition

N = 60
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
Y = np.arange(N) % 3
WORDS = np.array(["cat", "dog", "eel"])[Y]
IDS = (np.arange(N * 4).reshape(N, 4) % 12).astype(np.int64)
USER = {"x": [[0.1] * 6] * 8, "y": [0, 1, 2, 0] * 2}


def changed(array: np.ndarray, value: Any, *at: int) -> np.ndarray:
    """Return an array with another value in one place, by default in row 17."""
    array = array.astype(np.result_type(array, type(value)))
    array[at or 17] = value
    return array


def arrays(x: Any = X, y: Any = Y, **more: Any) -> Changes:
    """Return the changes for a run on 60 rows of these arrays at 4 clients."""
    return {"data": lambda: {"train": {"x": x, "y": y}, **more}, "partition": {"name": "iid", "clients": 4}}


def _case(kind: str, name: str, changes: Any, message: str = "", expected: Status | None = None) -> Case:
    status: Status = expected or ("refused" if message else "same bits")
    return Case(kind, name, changes, status, message)


def _label(name: str, y: np.ndarray, message: str = "", **more: Any) -> Case:
    return _case("data: labels", name, {**arrays(y=y), **more}, message)


LABELS = [
    _label("whole floats", Y.astype(float)),
    _label("bools", Y > 0),
    _label("(N, 1)", Y[:, None]),
    _label("words", WORDS),
    _label("-100", changed(Y, -100), r"train y has -100 in row 17 \(1 of 60"),
    _label("-1", changed(Y, -1), r"train y has -1 in row 17 \(1 of 60"),
    _label("0.5", changed(Y, 0.5), r"train y has 0.5 in row 17 \(1 of 60"),
    _label("NaN", changed(Y, np.nan), r"train y has nan in row 17 \(1 of 60"),
    _label("10^9", Y * 10**9, r"3 different values up to 2000000000 \(row 2\)"),
    _label("ids with gaps", Y * 100),
    _case(
        "data: labels",
        "-100 in the test set",
        {**arrays(test={"x": X, "y": changed(Y, -100)}), "evaluation.server": True},
        r"test y has -100 in row 17",
    ),
    _case("data: labels", "regression: whole numbers", {**arrays(), "task": "regression", "client.lr": 0.01}),
    _label("regression: NaN", changed(Y, np.nan), r"train y has nan in row 17", task="regression"),
    _label("regression: words", WORDS, "this task needs numbers", task="regression"),
    _label("multilabel: 2", 2 * np.eye(3, dtype=int)[Y], "train y has 2 in row 0, column 0", task="multilabel"),
    _label("multilabel: -1", -np.eye(3, dtype=int)[Y], "train y has -1 in row 0, column 0", task="multilabel"),
]


def _feature(name: str, x: np.ndarray, message: str = "", **more: Any) -> Case:
    return _case("data: features", name, {**arrays(x), **more}, message)


FEATURES = [
    *(_feature(f"{np.dtype(t).name} for numbers", (5 * X).astype(t)) for t in (np.int64, np.uint8, bool)),
    _feature("one dimension", X[:, 0], model="mlp"),
    _feature("one dimension of integers", Y, "x int64 .* is one number per row", model="mlp"),
    _feature("NaN", changed(X, np.nan, 17, 4), r"train x has nan in row 17, column 4 \(1 of 360"),
    _feature("infinity", changed(X, np.inf, 17, 4), r"train x has inf in row 17, column 4 \(1 of 360"),
]
BEYOND = r"x has 12 in row 33, column 2 \(1 of 240 .*above 11"
BELOW = r"x has -1 in row 33, column 2 \(1 of 240 .*below 0"
FEATURES += [
    _case("data: ids", name, {**arrays(x), "model": model}, message)
    for name, model, x, message in (
        ("known ones", Ids, IDS, ""),
        ("known ones as floats", Ids, IDS.astype(np.float32), ""),
        ("12 of 0 to 11", Ids, changed(IDS, 12, 33, 2), BEYOND),
        ("12 as a float", Ids, changed(IDS, 12.0, 33, 2), BEYOND),
        ("12, one-hot", OneHotIds, changed(IDS, 12, 33, 2), BEYOND),
        ("-1", Ids, changed(IDS, -1, 33, 2), BELOW),
    )
]
FEATURES.append(
    _case(
        "data: ids",
        "12 in the test set",
        {**arrays(IDS, test={"x": changed(IDS, 12, 33, 2), "y": Y}), "model": Ids, "evaluation.server": True},
        BEYOND,
    )
)
ROWS = [
    _case("data: rows", "no test rows", arrays(test={"x": X[:0], "y": Y[:0]})),
    _case("data: rows", "no training rows", arrays(X[:0], Y[:0]), "train has no rows"),
    _case("data: rows", "no labels", {**arrays(), "data": lambda: {"x": X}}, "train has no 'y'"),
    _case("data: rows", "more x than y", arrays(y=Y[:50]), "arrays differ in length"),
]


# -- files ------------------------------------------------------------------------------------------------------------
def _npz(folder: Path) -> Changes:
    np.savez(folder / "a.npz", x=X, y=WORDS)
    return {**arrays(), "data": f"{folder}/a.npz"}


def _mapped(folder: Path) -> Changes:
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", WORDS)
    return {**arrays(), "data": {"name": "mapped", "path": str(folder)}}


def _mapped_integers(folder: Path) -> Changes:
    changes = _mapped(folder)
    np.save(folder / "x.npy", (5 * X).astype(int))
    return changes


def _csv(folder: Path) -> Changes:
    rows = [",".join([*(f"x{i}" for i in range(6)), "y"])]
    rows += [",".join([*map(str, x), word]) for x, word in zip(X, WORDS)]
    (folder / "a.csv").write_text("\n".join(rows))
    return {**arrays(), "data": f"{folder}/a.csv"}


def _leaf(*files: Any) -> Callable[[Path], Changes]:
    def changes(folder: Path) -> Changes:
        (folder / "train").mkdir(exist_ok=True)
        for i, content in enumerate(files):
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / "train" / f"{i}.json").write_text(text, encoding="utf-8")
        return {"data": {"name": "leaf", "path": str(folder), "kind": "table"}, "cohort.size": 2}

    return changes


def _users(**users: Mapping[str, Any]) -> dict[str, Any]:
    return {"users": list(users), "num_samples": [len(u["y"]) for u in users.values()], "user_data": users}


TWO, SAYS = _users(a=USER, b=USER), USER | {"y": ["3", "4"] * 4}
FILES = [
    _case("data: files", "words in .npz", _npz),
    _case("data: files", "words in `mapped`", _mapped),
    _case("data: files", "integers in `mapped` for numbers", _mapped_integers, "mapped features are not converted"),
    _case("data: files", "words in .csv", _csv),
    _case("data: LEAF", "a user in two files", _leaf(TWO, _users(a=USER))),
    _case("data: LEAF", "byte order mark", _leaf("\ufeff" + json.dumps(TWO))),
    _case("data: LEAF", "labels as words", _leaf(_users(a=SAYS, b=SAYS))),
    _case("data: LEAF", "8 of x and 7 of y", _leaf(_users(a=USER | {"y": [0] * 7}, b=USER)), "user 'a': 8 of x and 7"),
    _case("data: LEAF", "a missing user", _leaf(TWO | {"users": ["a", "z"]}), "user 'z' of 'users' is not in"),
    _case("data: LEAF", "wrong `num_samples`", _leaf(TWO | {"num_samples": [9, 8]}), "'num_samples' is 9, and there"),
    _case("data: LEAF", "cut off", _leaf(json.dumps(TWO)[:100]), "0.json is not a complete JSON file"),
    _case("data: LEAF", "empty", _leaf(""), "0.json is not a complete JSON file: it is empty"),
    _case(
        "data: LEAF",
        "other number of features",
        _leaf(_users(a=USER, b=USER | {"x": [[0.1] * 5] * 8})),
        r"user 'b': samples of shape \(5,\)",
    ),
]


# -- partitions -------------------------------------------------------------------------------------------------------
class Own:
    """A partition with these rows and offsets; `overlaps` and `leaves_rows` as declared."""

    def __init__(self, indices: Any, offsets: Any = (0, 30, 60), **declared: bool):
        self.indices, self.offsets = indices, offsets
        vars(self).update(declared)

    def split(self, dataset: Any) -> Partition:
        return Partition(self.indices, np.array(self.offsets))


class Lists:
    """A partition that returns lists."""

    def split(self, dataset: Any) -> Any:
        return [[0, 1], [2, 3]]


def _partition(name: str, part: Any, message: str = "") -> Case:
    return _case("partitions", name, {**arrays(), "partition": part, "cohort.size": 2}, message)


def _file(name: str, message: str = "", **content: Any) -> Case:
    def changes(folder: Path) -> Changes:
        np.savez(folder / "p.npz", **content)
        return {**arrays(), "partition": {"name": "file", "path": f"{folder}/p.npz"}, "cohort.size": 2}

    return _case("partitions", name, changes, message)


PARTITIONS = [
    _partition("whole floats", Own(np.arange(60.0))),
    _partition("rows given twice", Own(np.arange(60) % 20), "row 0 is given 3 times"),
    _partition("declared overlap", Own(np.arange(60) % 20, overlaps=True, leaves_rows=True)),
    _partition("rows left out", Own(np.arange(50), (0, 30, 50)), "10 of 60 rows belong to no client"),
    _partition("fractions", Own(np.arange(60) + 0.5), "0.5 at position 0 is not a whole number"),
    _partition("rows beyond the data", Own(np.arange(60) + 1), "1..60 exceed the 60 rows"),
    _partition("lists", Lists(), "Lists.split returned list, not a Partition"),
    _file("file: too few owners", "40 entries for the 60 rows", client=np.arange(40) % 4),
    _file("file: fractional owners", "0.5 at position 0", client=np.arange(60) % 4 + 0.5),
    _file("file: fractional rows", "0.5 at position 0", indices=[0.5, 0.7], offsets=[0, 1, 2]),
    _file("file: whole floats", client=np.arange(60.0) % 4),
]
DATA = LABELS + FEATURES + ROWS + FILES + PARTITIONS
