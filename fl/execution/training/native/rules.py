"""The rule of a phase's steps, from its optimiser, its bound of the gradient's norm and the method's penalty."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fl.execution.training.chunk import Wanted
from fl.execution.training.native import steps
from fl.execution.training.native.combine import DELTA, OWN, TRAINED, Combined
from fl.execution.training.native.steps import Rule
from fl.method.optimiser import SGD, Adam
from fl.method.penalty import Penalty
from fl.method.phase import Phase
from fl.tensors.buffers import pooled_buffer
from fl.tensors.combination import Combination, Factor, opposite
from fl.tensors.params import Params

_SGD = SGD()
_NO_FACTORS = np.empty((0, 0), np.float32)
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
        self.parts: dict[int, Params] = {}  # by identity

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
                self.parts.setdefault(id(params), params)
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

    def addresses(self) -> np.ndarray:
        """Return (address, bytes from one client to the next) of each source, int64 (S, 2)."""
        found = np.empty((len(self.parts), 2), np.int64)
        for key, row in zip(list(self.parts), found):
            part = self.parts[key] = Params(self.start.layout, (self.parts[key].buffers[0].contiguous(),))
            buffer = part.buffers[0]
            row[:] = buffer.data_ptr(), buffer[0].nbytes if part.batch else 0
        return found


class Outputs:
    """What machine code writes, and the memory that it writes to.

    One result that is the trained parameters or their change needs no factors: `plain`. The others are combinations.

    Args:
        sources: vectors of clients, to which those of the results are added.
        wanted: the results.

    Attributes:
        found: the results, which machine code fills.
        plain: (params, minus_start, factors) of `native.Results`.
        combined: the other results.
        summed: number of sums over clients, that of `plain` included even if it is none.
    """

    def __init__(self, sources: Sources, wanted: Sequence[Wanted]):
        layout, clients = sources.start.layout, sources.clients
        length = layout.lengths[0]
        none = np.empty(0, np.float32)
        columns = [sources.factors(each.combination) for each in wanted]
        one = next((i for i, factors in enumerate(columns) if _plain_result(factors, wanted[i])), -1)
        at_once = [i for i, each in enumerate(wanted) if i != one and each.weights is not None]
        each_client = [i for i, each in enumerate(wanted) if i != one and each.weights is None]
        buffers: dict[int, Tensor] = {}
        self.plain = (none.reshape(0, length), False, none)
        if one >= 0:
            weights, factors = wanted[one].weights, none
            if weights is None:
                buffers[one] = pooled_buffer(clients * length).view(-1, length)
            else:
                buffers[one], factors = pooled_buffer(length), weights.numpy().astype(np.float32)
            self.plain = (buffers[one].numpy().reshape(-1, length), DELTA in columns[one], factors)
        summed = len(at_once) + (one >= 0 and wanted[one].weights is not None)
        self.summed = 1 + len(at_once) if summed else 0
        if one >= 0 and len(wanted) == 1 and not sources.parts:
            self.found, self.combined = [Params(layout, (buffers[one],))], _no_combinations(clients, length)
            return
        rows_, sums = pooled_buffer(len(each_client) * clients * length), pooled_buffer(len(at_once) * length)
        all_rows, all_sums = rows_.view(-1, clients, length), sums.view(-1, length)
        buffers |= {i: all_rows[k] for k, i in enumerate(each_client)} | {i: all_sums[k] for k, i in enumerate(at_once)}
        self.found = [Params(layout, (buffers[i],)) for i in range(len(wanted))]
        self.combined = Combined(
            sources.addresses(),
            sources.arrays([columns[i] for i in each_client]),
            all_rows.numpy(),
            sources.arrays([columns[i] for i in at_once]),
            _weights([wanted[i].weights for i in at_once], clients),
            all_sums.numpy(),
        )


@functools.lru_cache(maxsize=64)
def _no_combinations(clients: int, length: int) -> Combined:
    """Return the arrays of machine code that computes no combination. It writes none of them, so they are kept."""
    factors = np.empty((0, clients, OWN), np.float32)
    rows, sums = np.empty((0, clients, length), np.float32), np.empty((0, length), np.float32)
    return Combined(np.empty((0, 2), np.int64), factors, rows, factors, _weights([], clients), sums)


def _weights(weights: Sequence[Tensor | None], clients: int) -> np.ndarray:
    """Return the weights of sums, each (C,), as float32 (U, C)."""
    out = np.empty((len(weights), clients), np.float32)
    for row, weight in zip(out, weights):
        row[:] = weight
    return out


def _plain_result(factors: dict[int, Factor], wanted: Wanted) -> bool:
    """Whether a result is the trained parameters of each client, or their change, or the sum of changes."""
    columns = (DELTA,) if wanted.weights is not None else (DELTA, TRAINED)
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
