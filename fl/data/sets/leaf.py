"""Data sets made with LEAF's scripts. Users are the natural owners, and they keep their own test samples.

    PATH/train/*.json, PATH/test/*.json:
    {"users": [u, ...], "num_samples": [...], "user_data": {u: {"x": [...], "y": [...]}}}

Caldas, Duddu, Wu, Li, Konecny, McMahan, Smith, Talwalkar 2018, arXiv:1812.01097; TalwalkarLab/leaf. Clients are
numbered by their names in ascending order. Users with test samples only (LEAF's split by user) are not clients; their
samples are the server's test set. A user in several files of one folder has the samples of all of them. Labels that
are words are numbered in sorted order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fl.checks import one_of
from fl.data.chars import encode
from fl.data.dataset import Dataset, Loader
from fl.data.folder import data_folder
from fl.data.sets.leaf_file import User, read
from fl.registry import register

TEXT = 4  # position of the text in a sample of Sent140: id, date, query, user, text


@register("data", "leaf")
@dataclass(frozen=True, kw_only=True)
class Leaf(Loader):
    """A data set made with LEAF's scripts.

    Args:
        path: The folder that contains train/ and test/; a relative path starts at the data folder.
        kind: `image` (femnist: 784 numbers -> 1 x 28 x 28), `text` (shakespeare and sent140: strings -> ids of
            `fl.data.chars`; sent140's texts are padded with spaces) or `table` (synthetic: vectors of numbers).
    """

    path: str
    kind: Literal["image", "text", "table"]

    def __post_init__(self) -> None:
        one_of(("image", "text", "table"), kind=self.kind)

    def load(self) -> Dataset:
        train, test = self._users("train"), self._users("test")
        names = sorted(train)
        if not names:
            raise ValueError(f"path: no user of {data_folder() / self.path / 'train'} has samples")
        parts = [part[name] for name in names for part in (train, test) if name in part]
        sizes = [len(part.y) for part in parts]
        held = [is_test for name in names for is_test, part in ((False, train), (True, test)) if name in part]
        owners = [i for i, name in enumerate(names) for part in (train, test) if name in part]
        strangers = [test[name] for name in sorted(test) if name not in train]
        xs, ys = self._features([*parts, *strangers]), _labels([*parts, *strangers], self.kind)
        first = sum(sizes)
        return Dataset(
            {"x": xs[:first], "y": ys[:first]},
            {"x": xs[first:], "y": ys[first:]} if strangers else None,
            np.repeat(np.array(owners, np.int64), sizes),
            held=np.repeat(held, sizes) if test else None,
        )

    def _users(self, part: str) -> dict[str, User]:
        """Return the samples of each user that has any. The test part may be missing."""
        files = sorted((data_folder() / self.path / part).glob("*.json"))
        if not files and part == "train":
            raise ValueError(
                f"path: there is no train/*.json in {data_folder() / self.path}; make it with LEAF's preprocess.sh, "
                "put it there, or set FL_DATA to the folder that has it"
            )
        found: dict[str, User] = {}
        for path in files:
            for name, user in read(path).items():
                found[name] = found[name].joined(user) if name in found else user
        return {name: user for name, user in found.items() if user.y}

    def _features(self, users: Sequence[User]) -> np.ndarray:
        """Return the features of all samples."""
        if self.kind == "text":
            return encoded(users)
        x = np.concatenate(_tables(users))
        return self._images(x) if self.kind == "image" else x

    @staticmethod
    def _images(x: np.ndarray) -> np.ndarray:
        side = math.isqrt(x[0].size)
        if side * side != x[0].size:
            raise ValueError(f"kind: {x[0].size} numbers are not a square image with one channel; use 'table'")
        return x.reshape(-1, 1, side, side)


def encoded(users: Sequence[User]) -> np.ndarray:
    """Return the ids of all texts. Sent140's are padded with spaces; others must have one length."""
    listed = {type(sample) for user in users for sample in user.x} == {list}
    texts = [_text(user, sample) for user in users for sample in user.x]
    lengths = sorted({*map(len, texts)})
    if listed:
        texts = [text.ljust(lengths[-1]) for text in texts]
    elif len(lengths) > 1:
        raise ValueError(
            f"kind: the texts are {lengths[0]} to {lengths[-1]} characters long; they must have one length"
        )
    return encode("".join(texts)).reshape(len(texts), -1)


def _text(user: User, sample: Any) -> str:
    text = sample[TEXT] if isinstance(sample, list) and len(sample) > TEXT else sample
    if not isinstance(text, str):
        raise ValueError(f"kind: {user.place}: {sample!r:.60} is neither a text nor a list whose element {TEXT} is one")
    return text


def _tables(users: Sequence[User]) -> list[np.ndarray]:
    """Return the numbers of each user, (n, ...) float32, with one shape of a sample for all."""
    tables: list[np.ndarray] = []
    for user in users:
        try:
            table = np.asarray(user.x, np.float32)
        except (ValueError, TypeError) as error:
            raise ValueError(f"kind: {user.place}: x is not a table of numbers: {error}") from None
        if tables and table.shape[1:] != tables[0].shape[1:]:
            raise ValueError(
                f"kind: {user.place}: samples of shape {table.shape[1:]}, and those of {users[0].place} have "
                f"{tables[0].shape[1:]}; all need one shape"
            )
        tables.append(table)
    return tables


def _labels(users: Sequence[User], kind: str) -> np.ndarray:
    """Return the labels of all samples: ids of characters for texts (Shakespeare), else numbers or words."""
    labels = [label for user in users for label in user.y]
    if kind == "text" and all(isinstance(sample, str) for user in users for sample in user.x):
        if all(isinstance(label, str) and len(label) == 1 for label in labels):
            return encode("".join(labels)).astype(np.int64)
    for user in users:
        shapes = {len(label) if isinstance(label, list) else None for label in user.y}
        if len(shapes) > 1 or None in user.y or any(isinstance(label, dict) for label in user.y):
            raise ValueError(f"path: {user.place}: y has missing labels, or labels of different lengths")
    words = sum(isinstance(label, str) for label in labels)
    if words not in (0, len(labels)):
        mixed = str if isinstance(labels[0], str) else (int, float, list)
        user = next(user for user in users if not all(isinstance(label, mixed) for label in user.y))
        raise ValueError(f"path: {user.place}: y mixes words and numbers; use either")
    try:
        return np.array(labels)
    except ValueError as error:
        raise ValueError(f"path: labels of users differ in length: {error}") from None
