"""Small data sets, models and files for the runs. All of them are drawn from fixed seeds."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
from torch import nn


def counting() -> dict[str, dict[str, np.ndarray] | np.ndarray]:
    """Return sentences in which each token is the last token plus one, modulo 7. The targets are the next tokens."""
    starts = np.arange(96) * 5 % 7
    tokens = (starts[:, None] + np.arange(9)) % 7
    return _divide(tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64))


def signs() -> dict[str, dict[str, np.ndarray] | np.ndarray]:
    """Return rows of three features and three labels. Label i is 1 if feature i is positive."""
    x = np.random.default_rng(0).normal(size=(96, 3)).astype(np.float32)
    return _divide(x, (x > 0).astype(np.int64))


def pictures() -> dict[str, dict[str, np.ndarray] | np.ndarray]:
    """Return random colour images, 3 x 8 x 8, of four classes that differ in brightness. Each has a domain, 0 or 1."""
    draw = np.random.default_rng(0)
    y = np.arange(96) % 4
    x = (draw.uniform(size=(96, 3, 8, 8)) / 2 + y[:, None, None, None] / 8).astype(np.float32)
    arrays = _divide(x, y)
    for part in ("train", "test"):
        arrays[part]["domain"] = np.arange(len(arrays[part]["y"])) % 2
    return arrays


def _divide(x: np.ndarray, y: np.ndarray) -> dict[str, dict[str, np.ndarray] | np.ndarray]:
    """Return 72 rows for training, divided among six clients, and the other 24 for testing."""
    return {"train": {"x": x[:72], "y": y[:72]}, "test": {"x": x[72:], "y": y[72:]}, "clients": np.arange(72) % 6}


def normalised(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build a perceptron with BatchNorm over two positions per sample, so that a batch of one sample is enough."""
    first = (nn.Flatten(), nn.Linear(int(np.prod(shape)), 6), nn.Unflatten(1, (3, 2)))
    return nn.Sequential(*first, nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(6, outputs))


def dropping(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build a perceptron with dropout. Its parameters have the same names as in `mlp`."""
    hidden = nn.Sequential(OrderedDict(relu=nn.ReLU(), dropout=nn.Dropout(0.3)))
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 5), hidden, nn.Linear(5, outputs))


def convolving(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build a convolution followed by a perceptron. The perceptron's parameters have the same names as in `mlp`."""
    channels, height, width = shape
    first = nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, 2, 3), relu=nn.ReLU(), flat=nn.Flatten()))
    features = 2 * (height - 2) * (width - 2)
    return nn.Sequential(first, nn.Linear(features, 5), nn.ReLU(), nn.Linear(5, outputs))


# -- files in the temporary folder of a run ---------------------------------------------------------------------------
def archive(folder: Path) -> None:
    """Write a data set as one .npz file."""
    arrays = signs()
    rows = {"x": arrays["train"]["x"], "y": arrays["train"]["y"][:, 0], "clients": arrays["clients"]}
    np.savez(folder / "data.npz", **rows)


def mapped(folder: Path) -> None:
    """Write a data set as a folder of .npy files."""
    arrays = signs()
    np.save(folder / "x.npy", arrays["train"]["x"])
    np.save(folder / "y.npy", arrays["train"]["y"][:, 0])
    np.save(folder / "clients.npy", arrays["clients"])


def leaf(folder: Path) -> None:
    """Write a data set in the format of the LEAF benchmark."""
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
    """Write a partition of the digits: the client of each row (-1: none), and which rows are test rows."""
    rows = np.arange(1438)
    np.savez(folder / "shares.npz", client=np.where(rows < 200, rows % 9 - 1, -1), is_test=rows % 5 == 0)


def traces(folder: Path) -> None:
    """Write traces of devices and of the clients' availability."""
    devices = {str(i): {"computation": 5.0 + 3 * i, "communication": 2000.0 / (i + 1)} for i in range(10)}
    (folder / "devices.json").write_text(json.dumps(devices))
    availability = {
        str(i): {"active": [10.0 * i], "inactive": [10.0 * i + 60], "finish_time": 200.0} for i in range(10)
    }
    (folder / "availability.json").write_text(json.dumps(availability))
