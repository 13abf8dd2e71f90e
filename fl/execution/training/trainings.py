"""The trainings of a client algorithm one after another, for one client or for clients that train together."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from torch import Tensor

from fl.execution.update_checks import checked_pair, end_hook
from fl.method.local_training import LocalTraining
from fl.method.training_values import TrainingInputs, TrainingResult
from fl.tensors.trees import Tree


class Trainings:
    """The course of `algorithm.trainings`. Iterate over the inputs of each training, and tell its end by `ended`.

    Attributes:
        first: the end of the first training.
        loss: its mean loss.
        groups: groups of the update, once the course has ended.
        state: the new state, once the course has ended.
    """

    first: TrainingResult
    loss: float | Tensor
    groups: Mapping[str, Tree]
    state: Tree
    last: TrainingResult | None

    def __init__(self, algorithm: LocalTraining, inputs: TrainingInputs):
        self.who, self.last = f"client {type(algorithm).__name__}: trainings", None
        self.algorithm = algorithm
        self.course: Any = algorithm.trainings(inputs)

    def __iter__(self) -> Iterator[TrainingInputs]:
        """Yield the inputs of each training.

        Raises:
            TypeError: the hook yields no `TrainingInputs`, or does not return (groups, state).
        """
        if not isinstance(self.course, Generator):
            raise TypeError(
                f"{self.who} returned {type(self.course).__name__}; it has to yield the inputs of each training"
            )
        try:
            while True:
                wanted = self.course.send(self.last)
                if not isinstance(wanted, TrainingInputs):
                    raise TypeError(
                        f"{self.who} yielded {type(wanted).__name__}, expected TrainingInputs such as its argument"
                    )
                yield wanted
        except StopIteration as stop:
            found = stop.value
        if self.last is None:
            raise TypeError(f"{self.who} yielded nothing; it has to yield the inputs of at least one training")
        name = type(self.algorithm).__name__
        self.groups, self.state = checked_pair(found, name, end_hook(self.algorithm))

    def ended(self, end: TrainingResult, loss: float | Tensor) -> None:
        """Take the end of the training whose inputs came last, and its mean loss."""
        if self.last is None:
            self.first, self.loss = end, loss
        self.last = end

    def carry(self) -> Tree:
        """Return what the clients keep until the round's next exchange."""
        return self.algorithm.carry(self.first)

    def metrics(self) -> dict[str, float | Tensor]:
        """Return the loss and the metrics of the client's own.

        Raises:
            TypeError: the hook returns no mapping.
            ValueError: one of its own has the name "loss".
        """
        own, who = self.algorithm.metrics(self.first), f"client {type(self.algorithm).__name__}: metrics returned"
        if not isinstance(own, Mapping):
            raise TypeError(f'{who} {type(own).__name__}, expected a mapping by name, as in {{"norm": norm}}')
        if "loss" in own:
            raise ValueError(f"{who} 'loss', which is the client's training loss; choose another name")
        return {"loss": self.loss, **own}
