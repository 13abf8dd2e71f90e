"""A chunk: clients that train together, and the interfaces of the backends that compute their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fl.data.augment import Augment
from fl.data.views import View
from fl.method.local_training import LocalTraining
from fl.method.loss_of_outputs import LossOfOutputs
from fl.method.penalty import Penalty
from fl.method.phase import Phase
from fl.method.preparation import Preparation
from fl.method.training_values import StepContext
from fl.models.binding import Initial
from fl.models.dropout import DropoutMasks
from fl.tasks.task import Task
from fl.tensors import random
from fl.tensors.params import Layout, Params
from fl.tensors.trees import Tree


@dataclass(frozen=True)
class Chunk:
    """C clients that train together; client c has the training rows `rows[starts[c] : starts[c] + sizes[c]]`.

    clients: int64 (C,), client ids.
    participation: number of the server's dispatch, part of the addresses of random draws.
    received, config: groups and numbers of the broadcast.
    states: C trees; `None` for a client without a state.
    arrays: the data set, name -> (N, ...).
    rows, starts, sizes: int64; starts and sizes are (C,).
    initial: the model as the run started.
    augment: what changes training batches at random.
    strong: the chain `data.strong`.
    unlabelled: int64 (C,), number of rows without labels, behind the training rows of each client; None: none.
    known_states: in place of `states`: bool (C,), which clients have a state, and their states, stacked.
    facts: facts of the clients' data, stacked; `None` for a client algorithm without any.
    prepared: what the clients have prepared, likewise.
    own_loss: the client algorithm if its loss is a function of the model's outputs.
    """

    clients: np.ndarray
    seed: int
    round: int
    rounds: int
    participation: int
    received: Mapping[str, Tree]
    config: Mapping[str, Any]
    states: Sequence[Tree]
    arrays: Mapping[str, Tensor]
    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    initial: Initial
    module: torch.nn.Module
    task: Task
    augment: tuple[Augment, ...] = ()
    known_states: tuple[np.ndarray, Tree] | None = None
    strong: tuple[Augment, ...] = ()
    unlabelled: np.ndarray | None = None
    facts: Tree = None
    prepared: Tree = None
    own_loss: LossOfOutputs | None = None

    def view(self, client: int) -> View:
        """Return the training rows of the client at a position of the chunk."""
        start = self.starts[client]
        return View(self.arrays, self.rows[start : start + self.sizes[client]])

    def sample(self) -> Tensor:
        """One input, (1, ...)."""
        return self.arrays["x"][torch.as_tensor(self.rows[self.starts[:1]])]


@dataclass(frozen=True)
class WholePhase:
    """All steps of a phase.

    Args:
        phase: the phase.
        index: its number.
        start: parameters to start from, batched (C,) or one for all clients. Tensors of the model that they lack have
            their initial values.
        of_phase: those of them that the phase trains.
        protected: see `LocalTraining.protected`.
    """

    phase: Phase
    index: int
    start: Params
    of_phase: Params
    protected: Mapping[str, Tensor]


@dataclass(frozen=True)
class Wanted:
    """A result of training.

    combination: trained parameters, or another combination of a client's vectors. None: the change of the parameters,
        trained minus start.
    summed: whether the result is the sum of the clients' combinations times weights, in the order of `Fold.stacked`.
        Otherwise it is the combination of each client, batched (C,).
    """

    combination: Params | None = None
    summed: bool = False


@dataclass(frozen=True)
class Asked:
    """What the training of a chunk computes.

    formulas: what `TrainsWholePhases.formulas` returned for N clients.
    part: which of these N clients are the chunk's.
    values: by identity, the parameters of the chunk's clients that stand for unknown ones in the formulas. Results may
        take their memory.
    weights: of each result, (C,) if it is summed, None if not.
    """

    formulas: Any
    part: slice = field(default_factory=lambda: slice(None))
    values: Mapping[int, Params] = field(default_factory=dict)
    weights: Sequence[Tensor | None] = (None,)


class ChunkMasks:
    """Dropout masks of a chunk in one phase; each client has masks of its own address.

    Args:
        chunk: the clients.
        index: the phase's number; `None` draws no masks.
    """

    def __init__(self, chunk: Chunk, index: int | None):
        self.layers = DropoutMasks(chunk.module, chunk.sample)
        self.words: np.ndarray | None = None
        if index is not None and self.layers.layers:
            self.words = mask_words(chunk, index)

    def draw(self, step: int, lengths: np.ndarray) -> list[Tensor]:
        """Draw masks (A, B, ...), one per layer, for a step of the first A clients with batches of `lengths` (A,)."""
        return [] if self.words is None else self.layers.draw(self.words[: len(lengths)], step, int(lengths.max()))


def mask_words(chunk: Chunk, index: int) -> np.ndarray:
    """Return the hashes of the addresses of Dropout masks in a phase up to the number of the batch, uint64 (C,)."""
    return random.hash64_prefix(2, chunk.seed, chunk.clients, chunk.participation, f"dropout/{index}")


class Gradients(Protocol):
    """A backend: gradients of the first A clients of a chunk at once.

    Args:
        algorithm: the client algorithm.
        chunk: the clients.
        local: their parameters, batched (C,).
        theta: the parameters that the phase trains, batched (C,).
        index: the phase's number; `None` computes without Dropout.
    """

    masks: ChunkMasks
    takes_views: ClassVar[bool] = False  # whether a batch may have further arrays of other lengths

    def __init__(
        self, algorithm: LocalTraining, chunk: Chunk, local: Params, theta: Params, index: int | None
    ) -> None: ...

    def __call__(
        self,
        params: Params,
        batch: Mapping[str, Tensor],
        weights: Tensor,
        masks: list[Tensor],
        at: StepContext,
        grad: Params,
    ) -> Tensor:
        """Write the gradients into `grad`; return the losses of all samples, (A, B).

        params, grad: batched (A,). batch: name -> (A, B, ...). weights: (A, B), each sample's weight in its client's
            mean.
        """


@runtime_checkable
class TakesSGDSteps(Protocol):
    """A backend that can also take plain gradient steps w <- w - lr g in place, without storing g."""

    def begin_sgd(self, theta: Params) -> None:
        """Copy the parameters, batched (C,), to where the steps are taken."""

    def sgd_step(self, batch: Mapping[str, Tensor], weights: Tensor, masks: list[Tensor], lr: float) -> Tensor:
        """Take one step of the first A clients; return the losses, (A, B)."""

    def end_sgd(self, theta: Params) -> None:
        """Copy the trained parameters back."""


@runtime_checkable
class SquaresGradients(Protocol):
    """A backend that can also square the gradients of single samples."""

    def add_squares(self, params: Params, batch: Mapping[str, Tensor], weights: Tensor, total: Params) -> None:
        """Add the sums over the batch of the squared gradients of single samples to `total`, in place.

        params, total: batched (A,). batch: name -> (A, B, ...). weights: (A, B), 1 for a sample and 0 for a pad.
        """


# which clients have known passes, bool (C,), then outputs (n, K) and features (n, D) of all samples
PassesOfSome: TypeAlias = tuple[np.ndarray, Tensor, Tensor]


@runtime_checkable
class PassesSamples(Protocol):
    """A backend that can also pass samples through models that do not change."""

    @staticmethod
    def model_passes(
        chunk: Chunk, params: Params, x: Tensor, taken: np.ndarray, known: PassesOfSome | None
    ) -> tuple[Tensor, Tensor]:
        """Return outputs (n, K) and inputs of the last layer (n, D) for some samples, without Dropout.

        Args:
            chunk: the clients.
            params: batched (C,) or one for all clients. Tensors missing from them have their initial values.
            x: samples, (N, ...).
            taken: int64 (n,), which of them the clients have, those of one after those of another.
            known: passes that some clients need not make.
        """


@runtime_checkable
class MeansSquares(Protocol):
    """A backend that can also compute all clients' means of squared gradients in one call."""

    @staticmethod
    def mean_squares(chunk: Chunk, params: Params) -> Params | None:
        """Return the means over each client's samples of the squared gradients of single samples, batched (C,).

        Dropout is off. A client without samples gets zeros. None: the backend cannot do so for this model.

        Args:
            chunk: the clients.
            params: where the gradients are taken, batched (C,) or one for all clients.
        """


@runtime_checkable
class PreparesTogether(Protocol):
    """A backend that can also fit tensors before training, for all clients at once."""

    @staticmethod
    def preparation(chunk: Chunk, phase: Phase) -> Preparation | None:
        """Return the preparation of a chunk; None: the backend cannot do so for this model. `phase`: the first one."""


@runtime_checkable
class TrainsWholePhases(Protocol):
    """A backend that can also take all steps of all clients in one call."""

    @staticmethod
    def trains_whole(algorithm: LocalTraining, chunk: Chunk, phases: Sequence[Phase]) -> bool:
        """Whether it can do so for these phases."""

    @staticmethod
    def formulas(
        whole: WholePhase, clients: int, penalty: Penalty | None, trained: Params, wanted: Sequence[Wanted]
    ) -> Any:
        """Return what training computes for N clients, for `Asked`.

        Args:
            whole: the phase.
            clients: number of clients, N.
            penalty: added to the objective, in the layout of `whole.of_phase`.
            trained: stands for the trained parameters in `wanted`.
            wanted: the results.

        Raises:
            NotKnown: parameters have changed since a sum of them was made.
        """

    @staticmethod
    def train_whole(
        chunk: Chunk, whole: WholePhase, asked: Asked
    ) -> tuple[list[Params], np.ndarray, Tensor, np.ndarray]:
        """Train all clients; return (results, steps, sums of losses, samples). The last three are (C,).

        The memory of the results is their own, or that of `asked.values`.

        Args:
            chunk: the clients.
            whole: the phase.
            asked: what to compute.

        Raises:
            NotKnown: parameters have changed since a sum of them was made.
        """


TERMS = 3  # slots on the right side of an operation, at most
TARGET, SOURCE, BATCH, COUNTS, SLOTS, FIRST = range(6)  # columns of an operation; the slots of its right side follow


@dataclass(frozen=True)
class Programs:
    """Steps as operations on vectors, `slot <- sum of factor_j slot_j + factor g` with a gradient g or without one.

    firsts: int64 (T + 1,); step t carries out operations firsts[t] to firsts[t + 1] - 1. Steps after T - 1 repeat the
        last program.
    operations: int64 (N, FIRST + TERMS): target, slot of the gradient (-1: none), place of its batch in `batches`,
        whether its loss counts (0, 1), number of slots on the right side, and these slots.
    factors: float32 (N, 1 + TERMS, 1) for all clients, or (N, 1 + TERMS, C): of the gradient, then of the slots.
    batches: numbers of the batches.
    slots: number of slots. The first is the parameters; then come vectors that the steps keep, and those of one step.
    """

    firsts: np.ndarray
    operations: np.ndarray
    factors: np.ndarray
    batches: list[int]
    slots: int


@runtime_checkable
class RunsPrograms(Protocol):
    """A backend that can also take all recorded steps of all clients in one call, see recorded_steps.py."""

    @staticmethod
    def runs_programs(algorithm: LocalTraining, chunk: Chunk, phases: Sequence[Phase]) -> bool:
        """Whether it can do so for these phases."""

    @staticmethod
    def run_programs(
        chunk: Chunk, phase: Phase, programs: Programs, layout: Layout, values: Tensor, others: Params
    ) -> tuple[Tensor, np.ndarray]:
        """Change the slots that outlast a step; return (sums of losses, samples), each (C,).

        Args:
            chunk: the clients.
            phase: the phase.
            programs: the steps.
            layout: the layout of the parameters that the phase trains.
            values: the slots, (S, C, P).
            others: the tensors at the start of the phase, batched (C,) or one for all clients; those that the layout
                lacks do not change.
        """
