"""MNIST with the writer of each digit: 60,000 + 10,000 images of 1 x 28 x 28 in [0, 1], 10 classes.

LeCun, Bottou, Bengio, Haffner 1998; writers and NIST series by Yadav, Bottou 2019 (QMNIST), arXiv:1905.10498. The file
mnist/mnist.npz of the data folder has x_train, y_train, writer_train, hsf_train and the same for test. No writer is in
both parts. Without it, the original four idx files in mnist/ or MNIST/raw/ are read, which have no writers and no
series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.data.archives import read_npz
from fl.data.dataset import Arrays, Dataset, Loader
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
class MNIST(Loader):
    """MNIST: arrays x, y and hsf (NIST series: 0 employees, 4 high-school students). Natural owners are the writers.

    Args:
        train: Number of training samples, positive, chosen at random. Default: all, in the stored order.
        test: Number of test samples, positive, chosen at random. Default: all, in the stored order.
        pooled: Use all 70,000 rows for training, those of `train` first; the server has no test set. This is PFLlib's
            protocol and NOT the canonical split: results are not comparable with results on the 10,000 test images.
        seed: Seed of the shuffle.
    """

    train: int | None = None
    test: int | None = None
    pooled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pooled and self.test is not None:
            raise ValueError(f"test: {self.test} with pooled: true, which leaves no test set; remove one of them")

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
    """Read the two parts, pixels (N, 28, 28) uint8."""
    if not (data_folder() / "mnist" / "mnist.npz").is_file():
        files = first_with(("mnist", "MNIST/raw", "mnist/MNIST/raw"), *IDX.values())
        if files is not None:
            return {part: {name: read_idx(files[IDX[name, part]]) for name in "xy"} for part in ("train", "test")}
    raw = read_npz(find("mnist", "mnist.npz"), key="data")
    return {part: {name: raw[f"{name}_{part}"] for name in ("x", "y", "hsf", "writer")} for part in ("train", "test")}
