"""USPS: 7,291 + 2,007 handwritten digits of 1 x 16 x 16 in [0, 1], 10 classes; a second domain of MNIST's classes.

Hull 1994, doi:10.1109/34.291440. Read from usps/usps.npz in the data folder (x_train, y_train, x_test, y_test, uint8),
or from usps/usps.bz2 and usps/usps.t.bz2 of LIBSVM's page (values in [-1, 1], labels 1..10 for the digits 0..9).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl.checks import positive
from fl.data.archives import read_npz
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.folder import data_folder, find, first_with
from fl.data.images import resized, some_rows, unit
from fl.registry import register


def read_libsvm(path: Path) -> Arrays:
    """Read one of LIBSVM's two files: x float32 (N, 16, 16) in [0, 1] and y (N,)."""
    from sklearn.datasets import load_svmlight_file

    x, y = load_svmlight_file(str(path), n_features=256)
    return {"x": ((x.toarray() + 1) / 2).astype(np.float32).reshape(-1, 16, 16), "y": y.astype(np.int64) - 1}


@register("data", "usps")
@dataclass(frozen=True, kw_only=True)
class USPS(Loader):
    """USPS digits.

    Args:
        train: Number of training samples, positive, chosen at random. Default: all, in the stored order.
        test: Number of test samples, positive, chosen at random. Default: all, in the stored order.
        side: Height and width in pixels, positive; other values than 16 resize bilinearly. MNIST has 28.
        seed: Seed of the shuffle.
    """

    train: int | None = None
    test: int | None = None
    side: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        positive(side=self.side, hint="16 keeps the original images")

    def load(self) -> Dataset:
        parts = {}
        for part, arrays in _stored().items():
            rows = some_rows(part, getattr(self, part), len(arrays["y"]), self.seed, "usps")
            x = arrays["x"][rows]
            parts[part] = {
                "x": resized((unit(x) if x.dtype == np.uint8 else x)[:, None], 1, self.side),
                "y": arrays["y"][rows].astype(np.int64),
            }
        return Dataset(parts["train"], parts["test"])


def _stored() -> dict[str, Arrays]:
    names = {"train": "usps.bz2", "test": "usps.t.bz2"}
    files = first_with(("usps",), *names.values())
    if files is not None and not (data_folder() / "usps" / "usps.npz").is_file():
        return {part: read_libsvm(files[name]) for part, name in names.items()}
    raw = read_npz(find("usps", "usps.npz"), key="data")
    return {part: {"x": raw[f"x_{part}"], "y": raw[f"y_{part}"]} for part in names}
