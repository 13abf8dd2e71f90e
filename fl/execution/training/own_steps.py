"""Steps that a method takes itself (`LocalTraining.step`), for one client or for clients that train together.

Batch k of phase i has the shuffles, augmentations and Dropout masks of index i + k (number of phases). Batch 0 has
those of FedAvg.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.execution.training.batches import BLOCK, make_batch, make_block
from fl.execution.training.chunk import Chunk, ChunkMasks, Gradients
from fl.execution.training.steps import LocalSteps, gradient_buffer
from fl.method.local_training import LocalTraining
from fl.method.penalty import Penalty
from fl.method.phase import Phase
from fl.method.training_values import StepContext
from fl.tensors.params import Params, clipped
from fl.tensors.trees import Tree, row, tree_map


class OwnSteps:
    """The steps of a phase, see `fl.method.training_values.Step`. Subclasses compute gradients of the objective.

    Args:
        algorithm: takes the steps.
        at: the phase and the inputs.
        theta: the parameters that the phase trains. They change in place.
        kept: what the steps keep. It changes in place.
        penalty: the penalty of the phase.
    """

    def __init__(
        self,
        algorithm: LocalTraining,
        at: StepContext,
        theta: Params,
        kept: Mapping[str, Tree],
        penalty: Penalty | None,
    ):
        self.algorithm, self.rule = algorithm, at.phase.rule
        self.theta, self.kept, self.of_all = theta, kept, (at, penalty)
        self.moments: dict[str | None, dict[str, Any]] = {}  # what the optimiser remembers of each set of parameters
        self.taken: dict[str | None, int] = {}  # its steps on each set
        self.turn_to(None)

    def turn_to(self, active: slice | None) -> None:
        """Turn to the clients that still train; None: to all."""
        at, penalty = self.of_all
        self.active = active
        self.trained, self.memory = self.rows(self.theta), _read_only(self.rows(self.kept))
        self.active_moments = {name: self.rows(moments) for name, moments in self.moments.items()}
        self.penalty = penalty if penalty is None or active is None else penalty.row(active)
        self.at = at if active is None else at.row(active)

    @property
    def params(self) -> Params:
        """See `fl.method.training_values.Step`."""
        return self.trained

    @params.setter
    def params(self, params: Params) -> None:
        raise AttributeError(
            f"client {type(self.algorithm).__name__}: step.params = ... would not move the model; change it in place "
            "with step.params.add_(...), sub_, mul_ or copy_, or with step.descend(...). Params have no += and -="
        )

    def rows(self, tree: Tree) -> Tree:
        """Return the rows of the clients that still train."""
        return tree if self.active is None else row(tree, self.active)

    def take_step(self, t: int) -> None:
        """Take step t of the phase."""
        self.t, self.rate = t, self.at.phase.rate(t)
        self.algorithm.step(self)

    def gradient(self, params: Params, batch: int = 0) -> Params:
        """See `fl.method.training_values.Step.gradient`."""
        gradient = self.objective_gradient(params, batch)
        return gradient if self.penalty is None else self.penalty.add_gradient(gradient, params)

    def objective_gradient(self, params: Params, batch: int) -> Params:
        """Return the gradient of a batch's mean objective at `params`."""
        raise NotImplementedError

    def descend(self, gradient: Params, name: str | None = None, rate: float | None = None) -> None:
        """See `fl.method.training_values.Step.descend`."""
        params, whole = (self.params, self.theta) if name is None else (self.memory[name], self.kept[name])
        if name not in self.moments:
            self.moments[name], self.taken[name] = self.rule.state(whole), 0
            self.active_moments[name] = self.rows(self.moments[name])
        if self.at.phase.clip is not None:
            gradient = clipped(gradient, self.at.phase.clip)
        rate = self.rate if rate is None else rate
        self.rule.step(params, gradient, self.active_moments[name], rate, self.taken[name])
        self.taken[name] += 1


class ClientSteps(OwnSteps):
    """Steps of one client.

    Args:
        steps: the local steps of the phase.
        theta: the parameters that the phase trains.
        local: all parameters.
        penalty: the penalty of the phase.
        phases: number of phases.
    """

    def __init__(self, steps: LocalSteps, theta: Params, local: Params, penalty: Penalty | None, phases: int):
        kept = _memory(steps.algorithm, steps.at, None)
        super().__init__(steps.algorithm, steps.at, theta, kept, penalty)
        self.others, self.phases = None if theta is local else local, phases
        self.batches = {0: steps}
        self.further: dict[int, Iterator[Any]] = {}

    def take_all(self) -> Mapping[str, Tree]:
        """Take all steps; return what they keep."""
        for t, _ in enumerate(self.batches[0]):
            self.take_step(t)
        return self.kept

    def objective_gradient(self, params: Params, batch: int) -> Params:
        return self._batch(batch).gradient(params, self.others)

    def _batch(self, batch: int) -> LocalSteps:
        """Return the local steps of a batch, at the present step."""
        if batch not in self.batches:
            first = self.batches[0]
            self.batches[batch] = LocalSteps(
                self.algorithm,
                first.ctx,
                phase=first.phase,
                index=int(first.index) + batch * self.phases,
                at=first.at,
                limit=first.limit,
            )
            self.further[batch] = iter(self.batches[batch])
        steps = self.batches[batch]
        while steps.taken <= self.t:
            next(self.further[batch])
        return steps


@dataclass(frozen=True)
class _Batch:
    """A batch of the clients that still train: name -> (A, B, ...), weights (A, B), and Dropout masks."""

    arrays: Mapping[str, Tensor]
    weights: Tensor
    masks: list[Tensor]


class ChunkSteps(OwnSteps):
    """Steps of clients that train together.

    Args:
        algorithm: takes the steps.
        gradients: computes gradients.
        theta: the parameters that the phase trains, batched (C,).
        penalty: the penalty of the phase.
        at: the phase and the inputs.
        chunk: the clients.
        index: the phase's number.
        phases: number of phases.
        counts: number of steps of each client, (C,).
    """

    def __init__(
        self,
        algorithm: LocalTraining,
        gradients: Gradients,
        theta: Params,
        penalty: Penalty | None,
        at: StepContext,
        chunk: Chunk,
        index: int,
        phases: int,
        counts: np.ndarray,
    ):
        self.gradients, self.chunk, self.index, self.phases, self.counts = gradients, chunk, index, phases, counts
        self.buffers: list[Params] = []
        self.further: dict[int, Iterator[tuple[int, Callable[[], _Batch]]]] = {}
        super().__init__(algorithm, at, theta, _memory(algorithm, at, len(chunk.sizes)), penalty)

    def gradient(self, params: Params, batch: int = 0) -> Params:
        if not params.batch:  # the same for all clients
            params = params.layout.empty(*self.params.batch).copy_(params)
        return super().gradient(params, batch)

    def turn_to(self, active: slice | None) -> None:
        super().turn_to(active)
        self.active_buffers = [self.rows(buffer) for buffer in self.buffers]

    def take(self, batch: Mapping[str, Tensor], weights: Tensor, masks: list[Tensor], t: int) -> Tensor:
        """Take step t of the first A clients; return the losses (A, B)."""
        if self.active is None or len(weights) != self.active.stop:
            self.turn_to(slice(0, len(weights)))
        self.batches = {0: _Batch(batch, weights, masks)}
        self.used, self.losses = 0, list[Tensor]()
        self.take_step(t)
        return self.losses[0] if self.losses else torch.zeros_like(weights)

    def finish(self) -> Mapping[str, Tree]:
        """Return what the steps keep. They have changed theta in place."""
        return self.kept

    def objective_gradient(self, params: Params, batch: int) -> Params:
        found, gradient = self._batch(batch), self._buffer()
        losses = self.gradients(params, found.arrays, found.weights, found.masks, self.at, gradient)
        if batch == 0:
            self.losses.append(losses)
        return gradient

    def _buffer(self) -> Params:
        """Return memory for a gradient, other than that of this step's other gradients."""
        if self.used == len(self.buffers):
            self.buffers.append(gradient_buffer(self.theta, self.used))
            self.active_buffers.append(self.rows(self.buffers[-1]))
        self.used += 1
        return self.active_buffers[self.used - 1]

    def _batch(self, number: int) -> _Batch:
        """Return a batch of the present step."""
        if number not in self.batches:
            if number not in self.further:
                index, phase = self.index + number * self.phases, self.at.phase
                self.further[number] = _batches(self.chunk, phase, index, self.counts, self.theta.device)
            self.batches[number] = next(make() for t, make in self.further[number] if t == self.t)
        return self.batches[number]


def _batches(
    chunk: Chunk, phase: Phase, index: int, counts: np.ndarray, device: torch.device
) -> Iterator[tuple[int, Callable[[], _Batch]]]:
    """Yield (its number, a function that makes its batch) for each step of a phase, from the shuffles of `index`."""

    def make(t: int, rows: Tensor, weights: Tensor, lengths: np.ndarray) -> _Batch:
        return _Batch(make_batch(chunk, phase, rows, lengths, index, t), weights, masks.draw(t, lengths))

    masks = ChunkMasks(chunk, index)
    for first in range(0, int(counts.max()), BLOCK):
        block = make_block(chunk, phase, index, counts, first, device)
        steps = block.steps(torch.empty(block.weights.shape))
        for t, (rows, weights, _, lengths) in enumerate(steps, first):
            yield t, partial(make, t, rows, weights, lengths)


class _ReadOnly(dict[str, Any]):
    """A mapping whose entries are changed in place. `memory["alpha"] += 1` of a tensor does so, too."""

    def __setitem__(self, name: str, value: Any) -> None:
        if value is not self.get(name, self):
            self._refuse(name)

    def __delitem__(self, name: str) -> None:
        self._refuse(name)

    def update(self, *others: Any, **values: Any) -> None:
        self._refuse(next(iter(dict(*others, **values)), ""))

    def _refuse(self, name: str) -> None:
        raise TypeError(
            f"step.memory: entry {name!r} cannot be replaced, because the engine would not see it; change it in place "
            f"with step.memory[{name!r}].copy_(...), add_, sub_ or mul_, and make it in step_memory"
        )


def _read_only(tree: Tree) -> Tree:
    """The tree with mappings whose entries cannot be replaced."""
    if isinstance(tree, dict):
        return _ReadOnly({name: _read_only(child) for name, child in tree.items()})
    return tree


def _memory(algorithm: LocalTraining, at: StepContext, clients: int | None) -> Mapping[str, Tree]:
    """Return a copy of what `step_memory` returns, with an axis of the clients that train together.

    Raises:
        TypeError: it is no mapping.
        ValueError: a tensor lacks the axis of clients.
    """
    found = algorithm.step_memory(at)
    who = f"client {type(algorithm).__name__}: step_memory returned"
    if not isinstance(found, Mapping):
        raise TypeError(f"{who} {type(found).__name__}, expected a mapping from names to Params and tensors")

    def copied(leaf: Params | Tensor) -> Params | Tensor:
        if clients is None:
            return leaf.clone()
        if isinstance(leaf, Params) and not leaf.batch:
            return leaf.layout.empty(clients).copy_(leaf)
        axes = tuple(leaf.batch if isinstance(leaf, Params) else leaf.shape)
        if axes[:1] != (clients,):
            raise ValueError(
                f"{who} a tensor of shape {axes} for {clients} clients that train together; its first axis has to be "
                "the clients. Take it from at.state, or set the class attribute one_at_a_time = True"
            )
        return leaf.clone()

    return {name: tree_map(copied, tree) for name, tree in found.items()}
