"""The rule of a phase's steps, from its optimiser, its bound of the gradient's norm and the method's penalty."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fl.execution.training.chunk import Asked, Wanted
from fl.execution.training.native import steps
from fl.execution.training.native.combine import DELTA, OWN, TRAINED, Combined
from fl.execution.training.native.steps import Rule
from fl.method.optimiser import SGD, Adam
from fl.method.penalty import Penalty
from fl.method.phase import Phase
from fl.tensors.buffers import pooled_buffer
from fl.tensors.combination import Combination, Factor, Term, opposite
from fl.tensors.gathered import Gathered, places
from fl.tensors.params import Layout, Params

_SGD = SGD()
_NO_FACTORS, _NONE = np.empty((0, 0), np.float32), np.empty(0, np.float32)
_PLAIN = Rule(steps.PLAIN, np.zeros(6, np.float32), _NO_FACTORS, _NO_FACTORS)  # w <- w - rate g
KEPT = len(steps.Kept._fields)  # arrays of a client's size that a rule may need


class Sources:
    """Vectors of clients that machine code reads where they lie, by address.

    Args:
        clients: number of clients.
        start: the parameters before training.
        trained: stands for those after training.
    """

    def __init__(self, clients: int, start: Params, trained: Params | None = None):
        self.clients, self.start, self.trained = clients, start, trained
        self.parts: dict[int, Term] = {}  # by identity

    def factors(self, combination: Params | None) -> dict[int, Factor]:
        """Return the factors of a combination by column, see combine.py; None: the change of the parameters.

        Raises:
            NotKnown: numbers of the combination have changed since it was made.
        """
        if combination is None:
            return {DELTA: 1.0}
        found: dict[int, Factor] = {}
        terms = Combination.single(combination).collected()
        trained = next((factor for factor, params in terms if params is self.trained), None)
        before = next((factor for factor, params in terms if params is self.start), None)
        change = trained is not None and before is not None and opposite(trained, before)
        for factor, params in terms:
            if params is self.trained:
                found[DELTA if change else TRAINED] = factor
            elif not (change and params is self.start):
                self.parts.setdefault(id(params), Term.of(params))
                found[OWN + list(self.parts).index(id(params))] = factor
        return found

    def of_penalty(self, part: Params | None) -> np.ndarray:
        """Return the factors of a penalty's slope or stiffness: of each client, one row for all, or none."""
        if part is None:
            return _NO_FACTORS
        factors = self.arrays([self.factors(part)])[0, :, OWN:]
        return np.ascontiguousarray(factors if part.batch else factors[:1])

    def arrays(self, combinations: Sequence[dict[int, Factor]]) -> np.ndarray:
        """Return the factors of combinations for each client, float32 (n, C, 2 + sources)."""
        out = np.zeros((len(combinations), self.clients, OWN + len(self.parts)), np.float32)
        for each, factors in zip(out, combinations):
            for column, factor in factors.items():
                each[:, column] = factor
        return out

    def addresses(self, clients: int, values: Mapping[int, Params]) -> tuple[np.ndarray, list[Tensor]]:
        """Return the address of each source's row for `clients` clients, int64 (S, C), and what keeps the memory.

        Args:
            clients: number of clients, C.
            values: see `Asked`.

        Raises:
            NotKnown: numbers of a source have changed since.
        """
        found, kept = np.empty((len(self.parts), clients), np.int64), list[Tensor]()
        for (key, part), row in zip(self.parts.items(), found):
            if key not in values:
                part.check()
            row[:], memory = places(_whole(values.get(key, part.params), self.start.layout), clients)
            kept += memory
        return found, kept


def _whole(part: Params, layout: Layout) -> Params:
    """Return parameters in a layout that has more tensors, with zeros for those."""
    return part if part.layout is layout else layout.zeros(*part.batch).copy_(part, names=part)


@dataclass(frozen=True)
class Outputs:
    """What machine code writes for the clients of a chunk.

    Attributes:
        found: the results, which machine code fills.
        plain: (params, minus_start, factors) of `native.Results`.
        combined: the other results.
        kept: memory that machine code reads by address.
    """

    found: list[Params]
    plain: tuple[np.ndarray, bool, np.ndarray]
    combined: Combined
    kept: Sequence[Tensor] = ()


class Formulas:
    """What machine code computes for N clients: the rule of their steps, and their results.

    One result that is the trained parameters or their change needs no factors. The others are combinations.

    Args:
        sources: vectors of clients, to which those of the results are added.
        rule: the rule of the steps.
        wanted: the results.

    Attributes:
        summed: number of sums over clients, that of the result without factors included even if it is none.
    """

    def __init__(self, sources: Sources, rule: Rule, wanted: Sequence[Wanted]):
        self.sources, self.all_rules, self.count = sources, rule, len(wanted)
        columns = [sources.factors(each.combination) for each in wanted]
        self.one = next((i for i, factors in enumerate(columns) if _plain_result(factors, wanted[i])), -1)
        others = [i for i in range(len(wanted)) if i != self.one]
        self.at_once = [i for i in others if wanted[i].summed]
        self.each_client = [i for i in others if not wanted[i].summed]
        one_summed = self.one >= 0 and wanted[self.one].summed
        self.minus_start = self.one >= 0 and DELTA in columns[self.one]
        self.summed = 1 + len(self.at_once) if self.at_once or one_summed else 0
        self.row_factors = sources.arrays([columns[i] for i in self.each_client])
        self.sum_factors = sources.arrays([columns[i] for i in self.at_once])

    def shares(self, unknown: Sequence[Params]) -> bool:
        """Whether all vectors that formulas read are the same for all clients, but for these and the trained ones."""
        parts = [term.params for term in self.sources.parts.values()]
        return not any(part.batch and not any(part is other for other in unknown) for part in parts)

    def rule(self, part: slice) -> Rule:
        """Return the rule of some of the clients."""
        kind, numbers, slope, stiffness = self.all_rules
        return Rule(kind, numbers, *(own if len(own) <= 1 else own[part] for own in (slope, stiffness)))

    def outputs(self, clients: int, asked: Asked) -> Outputs:
        """Return memory for the results of `clients` clients, and what machine code needs to fill it."""
        layout, weights, one = self.sources.start.layout, asked.weights, self.one
        length = layout.lengths[0]
        buffers: dict[int, Tensor] = {}
        plain = (_NONE.reshape(0, length), False, _NONE)
        if one >= 0:
            own, factors = weights[one], _NONE
            if own is None:
                buffers[one] = pooled_buffer(clients * length).view(-1, length)
            else:
                buffers[one], factors = pooled_buffer(length), own.numpy().astype(np.float32)
            plain = (buffers[one].numpy().reshape(-1, length), self.minus_start, factors)
        if one >= 0 and self.count == 1 and not self.sources.parts:
            return Outputs([Params(layout, (buffers[one],))], plain, _no_combinations(clients, length))
        rows_ = self._rows(clients, asked).view(-1, clients, length)
        sums = pooled_buffer(len(self.at_once) * length).view(-1, length)
        buffers |= {i: rows_[k] for k, i in enumerate(self.each_client)}
        buffers |= {i: sums[k] for k, i in enumerate(self.at_once)}
        addresses, kept = self.sources.addresses(clients, asked.values)
        combined = Combined(
            addresses,
            np.ascontiguousarray(self.row_factors[:, asked.part]),
            rows_.numpy(),
            np.ascontiguousarray(self.sum_factors[:, asked.part]),
            _weights([weights[i] for i in self.at_once], clients),
            sums.numpy(),
        )
        return Outputs([Params(layout, (buffers[i],)) for i in range(self.count)], plain, combined, kept)

    def _rows(self, clients: int, asked: Asked) -> Tensor:
        """Return memory for the combinations of each client: that of a value if there is one combination.

        Its memory was read a moment ago. Other memory would first have to come into the caches.
        """
        number, length = len(self.each_client), self.sources.start.layout.lengths[0]
        for value in asked.values.values():
            if number == 1 and not isinstance(value, Gathered) and value.buffers[0].is_contiguous():
                return value.buffers[0]
        return pooled_buffer(number * clients * length)


@functools.lru_cache(maxsize=64)
def _no_combinations(clients: int, length: int) -> Combined:
    """Return the arrays of machine code that computes no combination. It writes none of them, so they are kept."""
    factors = np.empty((0, clients, OWN), np.float32)
    rows, sums = np.empty((0, clients, length), np.float32), np.empty((0, length), np.float32)
    return Combined(np.empty((0, clients), np.int64), factors, rows, factors, _weights([], clients), sums)


def _weights(weights: Sequence[Tensor | None], clients: int) -> np.ndarray:
    """Return the weights of sums, each (C,), as float32 (U, C)."""
    out = np.empty((len(weights), clients), np.float32)
    for row, weight in zip(out, weights):
        row[:] = weight
    return out


def _plain_result(factors: dict[int, Factor], wanted: Wanted) -> bool:
    """Whether a result is the trained parameters of each client, or their change, or the sum of changes."""
    columns = (DELTA,) if wanted.summed else (DELTA, TRAINED)
    return len(factors) == 1 and any(isinstance(factors.get(k), float) and factors[k] == 1 for k in columns)


def rule_of(phase: Phase, penalty: Penalty | None, start: Params, sources: Sources) -> Rule:
    """Return the rule of a phase that starts from `start`, of all clients or of each; add what its slope reads."""
    if penalty is None and phase.clip is None and phase.optimiser == _SGD:
        return _PLAIN
    pull, slope, stiffness = (0.0, None, None) if penalty is None else _parts(penalty, start)
    optimiser = phase.optimiser
    if isinstance(optimiser, Adam):
        kind, own = steps.ADAM, (1 - optimiser.beta1, optimiser.beta2, 1 - optimiser.beta2, optimiser.eps)
    else:
        assert isinstance(optimiser, SGD)
        kind = steps.SGD
        own = (optimiser.weight_decay, optimiser.momentum, float(optimiser.nesterov), 0.0)
    numbers = np.array([pull, phase.clip or 0.0, *own], np.float32)
    return Rule(kind, numbers, sources.of_penalty(slope), sources.of_penalty(stiffness))


def _parts(penalty: Penalty, start: Params) -> tuple[float, Params | None, Params | None]:
    """Return (pull, slope, stiffness) with the gradient pull (w - start) + slope + stiffness w."""
    strength, centre, slope = penalty.strength, penalty.centre, penalty.slope
    if isinstance(strength, Params):
        if centre is not None:
            slope = -(strength * centre) if slope is None else slope - strength * centre
        return 0.0, slope, strength
    if strength and centre is not start:
        moved = strength * (start if centre is None else start - centre)
        slope = moved if slope is None else slope + moved
    return float(strength), slope, None


def rates_of(phase: Phase, count: int) -> np.ndarray:
    """Return the numbers of `count` steps, (3, count): rates; for Adam also shrink and correction, see steps.py."""
    adam = phase.optimiser
    if phase.decay is None and not isinstance(adam, Adam):
        return _constant_rates(phase.lr, count)
    rates = np.array([phase.rate(step) for step in range(count)])
    if not isinstance(adam, Adam):
        return np.stack([rates, rates, rates]).astype(np.float32)
    k = np.arange(1, count + 1)
    correction = np.sqrt(1 - adam.beta2**k)
    return np.stack([rates / (1 - adam.beta1**k), 1 - rates * adam.weight_decay, correction]).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _constant_rates(lr: float, count: int) -> np.ndarray:
    return np.full((3, count), lr, np.float32)


def rows(params: Params) -> np.ndarray:
    """Return parameters of all clients (1, P), or of each (C, P)."""
    return np.ascontiguousarray(params.buffers[0].numpy().reshape(-1, params.layout.lengths[0]))
