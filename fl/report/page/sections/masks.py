"""Masks that clients have kept: the share of entries that are set, and the overlap between clients.

A mask is a tensor of booleans, or packed bits (`fl.pack_mask`): a vector of bytes with one bit for each entry of the
model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.report.charts import Bars, Chart, Heatmap
from fl.report.page.runs import Runs
from fl.report.page.section import Section
from fl.report.page.states import client_states, leaves, strategy_state
from fl.tensors.masks import unpack_mask
from fl.tensors.params import Params


def masks(runs: Runs) -> Section | None:
    """For each variant the masks of the clients of its first run."""
    charts: list[Chart] = []
    for name, directory in runs.first_of_each():
        states = client_states(directory)
        entries = _entries(strategy_state(directory)) if states else 0
        found = {client: _mask(state, entries) for client, state in states.items()}
        found = {client: mask for client, mask in found.items() if len(mask)}
        if not found:
            continue
        clients = [str(client) for client in found]
        charts.append(
            Bars(
                title=f"Entries in the mask: {name}",
                note=f"Share of the entries that the mask of a client of {directory.name} selects.",
                names=clients,
                parts={"share": np.array([mask.mean() for mask in found.values()])},
                x_label="share of entries",
                upright=True,
            )
        )
        if len(found) > 1 and len({len(mask) for mask in found.values()}) == 1:
            charts.append(
                Heatmap(
                    title=f"Overlap of masks: {name}",
                    note="Jaccard index: entries in both masks / entries in at least one. Empty: both masks are empty.",
                    values=jaccard(np.stack(list(found.values()))),
                    x_label="client",
                    y_label="client",
                    x_names=clients,
                    y_names=clients,
                    low=0,
                    high=1,
                )
            )
    return Section("Masks", charts) if charts else None


def _entries(state: Any) -> int:
    """Number of entries of the model in a strategy's state; 0 if there is none."""
    model = state.get("model") if isinstance(state, dict) else state
    return model.numel if isinstance(model, Params) else 0


def _mask(state: Any, entries: int) -> np.ndarray:
    """All masks in a client's state as one vector of booleans."""
    parts = []
    for _, tensor in leaves(state):
        tensor = torch.as_tensor(tensor)
        if tensor.dtype == torch.bool:
            parts.append(tensor.reshape(-1).numpy())
        elif _is_packed(tensor, entries):
            parts.append(unpack_mask(tensor, entries).numpy())
    return np.concatenate(parts) if parts else np.empty(0, bool)


def _is_packed(tensor: Tensor, entries: int) -> bool:
    return tensor.dtype == torch.uint8 and tensor.ndim == 1 and len(tensor) == -(-entries // 8)


def jaccard(masks: np.ndarray) -> np.ndarray:
    """Jaccard index of each pair of masks, bool (n, d) -> (n, n); NaN for two empty masks.

    >>> jaccard(np.array([[True, True, False], [False, True, True]])).round(3).tolist()
    [[1.0, 0.333], [0.333, 1.0]]
    """
    numbers = masks.astype(float)
    both = numbers @ numbers.T
    sizes = numbers.sum(1)
    either = sizes[:, None] + sizes - both
    return np.divide(both, either, out=np.full_like(both, np.nan), where=either > 0)
