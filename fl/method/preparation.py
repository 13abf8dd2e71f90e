"""Fits before training: what `LocalTraining.prepare_together` may ask of the clients' data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fl.checks import at_least, not_negative
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
        not_negative(rate=self.rate, threshold=self.threshold)
        at_least(2, window=self.window)
        for name in ("base", "direction", "start"):
            each = getattr(self, name)
            if each.layout is not self.start.layout or tuple(each.batch) != (len(self.epochs),):
                raise ValueError(
                    f"{name}: it holds {list(each)} with the batch {tuple(each.batch)}, expected the tensors of start, "
                    f"{list(self.start)}, with the batch ({len(self.epochs)},), that of epochs"
                )


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
        """
