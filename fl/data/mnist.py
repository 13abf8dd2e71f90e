"""MNIST with the writer of every digit: 60,000 + 10,000 images of 1 x 28 x 28 in [0, 1], 10 classes, from the data folder.

LeCun, Bottou, Bengio, Haffner 1998; writers and NIST series by Yadav, Bottou 2019 (QMNIST), arXiv:1905.10498. Read from
mnist/mnist.npz below the data folder: x_train, y_train, writer_train, hsf_train and the same of test. No writer is in both parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl import random
from fl.data.dataset import Dataset
from fl.data.folder import find
from fl.registry import register


@register("data", "mnist")
@dataclass(frozen=True, kw_only=True)
class MNIST:
    """Arrays x, y and hsf (the NIST series: 0 employees, 4 high-school students); the clients by nature are the writers.

    `train`, `test`: how many samples of each part, the first of an addressed shuffle (default: all, in the original order).
    """

    train: int | None = None
    test: int | None = None
    seed: int = 0

    def load(self) -> Dataset:
        with np.load(find("mnist", "mnist.npz")) as raw:
            rows = {part: self._rows(part, len(raw[f"y_{part}"])) for part in ("train", "test")}
            arrays = {
                part: {
                    "x": raw[f"x_{part}"][at][:, None].astype(np.float32) / np.float32(255),
                    "y": raw[f"y_{part}"][at].astype(np.int64),
                    "hsf": raw[f"hsf_{part}"][at].astype(np.int64),
                }
                for part, at in rows.items()
            }
            writers = raw["writer_train"][rows["train"]].astype(np.int64)
        return Dataset(arrays["train"], arrays["test"], writers)

    def _rows(self, part: str, there: int) -> np.ndarray:
        wanted = getattr(self, part)
        if wanted is None:
            return np.arange(there)
        if not 1 <= wanted <= there:
            raise ValueError(f"{part}: {wanted} is not in 1..{there}, the samples that there are; leave it out to take all")
        return random.permutation(there, self.seed, "mnist", part)[:wanted]
