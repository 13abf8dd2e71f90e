"""Batches of one client, in the loop: the samples of each step, augmented.

A phase that has only its own view takes rows of one view. Other phases have further arrays in each batch: the same
samples under another chain of augmentations, and samples of other views (fl/method/views.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from fl.data.augment import Augment, augmented
from fl.data.views import Batch, View
from fl.execution.training.chunk import Chunk
from fl.method.context import ClientContext
from fl.method.optimiser import SGD
from fl.method.phase import LastBatch, Phase
from fl.method.views import Beside, Chain
from fl.tensors import random
from fl.tensors.trees import Tree
from fl.tracking.spans import timed_items

Address = tuple[int, int, int, int]  # seed, client, participation, index


def mini_batches(ctx: ClientContext, phase: Phase, index: int) -> Iterable[Batch]:
    """Yield the batch of each step, augmented. The time is booked as `data`."""
    make = _view_batches if phase.has_views else _mini_batches
    return timed_items("data", "batch", make(ctx, phase, index))


def _mini_batches(ctx: ClientContext, phase: Phase, index: int) -> Iterator[dict[str, Tensor]]:
    address = (ctx.seed, ctx.client, ctx.participation, index)
    per_epoch = int(phase.batches_per_epoch(np.array(len(ctx.train)))) if ctx.train.is_redrawn else 1
    for step, positions in enumerate(batches(phase, len(ctx.train), *address)):
        batch = ctx.train.take_for_training(positions, *address, step // per_epoch)
        if ctx.augment:
            batch["x"] = augmented(ctx.augment, batch["x"], *address, step, np.arange(len(positions)))
        yield batch


def _view_batches(ctx: ClientContext, phase: Phase, index: int) -> Iterator[dict[str, Tensor]]:
    """Yield the batch of each step of a phase with other views than `train`."""
    address = (ctx.seed, ctx.client, ctx.participation, index)
    main = view_of(ctx, phase.view)
    per_epoch = max(int(phase.batches_per_epoch(np.array(len(main)))), 1)
    sources = [_Source(ctx, name, beside, address) for name, beside in phase.beside.items()]
    for step, positions in enumerate(batches(phase, len(main), *address)):
        batch = main.take_for_training(positions, *address, step // per_epoch)
        where = (*address, step, np.arange(len(positions)))
        x = batch["x"]
        for name, chain in phase.changes.items():  # "x" has the draws that it has in other phases
            batch[name] = augmented(chain_of(ctx, chain), x, *where, *([] if name == "x" else [f"change/{name}"]))
        for source in sources:
            batch |= source.batch(step)
        yield batch


class _Source:
    """The samples of one `Beside`, step by step."""

    def __init__(self, ctx: ClientContext, name: str, beside: Beside, address: Address):
        self.ctx, self.name, self.beside, self.address = ctx, name, beside, address
        if beside.group:
            arrays = received_arrays(ctx.received, beside.group)
            self.view = View(arrays, np.arange(len(arrays["x"])))
        else:
            self.view = view_of(ctx, beside.view)
        self.size = len(self.view) if beside.batch == "full" else beside.batch
        self.orders: dict[int, np.ndarray] = {}  # of the epochs at hand

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the arrays of a step."""
        epochs, positions = self._positions(step)
        address = (*self.address, f"beside/{self.name}")
        found = self.view.take_for_training(positions, *address, *epochs[:1].tolist())
        where = (*address, step, np.arange(len(positions)))
        x = found.pop("x")
        for name, chain in self.beside.changes.items():
            found[name] = augmented(chain_of(self.ctx, chain), x, *where, f"change/{name}") if len(x) else x
        return {f"{self.name}/{name}": array for name, array in found.items()}

    def _positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (epochs, positions in the view) of the samples of a step, (size,) each."""
        n = len(self.view)
        if not n:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        epochs, places = np.divmod(step * self.size + np.arange(self.size), n)
        first, last = int(epochs[0]), int(epochs[-1])
        known = self.orders
        self.orders = {e: known[e] if e in known else self._order(n, e) for e in range(first, last + 1)}
        return epochs, np.concatenate([self.orders[e][places[epochs == e]] for e in self.orders])

    def _order(self, n: int, epoch: int) -> np.ndarray:
        seed, client, participation, index = self.address
        return random.permutation(n, seed, client, participation, "shuffle", index, self.name, epoch)


def view_of(ctx: ClientContext, view: str) -> View:
    """Return a client's rows with labels ("train"), without ("unlabelled"), or both ("all")."""
    if view == "train":
        return ctx.train
    if view == "unlabelled":
        return ctx.unlabelled
    return View(ctx.train.arrays, np.concatenate([ctx.train.rows, ctx.unlabelled.rows]))


def received_arrays(received: Mapping[str, Tree], group: str) -> dict[str, Tensor]:
    """Return a group of the broadcast as arrays by name: a tensor (n, ...) is "x"."""
    value = received.get(group)
    arrays = {"x": value} if isinstance(value, Tensor) else value
    if not isinstance(arrays, Mapping) or not isinstance(arrays.get("x"), Tensor):
        came = f"{type(value).__name__}" if group in received else "nothing"
        raise ValueError(
            f"received:{group}: the broadcast's group {group!r} is {came}; send a tensor of samples, or a mapping with "
            "samples under 'x'"
        )
    return dict(arrays)


def chain_of(owner: ClientContext | Chunk, chain: Chain) -> tuple[Augment, ...]:
    """Return the augmentations of a chain; `owner` has those of the run."""
    if isinstance(chain, tuple):
        return chain
    return owner.augment if chain == "weak" else owner.strong


def batches(phase: Phase, n: int, seed: int, client: int, participation: int, index: int) -> Iterator[np.ndarray]:
    """Yield the positions of each batch in a client's n training samples.

    Each epoch has a new shuffle. `phase.last_batch` decides about a short last batch of an epoch.

    Args:
        phase: batch size, last batch and budget.
        n: number of training samples of the client.
        seed: seed of the run.
        client: the client's id.
        participation: number of the exchange.
        index: index of the phase within the round.
    """
    steps, slices = _schedule(phase.batch, phase.epochs, phase.steps, phase.last_batch, n)
    for step in range(steps):
        epoch, k = divmod(step, len(slices))
        if k == 0:
            order = random.permutation(n, seed, client, participation, "shuffle", index, epoch)
        yield order[slices[k]]


@functools.lru_cache(maxsize=4096)  # phases are made for each client, and many clients have the same size
def _schedule(
    batch: int | Literal["full"], epochs: float, steps: int | None, last_batch: LastBatch, n: int
) -> tuple[int, list[slice]]:
    """Return the number of steps over n samples, and the batches of an epoch."""
    phase = Phase(SGD(), 0.0, batch, epochs, steps, last_batch=last_batch)
    return int(phase.num_steps(np.array(n))), phase.batch_slices(n)
