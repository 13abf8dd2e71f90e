"""Training in machine code with losses that torch computes, between the forward and the backward pass of each batch.

The clients of a chunk train side by side, so that torch is asked once for a step of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fl.data.views import Chosen, gathered
from fl.execution.training.batches import BLOCK, make_block
from fl.execution.training.chunk import Asked, Chunk, WholePhase
from fl.execution.training.own_losses import OwnLosses
from fl.execution.workers.process import release_lock
from fl.tensors.params import Params

if TYPE_CHECKING:
    from fl.execution.training.native.rules import Formulas

NO_ROWS = np.empty((0, 1), np.float32)


class SplitSteps:
    """Plain gradient steps of C clients. The step of a batch is taken when the next batch is known.

    Args:
        losses: computes losses and their gradients.
        arrays: the samples; with constants of reference models they are `Chosen`.
        layers: int64 (L, 8), see native/memory.py.
        clients: float32 (C, length), padded layers, changed.
        tapes: float32 (C, tape length), changed.
        longest: samples of the longest batch.
    """

    def __init__(
        self,
        losses: OwnLosses,
        arrays: Mapping[str, Tensor],
        layers: np.ndarray,
        clients: np.ndarray,
        tapes: np.ndarray,
        longest: int,
    ):
        self.losses, self.layers, self.clients, self.tapes = losses, layers, clients, tapes
        self.arrays = arrays if isinstance(arrays, Chosen) else Chosen(arrays, torch.arange(len(arrays["x"])), {})
        self.x = self.arrays.arrays["x"].flatten(1).numpy()
        self.scales = np.empty((len(clients), len(layers) * (longest + 1)), np.float32)
        self.now, self.of_outputs, self.of_features = np.zeros(len(clients), np.int64), NO_ROWS, NO_ROWS
        self.rate, self.turn = 0.0, 0

    def step(self, rows: Tensor, weights: Tensor, lengths: np.ndarray, rate: float) -> Tensor:
        """Take one step of the first A clients with batches of `lengths` (A,); return the losses (A, B).

        rows, weights: (A, B), see `Block`.
        """
        batch = gathered(self.arrays, rows.flatten())
        assert isinstance(batch, Chosen)
        outputs, features = map(torch.from_numpy, self._pass(batch.rows.numpy(), lengths))
        of_outputs, of_features, losses = self.losses.of_samples(outputs, features, batch, weights.flatten())
        self.of_outputs = of_outputs.contiguous().numpy()
        self.of_features = NO_ROWS if of_features is None else of_features.contiguous().numpy()
        self.now, self.rate = lengths, rate
        return losses.view_as(weights)

    def end(self) -> None:
        """Take the last step."""
        self._pass(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def _pass(self, rows: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take the step that is due; return outputs and features of the next batches, the samples at `rows`."""
        from fl.execution.training.native.split import step_clients

        following = np.zeros(len(self.now), np.int64)
        following[: len(lengths)] = lengths
        outputs, features = (np.zeros((len(rows), self.layers[-1, side]), np.float32) for side in (1, 0))
        with release_lock():
            step_clients(
                *(self.clients, self.layers, self.tapes, self.scales, self.now, following),
                *(self.of_outputs, self.of_features, self.rate, self.x, rows, self.turn, outputs, features),
            )
        self.turn = 1 - self.turn
        return outputs, features


def train_split(
    chunk: Chunk, whole: WholePhase, asked: Asked, layers: np.ndarray, fixed: np.ndarray
) -> tuple[list[Params], np.ndarray, Tensor, np.ndarray]:
    """Train all clients with the loss of `chunk.own_loss`; see `chunk.TrainsWholePhases.train_whole`.

    `layers` and `fixed`: see native/memory.py.
    """
    from fl.execution.training.compiled import thread_memory
    from fl.execution.training.native import split
    from fl.execution.training.native.memory import client_length
    from fl.execution.training.native.rules import rows

    assert chunk.own_loss is not None
    phase, index, start = whole.phase, whole.index, whole.start
    sizes, order = chunk.sizes, np.argsort(-chunk.sizes, kind="stable")  # the clients that still train come first
    largest = replace(chunk, clients=chunk.clients[order], starts=chunk.starts[order], sizes=sizes[order])
    steps, longest = phase.num_steps(sizes), int(sizes.max(initial=1))
    longest = longest if phase.batch == "full" else min(longest, phase.batch)
    formulas: Formulas = asked.formulas
    outputs = formulas.outputs(len(sizes), asked)
    length, tape = client_length(layers), split.tape_length(layers, longest)
    last = split.end_length(length, len(sizes), formulas.summed)
    memory = thread_memory(len(sizes) * (length + tape) + last)
    clients, tapes, memory = np.split(memory, np.cumsum([len(sizes) * length, len(sizes) * tape]))
    clients, tapes, start_rows = clients.reshape(-1, length), tapes.reshape(-1, tape), rows(start)
    with release_lock():
        split.begin_clients(start_rows if len(start_rows) == 1 else start_rows[order], layers, fixed, clients, tapes)
    stepper = SplitSteps(OwnLosses(chunk.own_loss, chunk), chunk.arrays, layers, clients, tapes, longest)
    loss, seen, counts = torch.zeros(len(sizes), dtype=torch.float64), np.zeros(len(sizes), np.int64), steps[order]
    for first in range(0, int(counts.max(initial=0)), BLOCK):
        block = make_block(largest, phase, index, counts, first, start.device)
        record = torch.zeros(block.weights.shape)
        for t, (row, weights, losses, lengths) in enumerate(block.steps(record), first):
            losses.copy_(stepper.step(row, weights, lengths, phase.rate(t)))
        loss += block.without_pads(record).sum((0, 2), dtype=torch.float64)
        seen += block.lengths.sum(0)
    stepper.end()
    places = np.argsort(order)
    with release_lock():
        split.end_clients(clients, places, start_rows, layers, *outputs.plain, *outputs.combined, memory)
    return outputs.found, steps, loss[torch.from_numpy(places)], seen[places]
