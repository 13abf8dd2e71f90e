"""Steps that a method takes itself, recorded as programs of linear combinations and gradients for machine code.

`record` runs `LocalTraining.step` on combinations of vectors without numbers (`fl.tensors.combination`), and notes what
is written and where gradients are asked for. It works for steps that only add, scale and copy vectors and ask for
gradients, with plain descent. All other steps are taken one by one, see own_steps.py; the results are the same but for
rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.execution.training.chunk import FIRST, TERMS, Chunk, Programs, RunsPrograms
from fl.execution.training.own_steps import OwnSteps
from fl.method.local_training import LocalTraining
from fl.method.optimiser import SGD
from fl.method.training_values import StepContext
from fl.tensors.combination import Combination, Factor, NotKnown, Term, Unknown
from fl.tensors.params import Layout, Params
from fl.tensors.trees import Tree, named_leaves, tree_map

Factors = dict[int, Factor]  # number of a slot -> factor


@dataclass(eq=False)
class Operation:
    """target <- sum of factors times slots, plus `factor` times the gradient at `source` if there is one."""

    target: int
    terms: Factors
    source: int | None = None
    factor: Factor = 0.0
    batch: int = 0
    counts: bool = False


class _Slot(Unknown):
    """The vectors of all clients in one slot of the programs.

    Args:
        layout: their layout.
        clients: number of clients.
        number: the slot's number.
    """

    __slots__ = ("number",)

    def __init__(self, layout: Layout, clients: int, number: int):
        super().__init__(layout, (clients,))
        self.number = number


@dataclass
class _Tape:
    """The operations of one step so far, and the slots. Those behind the first `kept` last for one step."""

    layout: Layout
    clients: int
    kept: int = 0
    slots: list[_Slot] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)

    def begin(self) -> None:
        """Begin a step. Combinations of the steps before it can no longer be used."""
        for slot in self.slots:
            slot.version += 1
        del self.slots[self.kept :]
        self.operations = []

    def keep(self) -> _Kept:
        """Return the vector of a new slot that outlasts a step."""
        self.kept += 1
        return _Kept(self, self.new_slot())

    def new_slot(self) -> _Slot:
        self.slots.append(_Slot(self.layout, self.clients, len(self.slots)))
        return self.slots[-1]

    def write(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.slots[operation.target].version += 1


class _Kept(Combination):
    """The vector that a slot holds at present. Its changes in place are recorded."""

    __slots__ = ("tape", "slot")

    def __init__(self, tape: _Tape, slot: _Slot):
        super().__init__([Term.of(slot)])
        self.tape, self.slot = tape, slot

    @property
    def current(self) -> tuple[Term, ...]:
        return (Term.of(self.slot),)

    def _becomes(self, other: Combination | None) -> bool:
        if other is None or other.batch != self.batch:
            return False
        self.tape.write(Operation(self.slot.number, _factors(other)))
        return True


def _factors(vector: Params) -> Factors:
    """Return the factors of a combination of slots.

    Raises:
        NotKnown: it has other terms, or a slot was written since it was made.
    """
    terms = Combination.single(vector).checked()
    found = {term.params.number: term.factor for term in terms if isinstance(term.params, _Slot)}
    if len(found) < len(terms):
        raise NotKnown("parameters that are no vector of the step")
    return found


class _Recorder(OwnSteps):
    """Steps on vectors without numbers."""

    def __init__(self, algorithm: LocalTraining, at: StepContext, kept: Mapping[str, Tree], clients: int):
        self.tape, self.asked = _Tape(at.start.layout, clients), False
        theta = self.tape.keep()
        memory = {
            name: tree_map(lambda leaf: self.tape.keep() if isinstance(leaf, Params) else leaf.clone(), tree)
            for name, tree in kept.items()
        }
        super().__init__(algorithm, at, theta, memory, None)

    @property
    def t(self) -> int:
        """Number of the step. Programs of steps that do not ask for it are the same."""
        self.asked = True
        return self.number

    @t.setter
    def t(self, number: int) -> None:
        self.number = number

    def record(self, t: int) -> list[Operation]:
        """Return the operations of step t."""
        self.tape.begin()
        self.take_step(t)
        return _fused(self.tape.operations, self.tape.kept)

    def objective_gradient(self, params: Params, batch: int) -> Params:
        tape, factors = self.tape, _factors(params)
        source, first = next(iter(factors.items()))
        if len(factors) > 1 or not isinstance(first, float) or first != 1:
            source = tape.new_slot().number
            tape.write(Operation(source, factors))
        counts = batch == 0 and not any(operation.counts for operation in tape.operations)
        gradient = tape.new_slot()
        tape.write(Operation(gradient.number, {}, source, 1.0, batch, counts))
        return Combination.single(gradient)


def _fused(operations: list[Operation], kept: int) -> list[Operation]:
    """Return the operations without gradients that are used once: the operation that uses one computes it.

    kept: slots from this number on last for one step.
    """
    fused = list(operations)
    for gradient in operations:
        slot = gradient.target
        users = [other for other in operations if slot in other.terms or other.source == slot]
        if gradient.source is None or gradient.terms or slot < kept or len(users) != 1:
            continue
        (user,) = users
        between = operations[operations.index(gradient) + 1 : operations.index(user)]
        if user.source is not None or any(other.target == gradient.source for other in between):
            continue
        user.factor = user.terms.pop(slot)
        user.source, user.batch, user.counts = gradient.source, gradient.batch, gradient.counts
        fused.remove(gradient)
    return fused


def _facts(operation: Operation) -> tuple[Any, ...]:
    """What tells an operation from another."""
    numbers = (operation.factor, *operation.terms.values())
    slots = (operation.target, operation.source, operation.batch, operation.counts, *operation.terms)
    return slots, [np.asarray(number).tolist() for number in numbers]


def _split(operation: Operation) -> list[Operation]:
    """Return operations with at most TERMS terms each. The target comes first on the right side."""
    terms = sorted(operation.terms.items(), key=lambda term: term[0] != operation.target)
    operation.terms = dict(terms[:TERMS])
    if len(terms) <= TERMS:
        return [operation]
    return [operation, *_split(Operation(operation.target, {operation.target: 1.0, **dict(terms[TERMS:])}))]


def _tensors(tree: Tree) -> list[Tensor]:
    return [leaf for _, leaf in named_leaves(tree) if isinstance(leaf, Tensor)]


def _vectors(tree: Tree) -> list[Params]:
    return [leaf for _, leaf in named_leaves(tree) if isinstance(leaf, Params)]


def record(
    algorithm: LocalTraining, at: StepContext, kept: Mapping[str, Tree], steps: int, clients: int
) -> Programs | None:
    """Return the programs of a phase's steps, or None if they cannot be recorded.

    Args:
        algorithm: takes the steps.
        at: the phase and the inputs.
        kept: what `step_memory` returned.
        steps: the largest number of steps.
        clients: number of clients.
    """
    phase, layout = at.phase, at.start.layout
    if phase.clip is not None or phase.rates or phase.optimiser != SGD():
        return None
    if any(v.layout is not layout or v.batch not in ((), (clients,)) for v in _vectors(kept)):
        return None
    if any(tensor.shape[:1] != (clients,) for tensor in _tensors(kept)):
        return None
    programs: list[list[Operation]] = []
    try:
        recorder = _Recorder(algorithm, at, kept, clients)
        for t in range(steps):
            operations = recorder.record(t)
            if t == 0 and [*map(_facts, recorder.record(t))] != [*map(_facts, operations)]:
                return None  # the step draws numbers, or counts by itself
            programs.append([part for operation in operations for part in _split(operation)])
            if not recorder.asked and phase.decay is None:
                break  # no step depends on its number
    except (Exception, NotKnown):  # a step may do anything with its vectors; its faults show when it is taken
        return None
    if any(tensor._version for tensor in _tensors(recorder.kept)):
        return None  # numbers that change from step to step
    return _arrays(programs, recorder.tape.kept, clients)


def _arrays(programs: list[list[Operation]], kept: int, clients: int) -> Programs:
    """Return programs as arrays. Slots that last for one step get the numbers behind `kept` in order of their use."""
    every = [operation for program in programs for operation in program]
    batches = sorted({operation.batch for operation in every if operation.source is not None})
    same = not any(isinstance(n, np.ndarray) for one in every for n in (one.factor, *one.terms.values()))
    operations = np.zeros((len(every), FIRST + TERMS), np.int64)
    factors = np.zeros((len(every), 1 + TERMS, 1 if same else clients), np.float32)
    line, slots = 0, kept
    for program in programs:
        places = {slot: slot for slot in range(kept)}
        for operation in program:
            source, terms = operation.source, operation.terms
            for slot in (operation.target, *(() if source is None else (source,)), *terms):
                places.setdefault(slot, len(places))
            batch = 0 if source is None else batches.index(operation.batch)
            at = -1 if source is None else places[source]
            operations[line, :FIRST] = places[operation.target], at, batch, operation.counts, len(terms)
            factors[line, 0] = operation.factor
            for j, (slot, factor) in enumerate(terms.items()):
                operations[line, FIRST + j], factors[line, 1 + j] = places[slot], factor
            line += 1
        slots = max(slots, len(places))
    firsts = np.cumsum([0, *map(len, programs)])
    return Programs(firsts, operations, factors, batches, slots)


def train_recorded(
    algorithm: LocalTraining, chunk: Chunk, backend: type[RunsPrograms], at: StepContext, start: Params
) -> tuple[Params, Mapping[str, Tree], np.ndarray, Tensor, np.ndarray] | None:
    """Take all steps of C clients from `start`; return None if they cannot be recorded.

    Returns (trained parameters, what the steps keep, numbers of steps, sums of losses, numbers of samples).
    """
    kept, clients = algorithm.step_memory(at), len(chunk.sizes)
    counts = at.phase.num_steps(chunk.sizes)
    if not isinstance(kept, Mapping) or not counts.any():
        return None
    programs = record(algorithm, at, kept, int(counts.max()), clients)
    if programs is None or not programs.batches:
        return None
    layout = at.start.layout
    values = torch.empty(1 + len(_vectors(kept)), clients, layout.lengths[0])
    slots = (Params(layout, (value,)) for value in values)
    theta = next(slots).copy_(at.start)
    ends = {
        name: tree_map(lambda leaf: next(slots).copy_(leaf) if isinstance(leaf, Params) else leaf.clone(), tree)
        for name, tree in kept.items()
    }
    loss, seen = backend.run_programs(chunk, at.phase, programs, layout, values, start)
    if start.layout is not layout:
        theta = start.layout.empty(clients).copy_(start).copy_(theta, names=theta)
    return theta, ends, counts, loss, seen
