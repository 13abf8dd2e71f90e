"""Prototypes in two dimensions: tables by class in the state of the strategy, and tensors of the model of that name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fl.report.charts import Points
from fl.report.page.runs import Runs
from fl.report.page.section import Section
from fl.report.page.states import leaves, strategy_state, tables

MOST_ROWS = 200  # a larger table, such as the embeddings of items, is left out


def prototypes(runs: Runs) -> Section | None:
    """For each variant the prototypes of its first run, projected onto their two principal components."""
    charts = []
    for name, directory in runs.first_of_each():
        for path, keys, values in _found(strategy_state(directory)):
            places, shares = principal_components(values)
            charts.append(
                Points(
                    title=f"{path}: {name}",
                    note=f"{len(keys)} rows of {values.shape[1]} numbers in the state of {directory.name}, each with "
                    "its class. The axes are the first two principal components.",
                    places=places,
                    groups=[f"class {key}" for key in keys],
                    labels=[str(key) for key in keys],
                    x_label=f"first component, {shares[0]:.0%} of the variance",
                    y_label=f"second component, {shares[1]:.0%}",
                )
            )
    return Section("Prototypes", charts) if charts else None


def _found(state: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (path, classes (K,), prototypes (K, D)) of a state."""
    for path, keys, values in tables(state):
        if 3 <= len(keys) <= MOST_ROWS and values.shape[1] >= 2:
            yield path or "table", keys, values
    for path, tensor in leaves(state):
        shape = tuple(tensor.shape)
        if "prototype" in path.lower() and len(shape) == 2 and 3 <= shape[0] <= MOST_ROWS and shape[1] >= 2:
            if not path.endswith(".values"):  # of a table, see above
                yield path, np.arange(shape[0]), np.asarray(tensor, float)


def principal_components(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project rows (n, D) onto their first two principal components: (n, 2), and their shares of the variance (2,).

    >>> places, shares = principal_components(np.array([[0.0, 0.0, 1.0], [3.0, 0.0, 1.0], [6.0, 0.0, 1.0]]))
    >>> abs(places[:, 0]).round(6).tolist(), shares.round(6).tolist()
    ([3.0, 0.0, 3.0], [1.0, 0.0])
    """
    centred = rows - rows.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    total = float((s**2).sum()) or 1.0
    return u[:, :2] * s[:2], (s**2)[:2] / total
