"""Data sets made with LEAF's scripts. Users are the natural owners, and they keep their own test samples.

    PATH/train/*.json, PATH/test/*.json:
    {"users": [u, ...], "num_samples": [...], "user_data": {u: {"x": [...], "y": [...]}}}

Caldas, Duddu, Wu, Li, Konecny, McMahan, Smith, Talwalkar 2018, arXiv:1812.01097; TalwalkarLab/leaf. Clients are
numbered by their names in ascending order. Users with test samples only (LEAF's split by user) are not clients; their
samples are the server's test set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fl.checks import one_of
from fl.data.chars import encode
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.folder import data_folder
from fl.registry import register

Samples = Mapping[str, Any]  # x and y of one user


@register("data", "leaf")
@dataclass(frozen=True, kw_only=True)
class Leaf(Loader):
    """A data set made with LEAF's scripts.

    Args:
        path: The folder that contains train/ and test/; a relative path starts at the data folder.
        kind: `image` (femnist: 784 numbers -> 1 x 28 x 28), `text` (shakespeare: strings -> ids of `fl.data.chars`) or
            `table` (synthetic: vectors of numbers).
    """

    path: str
    kind: Literal["image", "text", "table"]

    def __post_init__(self) -> None:
        one_of(("image", "text", "table"), kind=self.kind)

    def load(self) -> Dataset:
        train, test = self._users("train"), self._users("test")
        names = sorted(train)
        parts = [part[name] for name in names for part in (train, test) if name in part]
        sizes = [len(part["y"]) for part in parts]
        held = [is_test for name in names for is_test, part in ((False, train), (True, test)) if name in part]
        owners = [i for i, name in enumerate(names) for part in (train, test) if name in part]
        strangers = [test[name] for name in sorted(test) if name not in train]
        return Dataset(
            self._arrays(parts),
            self._arrays(strangers) if strangers else None,
            np.repeat(np.array(owners, np.int64), sizes),
            held=np.repeat(held, sizes) if test else None,
        )

    def _users(self, part: str) -> dict[str, Samples]:
        """Return the samples of each user that has any. The test part may be missing."""
        files = sorted((data_folder() / self.path / part).glob("*.json"))
        if not files and part == "train":
            raise ValueError(
                f"path: there is no train/*.json in {data_folder() / self.path}; make it with LEAF's preprocess.sh, "
                "put it there, or set FL_DATA to the folder that has it"
            )
        found: dict[str, Samples] = {}
        for path in files:
            found |= {user: own for user, own in _read(path).items() if len(own["y"])}
        return found

    def _arrays(self, parts: list[Samples]) -> Arrays:
        y = [label for part in parts for label in part["y"]]
        if self.kind != "text":
            x = np.concatenate([np.asarray(part["x"], np.float32) for part in parts])
            return {"x": self._images(x) if self.kind == "image" else x, "y": np.array(y)}
        texts = [text for part in parts for text in part["x"]]
        lengths = sorted({*map(len, texts)})
        if len(lengths) > 1:
            raise ValueError(
                f"kind: the texts are {lengths[0]} to {lengths[-1]} characters long; they must have one length"
            )
        return {"x": encode("".join(texts)).reshape(len(texts), -1), "y": encode("".join(y)).astype(np.int64)}

    @staticmethod
    def _images(x: np.ndarray) -> np.ndarray:
        side = math.isqrt(x[0].size)
        if side * side != x[0].size:
            raise ValueError(f"kind: {x[0].size} numbers are not a square image with one channel; use 'table'")
        return x.reshape(-1, 1, side, side)


def _read(path: Path) -> dict[str, Samples]:
    with open(path, encoding="utf-8") as file:
        raw = json.load(file)
    if not isinstance(raw, dict) or "user_data" not in raw:
        raise ValueError(f"path: {path} is not a file of LEAF: it has no 'user_data'")
    return raw["user_data"]
