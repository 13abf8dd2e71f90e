"""Batches of many clients: which samples each client trains on in each step, several steps at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fl.data.augment import augmented
from fl.data.redrawn import RedrawnArrays
from fl.data.views import drawn, gathered
from fl.execution.training.chunk import Chunk
from fl.execution.training.chunk_views import with_views
from fl.method.phase import Phase
from fl.tensors import random

BLOCK = 16  # steps whose batches are computed at once


@dataclass(frozen=True)
class Block:
    """Batches of T consecutive steps of C clients.

    active: in step t, the first `active[t]` clients take part.
    widths: in step t, the largest batch has `widths[t]` samples.
    rows: (T, C, B), rows of the data set; a pad repeats the client's first sample, with weight zero.
    lengths: (T, C), number of samples in each batch; 0 for clients that have finished.
    weights: (T, C, B), 1 / length for a sample, 0 for a pad.
    padded: whether there are pads.
    """

    active: list[int]
    widths: list[int]
    rows: Tensor
    lengths: np.ndarray
    weights: Tensor
    padded: bool

    def steps(self, record: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, np.ndarray]]:
        """(rows, weights, part of `record` (T, C, B), lengths) of each step for the active clients: (A, B) and (A,)."""
        whole = self.rows.shape[1:]
        parts = zip(self.rows.unbind(), self.weights.unbind(), record.unbind(), self.active, self.widths, self.lengths)
        for rows, weights, losses, a, b, lengths in parts:
            if (a, b) != whole:
                rows, weights, losses = rows[:a, :b], weights[:a, :b], losses[:a, :b]
            yield rows, weights, losses, lengths[:a]

    def without_pads(self, values: Tensor) -> Tensor:
        """`values` (T, C, B), zero where there is no sample."""
        return torch.where(self.weights > 0, values, 0.0) if self.padded else values


def make_block(chunk: Chunk, phase: Phase, index: int, counts: np.ndarray, first: int, device: torch.device) -> Block:
    """Batches of the steps first, first + 1, ... of a phase, at most `BLOCK` of them.

    `counts` (C,): the steps of each client. Array operations cost time per call, so all steps share the same calls.
    """
    steps = np.arange(first, min(first + BLOCK, int(counts.max())))[:, None]
    sizes = chunk.sizes
    size, per_epoch = phase.batch_size(sizes), phase.batches_per_epoch(sizes)
    epoch, k = np.divmod(steps, np.maximum(per_epoch, 1))
    runs = steps < counts
    last = phase.samples_per_epoch(sizes) - k * size
    lengths = np.where(runs, np.where(k == per_epoch - 1, last, size), 0)
    shuffles = runs & (
        (k == 0) | (steps == first)
    )  # steps that compute an order: an epoch may start in an earlier block
    t, c = np.nonzero(shuffles.T)[::-1]
    orders = random.permutations(
        sizes[c], chunk.seed, chunk.clients[c], chunk.participation, "shuffle", index, epoch[t, c]
    )
    which = np.maximum(np.cumsum(shuffles.T).reshape(shuffles.T.shape).T - 1, 0)  # the order of each step and client
    columns = np.arange(int(lengths.max()))
    real = columns < lengths[:, :, None]
    columns = np.where(real, (k * size)[:, :, None] + columns, 0)
    positions = (runs * chunk.starts)[:, :, None] + orders.take(which[:, :, None] * orders.shape[1] + columns)
    return Block(
        active=runs.sum(1).tolist(),
        widths=lengths.max(1).tolist(),
        rows=torch.from_numpy(chunk.rows.take(positions)).to(device),
        lengths=lengths,
        weights=torch.from_numpy(real * (1 / np.maximum(lengths, 1)[:, :, None]).astype(np.float32)).to(device),
        padded=not real.all(),
    )


def make_batch(
    chunk: Chunk, phase: Phase, rows: Tensor, lengths: np.ndarray, index: int, step: int
) -> dict[str, Tensor]:
    """The batches of the first A clients in a step, from their `rows` (A, B), augmented; name -> (A, B, ...).

    `lengths` (A,): the samples in each batch. Random rows of a user's data set are drawn again, without pads.
    """
    batch = gather(chunk.arrays, rows)
    if isinstance(chunk.arrays, RedrawnArrays):
        client, column = np.nonzero(np.arange(rows.shape[1]) < lengths[:, None])
        epoch = step // np.maximum(phase.batches_per_epoch(chunk.sizes[: len(lengths)]), 1)
        owner = (chunk.seed, chunk.clients[client], chunk.participation)
        found = drawn(chunk.arrays, rows.cpu().numpy()[client, column], *owner, index, epoch[client])
        for name, values in found.items():
            batch[name][torch.from_numpy(client), torch.from_numpy(column)] = values.to(rows.device)
    if phase.has_views:
        return with_views(chunk, phase, batch, index, step)
    if chunk.augment:
        x = batch["x"]
        clients, columns = chunk.clients[: x.shape[0], None], np.arange(x.shape[1])
        address = (chunk.seed, clients, chunk.participation, index, step, columns)
        batch["x"] = augmented(chunk.augment, x.flatten(0, 1), *address).view_as(x)
    return batch


def gather(arrays: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The samples at `rows` (A, B); each array (A, B, ...)."""
    taken = gathered(arrays, rows.reshape(-1))
    return {name: array.view(*rows.shape, *array.shape[1:]) for name, array in taken.items()}
