"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 images of 3 x 32 x 32 in [0, 1], from the data folder.

Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images. The original binary version is read if it is
present, otherwise a compressed copy. The pixels of the copy differ from the original (mean-squared error about 65 on
0..255, 30 dB); mention this when you report a result.

    cifar10    cifar10/cifar-10-batches-bin/*.bin      or  cifar10/cifar10_jpeg.npz   JPEG, quality 75; canonical split
    cifar100   cifar100/cifar-100-binary/*.bin         or  cifar100/cifar100_webp.npz WebP, quality 75; NOT canonical
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.checks import one_of
from fl.data.archives import read_npz
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.folder import find, first_with
from fl.data.images import read_cifar, some_rows, unit
from fl.registry import register

PARTS = ("train", "test")


@register("data", "cifar10")
@dataclass(frozen=True, kw_only=True)
class CIFAR10(Loader):
    """CIFAR-10: 10 classes, 5,000 training and 1,000 test images per class, the canonical split.

    Without the original files, a JPEG-compressed copy in another order is used; results then differ in the decimals.

    Args:
        train: Number of training samples, positive, chosen at random. Default: all, in the stored order.
        test: Number of test samples, positive, chosen at random. Default: all, in the stored order.
        seed: Seed of the shuffle.
    """

    train: int | None = None
    test: int | None = None
    seed: int = 0

    def load(self) -> Dataset:
        batches = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
        folders = ("cifar10/cifar-10-batches-bin", "cifar10", "cifar-10-batches-bin")
        files = first_with(folders, *batches["train"], *batches["test"])
        raw = {} if files else _arrays("cifar10", "cifar10_jpeg.npz")
        parts = {}
        for part in PARTS:
            if files is not None:
                read = [read_cifar(files[name], 1) for name in batches[part]]
                pixels, labels = (np.concatenate([r[i] for r in read]) for i in range(2))
                rows = self._rows(part, len(labels))
                parts[part] = {"x": unit(pixels[rows]), "y": labels[rows, 0].astype(np.int64)}
            else:
                rows = self._rows(part, len(raw[f"y_{part}"]))
                x = unit(_jpegs(raw["header"].tobytes(), raw[f"{part}_bytes"], raw[f"{part}_len"], rows))
                parts[part] = {"x": x, "y": raw[f"y_{part}"][rows].astype(np.int64)}
        return Dataset(parts["train"], parts["test"])

    def _rows(self, part: str, available: int) -> np.ndarray:
        return some_rows(part, getattr(self, part), available, self.seed, "cifar10")


@register("data", "cifar100")
@dataclass(frozen=True, kw_only=True)
class CIFAR100(Loader):
    """CIFAR-100: 100 fine classes in 20 coarse ones, 500 training and 100 test images per fine class.

    Without the original files, a WebP-compressed copy with its own split is used. It is NOT the canonical split, which
    its source does not contain.

    Args:
        labels: The labels `y`: `fine` or `coarse`. The others are the array `coarse` or `fine`.
        train: Number of training samples, positive, chosen at random. Default: all, in the stored order.
        test: Number of test samples, positive, chosen at random. Default: all, in the stored order.
        seed: Seed of the shuffle.
    """

    labels: Literal["fine", "coarse"] = "fine"
    train: int | None = None
    test: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        one_of(("fine", "coarse"), labels=self.labels)

    def load(self) -> Dataset:
        folders = ("cifar100/cifar-100-binary", "cifar100", "cifar-100-binary")
        files = first_with(folders, "train.bin", "test.bin")
        raw = {} if files else _arrays("cifar100", "cifar100_webp.npz")
        parts = {}
        for part in PARTS:
            if files is not None:
                pixels, labels = read_cifar(files[f"{part}.bin"], 2)
                coarse, fine = labels.T
            else:
                pixels, fine = _mosaics(raw[f"{part}_bytes"], raw[f"{part}_len"]), raw[f"y_{part}"]
                coarse = raw["fine_to_coarse"][fine]
            rows = some_rows(part, getattr(self, part), len(fine), self.seed, "cifar100")
            parts[part] = self._named(pixels[rows], coarse[rows].astype(np.int64), fine[rows].astype(np.int64))
        return Dataset(parts["train"], parts["test"])

    def _named(self, pixels: np.ndarray, coarse: np.ndarray, fine: np.ndarray) -> Arrays:
        names = ("y", "coarse") if self.labels == "fine" else ("fine", "y")
        return {"x": unit(pixels), names[0]: fine, names[1]: coarse}


def _arrays(*parts: str) -> Arrays:
    return read_npz(find(*parts), key="data")


def _jpegs(header: bytes, scans: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Decode JPEG files that share a header: uint8 (len(rows), 3, 32, 32)."""
    from PIL import Image

    data, ends, out = scans.tobytes(), np.cumsum(lengths, dtype=np.int64), np.empty((len(rows), 3, 32, 32), np.uint8)
    for i, row in enumerate(rows):
        file = io.BytesIO(header + data[ends[row] - lengths[row] : ends[row]] + b"\xff\xd9")
        out[i] = np.asarray(Image.open(file)).transpose(2, 0, 1)
    return out


def _mosaics(files: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Decode files of 20 x 50 images each: uint8 (N, 3, 32, 32)."""
    from PIL import Image

    data, ends, out = files.tobytes(), np.cumsum(lengths, dtype=np.int64), []
    for start, end in zip(ends - lengths, ends):
        mosaic = np.asarray(Image.open(io.BytesIO(data[start:end])).convert("RGB"))
        out.append(mosaic.reshape(20, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32))
    return np.concatenate(out)
