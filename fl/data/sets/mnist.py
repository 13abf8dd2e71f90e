"""MNIST with the writer of every digit: 60,000 + 10,000 images of 1 x 28 x 28 in [0, 1], 10 classes, from the data folder.

LeCun, Bottou, Bengio, Haffner 1998; writers and NIST series by Yadav, Bottou 2019 (QMNIST), arXiv:1905.10498. Read from
mnist/mnist.npz below the data folder: x_train, y_train, writer_train, hsf_train and the same of test. No writer is in both parts.
Without it the original four idx files are read, in mnist/ or MNIST/raw/; these know no writers and no series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Arrays, Dataset
from fl.data.folder import data_folder, find, first_with
from fl.data.images import read_idx, some_rows, unit
from fl.registry import register

IDX = {
    ("x", "train"): "train-images-idx3-ubyte",
    ("y", "train"): "train-labels-idx1-ubyte",
    ("x", "test"): "t10k-images-idx3-ubyte",
    ("y", "test"): "t10k-labels-idx1-ubyte",
}


@register("data", "mnist")
@dataclass(frozen=True, kw_only=True)
class MNIST:
    """Arrays x, y and hsf (the NIST series: 0 employees, 4 high-school students); the clients by nature are the writers.

    `train`, `test`: how many samples of each part, the first of an addressed shuffle (default: all, in the original order).
    `pooled`: all 70,000 rows are for training, train's before test's, and the server has no test set. This is PFLlib's protocol and
    NOT the canonical split: results on it are not comparable with results on the 10,000 test images.
    """

    train: int | None = None
    test: int | None = None
    pooled: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.pooled and self.test is not None:
            raise ValueError(f"test: {self.test} with pooled: true, which leaves no test set; leave one of them out")

    def load(self) -> Dataset:
        raw = _stored()
        if self.pooled:
            raw = {"train": {name: np.concatenate([a, raw["test"][name]]) for name, a in raw["train"].items()}}
        taken = {}
        for part, arrays in raw.items():
            rows = some_rows(part, getattr(self, part), len(arrays["y"]), self.seed, "mnist")
            taken[part] = {name: a[rows] for name, a in arrays.items()}
        writers = taken["train"].pop("writer", None)
        for arrays in taken.values():
            arrays.pop("writer", None)
            arrays["x"] = unit(arrays["x"][:, None])
            arrays |= {name: arrays[name].astype(np.int64) for name in arrays.keys() - {"x"}}
        return Dataset(taken["train"], taken.get("test"), None if writers is None else writers.astype(np.int64))


def _stored() -> dict[str, Arrays]:
    """The two parts as they lie in the data folder, pixels (N, 28, 28) uint8."""
    if not (data_folder() / "mnist" / "mnist.npz").is_file():
        files = first_with(("mnist", "MNIST/raw", "mnist/MNIST/raw"), *IDX.values())
        if files is not None:
            return {part: {name: read_idx(files[IDX[name, part]]) for name in "xy"} for part in ("train", "test")}
    with np.load(find("mnist", "mnist.npz")) as raw:
        return {
            part: {name: raw[f"{name}_{part}"] for name in ("x", "y", "hsf", "writer")} for part in ("train", "test")
        }
