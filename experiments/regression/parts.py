"""Small data sets, a model, and files that the runs use. Everything is drawn from fixed seeds."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
from torch import nn


def counting() -> dict[str, dict[str, np.ndarray] | np.ndarray]:
    """Sentences in which every token is the one before plus one, modulo 7; the targets are the next tokens."""
    starts = np.arange(96) * 5 % 7
    tokens = (starts[:, None] + np.arange(9)) % 7
    return _shared_out(tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64))


def signs() -> dict[str, dict[str, np.ndarray] | np.ndarray]:
    """Three features, and three labels that say which of them are positive."""
    x = np.random.default_rng(0).normal(size=(96, 3)).astype(np.float32)
    return _shared_out(x, (x > 0).astype(np.int64))


def pictures() -> dict[str, dict[str, np.ndarray] | np.ndarray]:
    """Random colour images 3 x 8 x 8 of four classes; the class is the brightness, and each image has a domain."""
    draw = np.random.default_rng(0)
    y = np.arange(96) % 4
    x = (draw.uniform(size=(96, 3, 8, 8)) / 2 + y[:, None, None, None] / 8).astype(np.float32)
    arrays = _shared_out(x, y)
    for part in ("train", "test"):
        arrays[part]["domain"] = np.arange(len(arrays[part]["y"])) % 2
    return arrays


def _shared_out(x: np.ndarray, y: np.ndarray) -> dict[str, dict[str, np.ndarray] | np.ndarray]:
    """The first 72 rows to train on, shared out over six clients, and the others to test."""
    return {"train": {"x": x[:72], "y": y[:72]}, "test": {"x": x[72:], "y": y[72:]}, "clients": np.arange(72) % 6}


def normalised(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A perceptron with a BatchNorm layer, which sees two places of each sample, so that a batch of one is enough."""
    first = (nn.Flatten(), nn.Linear(int(np.prod(shape)), 6), nn.Unflatten(1, (3, 2)))
    return nn.Sequential(*first, nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(6, outputs))


def dropping(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A perceptron with a dropout layer; its parameters have the names of those of `mlp`."""
    hidden = nn.Sequential(OrderedDict(relu=nn.ReLU(), dropout=nn.Dropout(0.3)))
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 5), hidden, nn.Linear(5, outputs))


def convolving(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A convolution before a perceptron whose parameters have the names of those of `mlp`."""
    channels, height, width = shape
    first = nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, 2, 3), relu=nn.ReLU(), flat=nn.Flatten()))
    features = 2 * (height - 2) * (width - 2)
    return nn.Sequential(first, nn.Linear(features, 5), nn.ReLU(), nn.Linear(5, outputs))


# -- files, written into the temporary folder of a run ----------------------------------------------------------------
def archive(folder: Path) -> None:
    """A data set in one file."""
    arrays = signs()
    rows = {"x": arrays["train"]["x"], "y": arrays["train"]["y"][:, 0], "clients": arrays["clients"]}
    np.savez(folder / "data.npz", **rows)


def mapped(folder: Path) -> None:
    """A data set in a folder of .npy files."""
    arrays = signs()
    np.save(folder / "x.npy", arrays["train"]["x"])
    np.save(folder / "y.npy", arrays["train"]["y"][:, 0])
    np.save(folder / "clients.npy", arrays["clients"])


def leaf(folder: Path) -> None:
    """A data set in the form of the LEAF benchmark."""
    draw = np.random.default_rng(0)
    for part, rows in (("train", 20), ("test", 5)):
        data = {
            f"user{user}": {"x": draw.normal(size=(rows, 5)).tolist(), "y": (np.arange(rows) % 3).tolist()}
            for user in range(5)
        }
        (folder / part).mkdir()
        table = {"users": list(data), "num_samples": [rows] * len(data), "user_data": data}
        (folder / part / "all_data.json").write_text(json.dumps(table))


def shares(folder: Path) -> None:
    """A partition: whose each row is, and which rows are for testing."""
    rows = np.arange(200)
    np.savez(folder / "shares.npz", client=rows % 9 - 1, is_test=rows % 5 == 0)


def traces(folder: Path) -> None:
    """Measured devices, and the times at which clients are there."""
    devices = {str(i): {"computation": 5.0 + 3 * i, "communication": 2000.0 / (i + 1)} for i in range(10)}
    (folder / "devices.json").write_text(json.dumps(devices))
    there = {str(i): {"active": [10.0 * i], "inactive": [10.0 * i + 60], "finish_time": 200.0} for i in range(10)}
    (folder / "availability.json").write_text(json.dumps(there))
