"""Batches of many clients in phases over several views: the arrays of client_batches.py, with a client axis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fl.data.augment import augmented
from fl.data.views import gathered
from fl.execution.training.chunk import Chunk
from fl.execution.training.client_batches import chain_of, received_arrays
from fl.method.phase import Phase
from fl.method.views import Beside, Chain
from fl.tensors import random


def with_views(chunk: Chunk, phase: Phase, batch: dict[str, Tensor], index: int, step: int) -> dict[str, Tensor]:
    """Return the batch of a step, name -> (A, B, ...), with changed samples and the samples beside it, (A, b, ...)."""
    x = batch["x"]
    where = (chunk.seed, chunk.clients[: len(x), None], chunk.participation, index)
    changed = _changed(chunk, phase.changes, x, where, step, first="x")
    for name, beside in phase.beside.items():
        arrays = _samples(chunk, name, beside, len(x), index, step, x.device)
        changes = _changed(chunk, beside.changes, arrays.pop("x"), (*where, f"beside/{name}"), step)
        changed |= {f"{name}/{array}": value for array, value in (arrays | changes).items()}
    return batch | changed


def _changed(
    chunk: Chunk, changes: Mapping[str, Chain], x: Tensor, where: tuple, step: int, first: str = ""
) -> dict[str, Tensor]:
    """Return x (A, B, ...) under each chain of changes. `first` has the draws that it has in other phases."""
    address, flat = (*where, step, np.arange(x.shape[1])), x.flatten(0, 1)
    return {
        name: augmented(chain_of(chunk, chain), flat, *address, *([] if name == first else [f"change/{name}"])).view_as(
            x
        )
        for name, chain in changes.items()
    }


def _samples(
    chunk: Chunk, name: str, beside: Beside, count: int, index: int, step: int, device: torch.device
) -> dict[str, Tensor]:
    """Return the samples of one `Beside` of the first `count` clients in a step, name -> (count, b, ...)."""
    arrays, starts, sizes = _source(chunk, beside, count)
    if beside.group and not len(arrays["x"]):  # no client has samples of this group
        return {name: array.new_empty((count, 0, *array.shape[1:])).to(device) for name, array in arrays.items()}
    assert beside.batch != "full"  # such phases are trained one client at a time
    epochs, places = np.divmod(step * beside.batch + np.arange(beside.batch), sizes[:, None])
    first, several = epochs[:, 0], epochs[:, -1] - epochs[:, 0] + 1  # shuffles that a client's batch touches
    before = np.cumsum(several) - several
    owner = np.repeat(np.arange(count), several)
    epoch = first[owner] + np.arange(len(owner)) - before[owner]
    address = (chunk.seed, chunk.clients[owner], chunk.participation, "shuffle", index, name, epoch)
    orders = random.permutations(sizes[owner], *address)
    positions = orders[before[:, None] + epochs - first[:, None], places]
    rows = positions if starts is None else chunk.rows[starts[:, None] + positions]
    found = gathered(arrays, torch.from_numpy(rows.reshape(-1)).to(device))
    return {array: value.view(*rows.shape, *value.shape[1:]) for array, value in found.items()}


def _source(chunk: Chunk, beside: Beside, count: int) -> tuple[Mapping[str, Tensor], np.ndarray | None, np.ndarray]:
    """Return (arrays, starts in `chunk.rows`, sizes); no starts if positions are rows of the arrays."""
    if beside.group:
        arrays = received_arrays(chunk.received, beside.group)
        return arrays, None, np.full(count, len(arrays["x"]))
    starts, labelled = chunk.starts[:count], chunk.sizes[:count]
    unlabelled = np.zeros_like(labelled) if chunk.unlabelled is None else chunk.unlabelled[:count]
    if beside.view == "unlabelled":
        return {n: a for n, a in chunk.arrays.items() if n != "y"}, starts + labelled, unlabelled
    return chunk.arrays, starts, labelled if beside.view == "train" else labelled + unlabelled
