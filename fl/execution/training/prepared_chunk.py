"""Fits before training in machine code, of all clients of a chunk in one call; see `fl.method.preparation`.

Layers below the lowest one that changes pass the chosen samples once. The layers from there on are a network of their
own, whose inputs are what these passes have found. Its numbers are those of the whole network.
"""

from __future__ import annotations

import numpy as np

from fl.execution.training.chunk import Chunk
from fl.execution.training.compiled import NO_ROWS, answers, check_labels, layers_of, thread_memory
from fl.execution.workers.process import release_lock
from fl.method.phase import Phase
from fl.method.preparation import Fit, check_fit
from fl.tensors import random
from fl.tensors.params import Params


class ChunkPreparation:
    """The preparation of C clients with a stack of linear layers without Dropout.

    Args:
        chunk: the clients.
        phase: gives the size of the batches.
    """

    def __init__(self, chunk: Chunk, phase: Phase):
        self.chunk, self.phase, self.sizes, self.initial = chunk, phase, chunk.sizes, chunk.initial.trained

    def fit(self, how: Fit, name: str, counts: np.ndarray, others: Params) -> tuple[Params, np.ndarray]:
        """See `fl.method.preparation.Preparation`.

        Raises:
            IndexError: a label is no class.
        """
        from fl.execution.training.native.fits import COPIES, fit_clients
        from fl.execution.training.native.memory import memory_length

        check_fit(how, counts, self.sizes, others)
        chunk, phase, epochs = self.chunk, self.phase, np.where(counts > 0, how.epochs, 0)
        others = others if others.layout is self.initial.layout else self.initial.replace(others)
        fitted, lowest = self._fitted(others, [*how.start])
        base, direction, z = how.base, how.direction, how.start.clone()
        if fitted is not None:  # tensors beside those that change stay where they are
            some = how.start
            base, direction, z = (fitted.layout.zeros(len(counts)) for _ in range(3))
            base.copy_(fitted).copy_(how.base, names=some)
            direction.copy_(how.direction, names=some)
            z.copy_(how.start, names=some)
        fits = np.flatnonzero(epochs)
        if not len(fits):
            return how.start, np.zeros_like(epochs)
        layers = layers_of(chunk.module, z.layout, lowest=lowest)
        rows, firsts = self._chosen(fits, name, counts), np.zeros_like(counts)
        firsts[fits] = np.cumsum(counts[fits]) - counts[fits]
        y, classes = chunk.arrays["y"].numpy(), int(layers[-1, 1])
        labels, targets = answers(chunk.task.kernel, y[rows], classes)
        inputs = self._inputs(others, lowest, rows)
        words = random.hash64_prefix(2, chunk.seed, chunk.clients, chunk.participation, f"{name}/shuffle")
        longest, batch = int(counts[fits].max()), 0 if phase.batch == "full" else phase.batch
        memory = thread_memory(memory_length(layers, min(batch or longest, longest), COPIES))
        taken, used = np.empty(len(counts), np.int64), phase.samples_per_epoch(counts)
        with release_lock():
            wrong = fit_clients(
                *(base.buffers[0].numpy(), direction.buffers[0].numpy(), z.buffers[0].numpy()),
                *(np.float32(how.rate), np.float32(how.low), np.float32(how.high), epochs, how.window, how.threshold),
                *(layers, inputs, labels, targets, firsts, counts, batch, used, words, taken, memory),
            )
        check_labels(y, int(rows[wrong]) if wrong >= 0 else -1, classes)
        return z if fitted is None else how.start.layout.zeros(len(counts)).copy_(z), taken

    def _fitted(self, others: Params, names: list[str]) -> tuple[Params | None, int]:
        """Return the tensors of the layers from the lowest one that changes on, and the number of this layer.

        None in place of the tensors: `names` are all of them.
        """
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in self.initial))
        lowest = min(layers.index(name.rpartition(".")[0]) for name in names)
        needed = [name for name in self.initial if layers.index(name.rpartition(".")[0]) >= lowest]
        return None if {*needed} == {*names} else others.select(needed), lowest

    def _chosen(self, fits: np.ndarray, name: str, counts: np.ndarray) -> np.ndarray:
        """Choose samples of the clients at positions `fits`; return their rows in the data set."""
        chunk = self.chunk
        address = (chunk.seed, chunk.clients[fits], chunk.participation, f"{name}/sample")
        positions = chunk.starts[fits][:, None] + random.permutations(self.sizes[fits], *address)
        return chunk.rows[positions[np.arange(positions.shape[1]) < counts[fits][:, None]]]

    def _inputs(self, params: Params, lowest: int, rows: np.ndarray) -> np.ndarray:
        """Return the inputs of the layer `lowest` for the samples at `rows`, (n, D)."""
        from fl.execution.training.native.memory import memory_length
        from fl.execution.training.native.split import PASS, model_passes

        x = self.chunk.arrays["x"].flatten(1).numpy()
        if not lowest:
            return np.take(x, rows, 0)
        below = layers_of(self.chunk.module, self.initial.layout)[:lowest]
        inputs, unused = (np.empty((len(rows), below[-1, side]), np.float32) for side in (1, 0))
        memory = thread_memory(memory_length(below, PASS, 0))
        with release_lock():
            model_passes(
                *(params.buffers[0][None].numpy(), below, NO_ROWS, x, rows),
                *(np.zeros(1, np.int64), np.array([len(rows)]), memory, inputs, unused),
            )
        return inputs
