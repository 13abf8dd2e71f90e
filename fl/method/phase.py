"""A phase of local training: gradient steps with one optimiser, batch size and learning rate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, overload

import numpy as np

from fl.method.optimiser import LRSchedule, Optimiser


@dataclass(frozen=True)
class Phase:
    """Gradient steps with one setting.

    >>> from fl.method.optimiser import SGD
    >>> phase = Phase(SGD(), lr=0.1, batch=4, epochs=2)
    >>> phase.num_steps(np.array([0, 3, 10])), phase.num_samples(np.array([0, 3, 10]))
    (array([0, 2, 6]), array([ 0,  6, 20]))

    Args:
        optimiser: the rule of a step.
        lr: learning rate of all steps, at least 0. Ignored if `decay` is given.
        batch: samples per step, positive; "full" takes all samples of the client.
        epochs: passes over the client's training data, positive.
        steps: number of steps, positive. Replaces `epochs`.
        trains: glob patterns of the names of trained parameters; None trains all.
        clip: largest Euclidean norm of a step's gradient, positive; None does not clip.
        name: label of the phase.
        decay: learning rate by step, counted from 0 in each phase of each round.
    """

    optimiser: Optimiser
    lr: float
    batch: int | Literal["full"]
    epochs: int = 1
    steps: int | None = None
    trains: tuple[str, ...] | None = None
    clip: float | None = None
    name: str = "train"
    decay: LRSchedule | None = None

    def at_rate(self, lr: float | LRSchedule, round_: int, rounds: int) -> Phase:
        """Return the phase with another learning rate. A schedule by round is evaluated at `round_` of `rounds`."""
        if not isinstance(lr, LRSchedule):
            return replace(self, lr=float(lr), decay=None)
        if lr.by == "round":
            return replace(self, lr=lr.at(round_, rounds), decay=None)
        return replace(self, lr=lr.start, decay=lr)

    def num_steps(self, n: np.ndarray) -> np.ndarray:
        """Return the number of steps of clients with n (C,) training samples, (C,)."""
        if self.steps is not None:
            return np.where(n > 0, self.steps, 0)
        return self.epochs * -(-n // self._batch_size(n))

    def num_samples(self, n: np.ndarray) -> np.ndarray:
        """Return the number of samples in all batches of clients with n (C,) training samples, (C,).

        The last batch of an epoch may be short.
        """
        if self.steps is None:
            return self.epochs * n
        size = self._batch_size(n)
        epochs, rest = np.divmod(self.num_steps(n), np.maximum(-(-n // size), 1))
        return epochs * n + np.minimum(rest * size, n)

    def _batch_size(self, n: np.ndarray) -> np.ndarray | int:
        return np.maximum(n, 1) if self.batch == "full" else self.batch

    def rate(self, t: int) -> float:
        """Return the learning rate of step t (t counts from 0)."""
        return self.lr if self.decay is None else self.decay.at(t)

    @overload
    def lr_sum(self, steps: int) -> float: ...
    @overload
    def lr_sum(self, steps: np.ndarray) -> np.ndarray: ...
    def lr_sum(self, steps: int | np.ndarray) -> float | np.ndarray:
        """Return the sum of the learning rates of the first `steps` steps; an array (C,) gives (C,).

        >>> from fl.method.optimiser import SGD
        >>> Phase(SGD(), lr=0.5, batch=4).lr_sum(np.array([0, 3]))
        array([0. , 1.5])
        >>> halving = LRSchedule(start=1.0, schedule="step", factor=0.5, by="step")
        >>> Phase(SGD(), lr=1.0, batch=4, decay=halving).lr_sum(np.array([0, 1, 3]))
        array([0.  , 1.  , 1.75])
        """
        if self.decay is None:
            return steps * self.lr
        rates = [0.0, *(self.decay.at(t) for t in range(int(np.max(steps))))]
        return np.cumsum(rates)[steps]
