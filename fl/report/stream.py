"""Accuracy matrix of a task stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fl.config.yaml import parse
from fl.storage.run import read_metrics


def accuracy_matrix(directory: Path) -> np.ndarray:
    """a[t, s], (T, T): accuracy on task s after task t of a stream; NaN for tasks that come later."""
    stream = parse((directory / "config.yaml").read_text()).get("stream")
    rows = [row for row in read_metrics(directory) if "stream/acc" in row]
    if not stream or not rows:
        raise ValueError(f"{directory} is not a run of a task stream whose first task is done")
    return np.array([[row.get(f"task{s}/accuracy", np.nan) for s in range(stream["tasks"])] for row in rows], float)
