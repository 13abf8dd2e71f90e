"""A phase of local training: gradient steps with one optimiser, batch size and learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, get_args, overload

import numpy as np

from fl.checks import one_of
from fl.method.optimiser import LRSchedule, Optimiser
from fl.method.rates import GroupRates
from fl.method.views import WEAK, Beside, Chain, TrainingView, check_changes

LastBatch: TypeAlias = Literal["keep", "drop", "merge", "merge_one"]


def rate_at(lr: float | LRSchedule, round_: int, rounds: int) -> tuple[float, LRSchedule | None]:
    """Return `lr` and `decay` of a phase. A schedule by round is evaluated at `round_` of `rounds`."""
    if not isinstance(lr, LRSchedule):
        return float(lr), None
    return (lr.at(round_, rounds), None) if lr.by == "round" else (lr.start, lr)


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
        epochs: passes over the client's training data, positive. A fraction is rounded to whole steps, see `num_steps`.
        steps: number of steps, positive. Replaces `epochs`.
        trains: glob patterns of the names of trained parameters; None trains all.
        clip: largest Euclidean norm of a step's gradient, positive; None does not clip.
        name: label of the phase.
        decay: learning rate by step, counted from 0 in each phase of each round.
        last_batch: what happens to the last batch of an epoch if it is shorter than `batch`. "keep": it is a batch.
            "drop": it is left out, unless it is the only one. "merge": it joins the batch before it. "merge_one": as
            "merge" if it has one sample, else as "keep".
        rates: glob pattern -> factor of the learning rate of the parameters whose names match, positive. Other
            parameters have the factor 1. None: all have.
        view: rows that batches are made of: with labels ("train"), without ("unlabelled"), or both ("all").
        changes: arrays of changed samples in a batch, each with its chain of augmentations, see `Beside`.
        beside: further samples of a step, by name.
    """

    optimiser: Optimiser
    lr: float
    batch: int | Literal["full"]
    epochs: float = 1
    steps: int | None = None
    trains: tuple[str, ...] | None = None
    clip: float | None = None
    name: str = "train"
    decay: LRSchedule | None = None
    last_batch: LastBatch = "keep"
    rates: Mapping[str, float] | None = None
    view: TrainingView = "train"
    changes: Mapping[str, Chain] = field(default_factory=lambda: WEAK)
    beside: Mapping[str, Beside] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.has_views:  # phases are made for each client
            one_of(get_args(TrainingView), view=self.view)
            check_changes(self.changes)

    @property
    def rule(self) -> Optimiser:
        """The rule of a step: the optimiser, with the factors of `rates` if there are any."""
        return GroupRates(self.optimiser, self.rates) if self.rates else self.optimiser

    @property
    def has_views(self) -> bool:
        """Whether steps take other rows than labelled ones, or change samples in other ways than `data.augment`."""
        return self.view != "train" or bool(self.beside) or (self.changes is not WEAK and self.changes != WEAK)

    def rows(self, labelled: np.ndarray, unlabelled: np.ndarray) -> np.ndarray:
        """Return the number of rows of the phase's view, (C,), of clients with these numbers of training rows, (C,)."""
        if self.view == "all":
            return labelled + unlabelled
        return labelled if self.view == "train" else unlabelled

    def samples_beside(self, labelled: np.ndarray, unlabelled: np.ndarray) -> np.ndarray:
        """Return the samples beside the phase's view in one step, (C,). All received rows count as none."""
        total = np.zeros_like(labelled)
        for beside in self.beside.values():
            n = {"train": labelled, "unlabelled": unlabelled, "all": labelled + unlabelled}.get(beside.view)
            if n is not None:
                total = total + (n if beside.batch == "full" else np.where(n > 0, beside.batch, 0))
            elif beside.batch != "full":
                total = total + beside.batch
        return total

    def at_rate(self, lr: float | LRSchedule, round_: int, rounds: int) -> Phase:
        """Return the phase with another learning rate, see `rate_at`."""
        rate, decay = rate_at(lr, round_, rounds)
        return replace(self, lr=rate, decay=decay)

    def num_steps(self, n: np.ndarray) -> np.ndarray:
        """Return the number of steps of clients with n (C,) training samples, (C,).

        They are `epochs` times the batches of an epoch, rounded to the nearest number (a half is rounded up), and at
        least 1 for a client with samples.

        >>> from fl.method.optimiser import SGD
        >>> Phase(SGD(), lr=0.1, batch=4, epochs=0.5).num_steps(np.array([0, 3, 10, 16]))
        array([0, 1, 2, 2])
        """
        if self.steps is not None:
            return np.where(n > 0, self.steps, 0)
        per_epoch = self.batches_per_epoch(n)
        if self.epochs >= 1 and self.epochs == int(self.epochs):
            return per_epoch.astype(np.int64, copy=False) * int(self.epochs)
        return np.maximum(np.floor(self.epochs * per_epoch + 0.5).astype(np.int64), np.minimum(per_epoch, 1))

    def num_samples(self, n: np.ndarray) -> np.ndarray:
        """Return the number of samples in all batches of clients with n (C,) training samples, (C,)."""
        epochs, rest = np.divmod(self.num_steps(n), np.maximum(self.batches_per_epoch(n), 1))
        return epochs * self.samples_per_epoch(n) + rest * self.batch_size(n)  # the last batch is not in the rest

    def batches_per_epoch(self, n: np.ndarray) -> np.ndarray:
        """Return the number of batches in an epoch of clients with n (C,) training samples, (C,).

        >>> from fl.method.optimiser import SGD
        >>> n = np.array([0, 3, 8, 9, 10])
        >>> for last_batch in ("keep", "drop", "merge", "merge_one"):
        ...     print(Phase(SGD(), lr=0.1, batch=4, last_batch=last_batch).batches_per_epoch(n))
        [0 1 2 3 3]
        [0 1 2 2 2]
        [0 1 2 2 2]
        [0 1 2 2 3]
        """
        size = self.batch_size(n)
        if self.last_batch == "keep":
            return -(-n // size)
        whole, tail = np.divmod(n, size)
        if self.last_batch == "merge_one":
            own = (tail > 1) | ((tail == 1) & (whole == 0))
        else:
            own = (tail > 0) & (whole == 0)
        return whole + own

    def samples_per_epoch(self, n: np.ndarray) -> np.ndarray:
        """Return the number of samples in an epoch of clients with n (C,) training samples, (C,).

        All batches but the last have `batch_size` samples; the last one has the rest of these samples.
        """
        if self.last_batch != "drop":
            return n
        return np.minimum(n, self.batches_per_epoch(n) * self.batch_size(n))

    def smallest_batch(self, n: np.ndarray) -> np.ndarray:
        """Return the size of the smallest batch in an epoch of clients with n (C,) training samples, (C,).

        >>> from fl.method.optimiser import SGD
        >>> Phase(SGD(), lr=0.1, batch=4).smallest_batch(np.array([0, 3, 8, 9]))
        array([0, 3, 4, 1])
        """
        before = np.maximum(self.batches_per_epoch(n) - 1, 0)
        last = self.samples_per_epoch(n) - before * self.batch_size(n)
        return np.where(before > 0, np.minimum(self.batch_size(n), last), last)

    def batch_size(self, n: np.ndarray) -> np.ndarray | int:
        """Return the number of samples of a full batch of clients with n (C,) training samples; an int or (C,)."""
        return np.maximum(n, 1) if self.batch == "full" else self.batch

    def batch_slices(self, n: int) -> list[slice]:
        """Return the batches of an epoch over n samples, as slices of its order.

        >>> from fl.method.optimiser import SGD
        >>> Phase(SGD(), lr=0.1, batch=4, last_batch="merge").batch_slices(10)
        [slice(0, 4, None), slice(4, 10, None)]
        """
        size, count, end = (
            int(f(np.array(n))) for f in (self.batch_size, self.batches_per_epoch, self.samples_per_epoch)
        )
        return [slice(k * size, end if k == count - 1 else (k + 1) * size) for k in range(count)]

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
