"""The rule of a phase's steps, from its optimiser, its bound of the gradient's norm and the method's penalty."""

from __future__ import annotations

import functools

import numpy as np

from fl.execution.training.native import steps
from fl.execution.training.native.steps import Rule
from fl.method.optimiser import SGD, Adam
from fl.method.penalty import Penalty
from fl.method.phase import Phase
from fl.tensors.params import Params

KEPT = len(steps.Kept._fields)  # arrays of a client's size that a rule may need


def rule_of(phase: Phase, penalty: Penalty | None, start: Params) -> Rule:
    """Return the rule of a phase that starts from `start`, of all clients or of each."""
    if penalty is None and phase.clip is None and phase.optimiser == SGD():
        return _plain(start.layout.lengths[0])
    pull, slope, stiffness = (0.0, None, None) if penalty is None else _parts(penalty, start)
    optimiser = phase.optimiser
    if isinstance(optimiser, Adam):
        kind, own = steps.ADAM, (1 - optimiser.beta1, optimiser.beta2, 1 - optimiser.beta2, optimiser.eps)
    else:
        assert isinstance(optimiser, SGD)
        kind = steps.SGD
        own = (optimiser.weight_decay, optimiser.momentum, float(optimiser.nesterov), 0.0)
    numbers = np.array([pull, phase.clip or 0.0, *own], np.float32)
    none = np.empty((0, start.layout.lengths[0]), np.float32)
    return Rule(kind, numbers, none if slope is None else rows(slope), none if stiffness is None else rows(stiffness))


@functools.lru_cache(maxsize=8)
def _plain(length: int) -> Rule:
    """Return the rule w <- w - rate g for rows of this length. A chunk of tiny models takes 2 ms, so this is kept."""
    none = np.empty((0, length), np.float32)
    return Rule(steps.PLAIN, np.zeros(6, np.float32), none, none)


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
        return np.full((3, count), phase.lr, np.float32)
    rates = np.array([phase.rate(step) for step in range(count)])
    if not isinstance(adam, Adam):
        return np.stack([rates, rates, rates]).astype(np.float32)
    k = np.arange(1, count + 1)
    correction = np.sqrt(1 - adam.beta2**k)
    return np.stack([rates / (1 - adam.beta1**k), 1 - rates * adam.weight_decay, correction]).astype(np.float32)


def rows(params: Params) -> np.ndarray:
    """Return parameters of all clients (1, P), or of each (C, P)."""
    return params.buffers[0].reshape(-1, params.layout.lengths[0]).contiguous().numpy()
