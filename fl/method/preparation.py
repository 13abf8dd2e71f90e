"""Fits before training: what `LocalTraining.prepare_together` may ask of the clients' data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fl.checks import at_least, within
from fl.tensors.params import Params


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Gradient descent in some of the tensors of C clients, in coordinates z of their own, element by element.

        w = base + z * direction,    z <- clip(z - rate * grad f(w) * direction, low, high)

    f is the mean loss of a batch. With base 0 and direction 1 these are plain steps; with an old model as base, and the
    way to another one as direction, z are the weights of a mixture of both.

    Attributes:
        base: (C,) rows of the tensors that change.
        direction: likewise.
        start: the first z, likewise.
        rate: learning rate, at least 0.
        low: smallest z. Default: no bound.
        high: largest z. Default: no bound.
        epochs: largest number of epochs of each client, int64 (C,); a client with 0 keeps its z.
        window: number of losses that `threshold` looks at, at least 2: of the last batch in each of the last epochs.
        threshold: a client ends after more than `window` epochs if the standard deviation of these losses is below it.
            Default: 0, never.
    """

    base: Params
    direction: Params
    start: Params
    rate: float
    epochs: np.ndarray
    low: float = -math.inf
    high: float = math.inf
    window: int = 2
    threshold: float = 0.0

    def __post_init__(self) -> None:
        within("[0, inf)", rate=self.rate, threshold=self.threshold)
        at_least(2, window=self.window)
        if not self.low <= self.high:
            raise ValueError(f"low: {self.low} is not at most high, {self.high}")
        check_counts("epochs", self.epochs)
        for name in ("base", "direction", "start"):
            each = getattr(self, name)
            if each.layout is not self.start.layout or tuple(each.batch) != (len(self.epochs),):
                raise ValueError(
                    f"{name}: it holds {list(each)} with the batch {tuple(each.batch)}, expected the tensors of start, "
                    f"{list(self.start)}, with the batch ({len(self.epochs)},), that of epochs"
                )


def check_counts(name: str, counts: np.ndarray, sizes: np.ndarray | None = None) -> None:
    """Check that `counts` has a whole number for each client, at least 0.

    Args:
        name: the argument's name.
        counts: the numbers.
        sizes: numbers of samples of the clients, int64 (C,), which are the largest allowed numbers. Default: any.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(counts, np.ndarray) or counts.ndim != 1 or counts.dtype != np.int64:
        given = f"{counts.dtype} {counts.shape}" if isinstance(counts, np.ndarray) else type(counts).__name__
        raise ValueError(f"{name}: {given} is not an int64 array with a number for each client")
    if len(below := np.flatnonzero(counts < 0)):
        raise ValueError(f"{name}[{below[0]}]: {counts[below[0]]} is not at least 0")
    if sizes is None:
        return
    if len(counts) != len(sizes):
        raise ValueError(f"{name}: {len(counts)} numbers for {len(sizes)} clients")
    if len(above := np.flatnonzero(counts > sizes)):
        c = above[0]
        raise ValueError(f"{name}[{c}]: {counts[c]} is more than the client's number of samples, {sizes[c]}")


def check_fit(how: Fit, counts: np.ndarray, sizes: np.ndarray, others: Params) -> None:
    """Check the arguments of `Preparation.fit`.

    Raises:
        ValueError: `how` has rows for another number of clients, `counts` are not numbers of samples that the clients
            have, or `others` differ between clients.
    """
    if len(how.epochs) != len(sizes):
        raise ValueError(f"how: a fit of {len(how.epochs)} clients for {len(sizes)} clients")
    check_counts("counts", counts, sizes)
    if not isinstance(others, Params):
        raise ValueError(f"others: {type(others).__name__}, expected Params")
    if others.batch:
        raise ValueError(f"others: the batch {tuple(others.batch)}, expected Params that are the same for all clients")


class Preparation(Protocol):
    """C clients that prepare for training; C is 1 where clients prepare one after another.

    Attributes:
        sizes: numbers of training samples, int64 (C,).
    """

    sizes: np.ndarray

    def fit(self, how: Fit, name: str, counts: np.ndarray, others: Params) -> tuple[Params, np.ndarray]:
        """Return the last z of each client, batched (C,), and the number of epochs that it took, int64 (C,).

        Batches have the size of the first phase, and are not augmented. Dropout is on. A deadline cuts no steps.

        Args:
            how: the fit.
            name: part of the addresses of the draws: of the chosen samples, and of their order in each epoch.
            counts: number of samples that are chosen from those of each client, at most `sizes`, int64 (C,). A client
                without any keeps its z.
            others: the model's other tensors, the same for all clients. Tensors that are missing from them have their
                initial values.

        Raises:
            ValueError: see `check_fit`.
        """
