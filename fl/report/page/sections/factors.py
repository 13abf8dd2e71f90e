"""Similarity of clients' adapters: cosines between the factors A, and between the factors B, that clients have kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from fl.models import adapter
from fl.report.charts import Heatmap
from fl.report.page.runs import Runs
from fl.report.page.section import Section
from fl.report.page.states import client_states, leaves


def factors(runs: Runs) -> Section | None:
    """For each variant and each factor a matrix over the clients of its first run."""
    charts = []
    for name, directory in runs.first_of_each():
        states = client_states(directory)
        for factor, of_kind in (("A", adapter.first), ("B", adapter.second)):
            vectors = {client: _vector(state, of_kind) for client, state in states.items()}
            vectors = {client: vector for client, vector in vectors.items() if len(vector)}
            if len(vectors) < 2 or len({len(vector) for vector in vectors.values()}) > 1:
                continue
            cosines = cosine_similarities(np.stack(list(vectors.values())))
            charts.append(
                Heatmap(
                    title=f"Factors {factor}: {name}",
                    note=f"Cosine of the factors {factor} of all layers, between clients of {directory.name}. It "
                    "changes when a pair of factors is rotated.",
                    values=cosines,
                    x_label="client",
                    y_label="client",
                    x_names=[str(client) for client in vectors],
                    y_names=[str(client) for client in vectors],
                    low=-1,
                    high=1,
                    signed=True,
                )
            )
    return Section("Adapters of clients", charts) if charts else None


def _vector(state: Any, of_kind: Any) -> np.ndarray:
    """All factors of a kind in a client's state as one vector."""
    found = dict(leaves(state))
    parts = [np.asarray(found[name], float).reshape(-1) for name in sorted(of_kind(found))]
    return np.concatenate(parts) if parts else np.empty(0)


def cosine_similarities(rows: np.ndarray) -> np.ndarray:
    """Cosines between rows (n, D), (n, n); NaN for a row of zeros.

    >>> cosine_similarities(np.array([[2.0, 0.0], [3.0, 4.0]])).round(6).tolist()
    [[1.0, 0.6], [0.6, 1.0]]
    """
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.full_like(rows, np.nan), where=norms > 0)
    return unit @ unit.T
