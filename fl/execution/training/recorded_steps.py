"""Steps that a method takes itself, recorded as programs of linear combinations and gradients for machine code.

`record` runs `LocalTraining.step` on vectors without values, which note what is done with them. It works for steps that
only add and scale vectors and ask for gradients, with plain descent. All other steps are taken one by one, see
own_steps.py; the results are the same but for rounding.
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
from fl.method.local_training import LocalTraining, StepContext
from fl.method.optimiser import SGD
from fl.tensors.params import Layout, Params
from fl.tensors.trees import Tree, named_leaves, tree_map

Number = float | np.ndarray  # a factor, or one for each client, (C,)
Terms = dict[int, Number]  # slot -> factor


class NotRecorded(Exception):
    """A step does more than add and scale vectors."""


@dataclass(eq=False)
class Operation:
    """target <- sum of terms, plus factor times the gradient at `source` if there is one."""

    target: int
    terms: Terms
    source: int | None = None
    factor: Number = 0.0
    batch: int = 0
    counts: bool = False


@dataclass
class _Tape:
    """The operations of one step so far. Slots are numbered from 0; those behind `kept` last for one step."""

    layout: Layout
    kept: int
    operations: list[Operation] = field(default_factory=list)
    versions: dict[int, int] = field(default_factory=dict)  # how often each slot was written
    slots: int = 0

    def new_slot(self) -> int:
        self.slots += 1
        return self.slots - 1

    def write(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.versions[operation.target] = self.versions.get(operation.target, 0) + 1

    def seen(self, terms: Terms) -> dict[int, int]:
        return {slot: self.versions.get(slot, 0) for slot in terms}


class _Vector(Params):
    """A linear combination of slots; in place operations on a slot are recorded. It has no buffers."""

    __slots__ = ("tape", "slot", "found", "seen")

    def __init__(self, tape: _Tape, terms: Terms, slot: int | None = None):
        self.layout, self.tape, self.slot = tape.layout, tape, slot
        self.found, self.seen = terms, tape.seen(terms)

    def __getattr__(self, name: str) -> Any:
        raise NotRecorded(name)

    @property
    def terms(self) -> Terms:
        """slot -> factor."""
        if self.slot is None and self.seen != self.tape.seen(self.found):
            raise NotRecorded("a vector is used after those that it was made of changed")
        return self.found

    def _become(self, terms: Terms) -> _Vector:
        if self.slot is not None:
            self.tape.write(Operation(self.slot, terms))
        else:
            self.found, self.seen = terms, self.tape.seen(terms)
        return self

    def _new(self, terms: Terms) -> _Vector:
        return _Vector(self.tape, terms)

    def clone(self) -> _Vector:
        return self._new(dict(self.terms))

    def copy_(self, other: Any, names: Any = None) -> _Vector:
        if names is not None:
            raise NotRecorded("some tensors are copied")
        return self._become(dict(_terms(other)))

    def add_(self, other: Any, alpha: float = 1.0) -> _Vector:
        return self._become(_sum(self.terms, _scaled(_terms(other), _number(alpha))))

    def sub_(self, other: Any) -> _Vector:
        return self._become(_sum(self.terms, _scaled(_terms(other), -1.0)))

    def mul_(self, factor: Any) -> _Vector:
        return self._become(_scaled(self.terms, _number(factor)))

    def __add__(self, other: Any) -> _Vector:
        return self._new(_sum(self.terms, _terms(other)))

    def __sub__(self, other: Any) -> _Vector:
        return self._new(_sum(self.terms, _scaled(_terms(other), -1.0)))

    def __mul__(self, factor: Any) -> _Vector:
        return self._new(_scaled(self.terms, _number(factor)))

    def __truediv__(self, factor: Any) -> _Vector:
        return self._new(_scaled(self.terms, 1.0 / _number(factor)))

    def __neg__(self) -> _Vector:
        return self._new(_scaled(self.terms, -1.0))

    __radd__, __rmul__ = __add__, __mul__


def _terms(vector: Any) -> Terms:
    if not isinstance(vector, _Vector):
        raise NotRecorded(f"{type(vector).__name__} in place of a vector of the step")
    return vector.terms


def _number(factor: Any) -> Number:
    if isinstance(factor, Tensor) and factor.ndim <= 1:
        return factor.double().numpy().copy() if factor.ndim else float(factor)
    if isinstance(factor, (int, float)):
        return float(factor)
    raise NotRecorded(f"{type(factor).__name__} in place of a number")


def _scaled(terms: Terms, factor: Number) -> Terms:
    return {slot: factor * own for slot, own in terms.items()}


def _sum(left: Terms, right: Terms) -> Terms:
    return left | {slot: left[slot] + own if slot in left else own for slot, own in right.items()}


class _Recorder(OwnSteps):
    """Steps on vectors without values."""

    def __init__(self, algorithm: LocalTraining, at: StepContext, kept: Mapping[str, Tree], layout: Layout):
        self.vectors = 1 + len(_vectors(kept))
        self.tape, self.asked = _Tape(layout, self.vectors), False
        slots = iter(range(1, self.vectors))
        memory = {
            name: tree_map(lambda leaf: self._slot(next(slots)) if isinstance(leaf, Params) else leaf.clone(), tree)
            for name, tree in kept.items()
        }
        super().__init__(algorithm, at, self._slot(0), memory, None)

    def _slot(self, number: int) -> _Vector:
        return _Vector(self.tape, {number: 1.0}, number)

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
        self.tape.operations, self.tape.versions, self.tape.slots = [], {}, self.vectors
        self.take_step(t)
        return _fused(self.tape.operations, self.vectors)

    def objective_gradient(self, params: Params, batch: int) -> Params:
        terms, tape = _terms(params), self.tape
        source = next(iter(terms)) if list(terms.values()) == [1.0] else tape.new_slot()
        if source not in terms:
            tape.write(Operation(source, terms))
        counts = batch == 0 and not any(operation.counts for operation in tape.operations)
        gradient = tape.new_slot()
        tape.write(Operation(gradient, {}, source, 1.0, batch, counts))
        return _Vector(tape, {gradient: 1.0})

    def descend(self, gradient: Params, name: str | None = None, rate: float | None = None) -> None:
        params = self.params if name is None else self.memory[name]
        step = _scaled(_terms(gradient), -_number(self.rate if rate is None else rate))
        assert isinstance(params, _Vector)
        params._become(_sum(params.terms, step))


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
        recorder = _Recorder(algorithm, at, kept, layout)
        for t in range(steps):
            operations = recorder.record(t)
            if [*map(_facts, recorder.record(t))] != [*map(_facts, operations)]:
                return None  # the step draws numbers, or counts by itself
            programs.append([part for operation in operations for part in _split(operation)])
            if not recorder.asked and phase.decay is None:
                break  # all steps are alike
    except Exception:  # a step may do anything with its vectors; its faults show when it is taken
        return None
    if any(tensor._version for tensor in _tensors(recorder.kept)):
        return None  # numbers that change from step to step
    return _arrays(programs, recorder.vectors, clients)


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
    algorithm: LocalTraining, chunk: Chunk, backend: type[RunsPrograms], at: StepContext
) -> tuple[Params, Mapping[str, Tree], np.ndarray, Tensor, np.ndarray] | None:
    """Take all steps of C clients; return None if they cannot be recorded.

    Returns (trained parameters, what the steps keep, numbers of steps, sums of losses, numbers of samples).
    """
    kept, clients = algorithm.step_memory(at), len(chunk.sizes)
    counts = at.phase.num_steps(chunk.sizes)
    if not isinstance(kept, Mapping) or not counts.any():
        return None
    programs = record(algorithm, at, kept, int(counts.max()), clients)
    if programs is None:
        return None
    layout = at.start.layout
    values = torch.empty(1 + len(_vectors(kept)), clients, layout.lengths[0])
    slots = (Params(layout, (value,)) for value in values)
    theta = next(slots).copy_(at.start)
    ends = {
        name: tree_map(lambda leaf: next(slots).copy_(leaf) if isinstance(leaf, Params) else leaf.clone(), tree)
        for name, tree in kept.items()
    }
    loss, seen = backend.run_programs(chunk, at.phase, programs, layout, values)
    return theta, ends, counts, loss, seen
