"""Streams: the learning problem changes from period to period, and earlier periods are tested again later.

    period 0 (rounds 0..r-1) -> period 1 (rounds r..2r-1) -> ...    each has its rows, partition, test rows and task

A run without a stream has one period. A stream is a frozen dataclass registered under "stream" with the fields `tasks`
and `rounds` (per task) and a method `periods(dataset, split, task) -> (dataset, periods)`. It may generate rows
(permuted pixels) and distributes them with `split`, the partition of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fl.checks import at_least
from fl.data.dataset import Dataset
from fl.data.partition import Partition

if TYPE_CHECKING:
    from fl.tasks.task import Task

Scenario = Literal["task", "domain", "class"]
Split = Callable[[Dataset], Partition]


@dataclass(frozen=True, eq=False)
class Period:
    """One learning problem, learnt for a number of consecutive rounds.

    Args:
        rounds: Number of rounds.
        partition: The rows of each client, as rows of the whole training set.
        task: Loss, outputs and metrics.
        test: (M,) rows of the server's test set that belong to this period. Default: all.
        name: Name in reports.
    """

    rounds: int
    partition: Partition
    task: Task
    test: np.ndarray | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Base of streams.

    `scenario` is the kind of continual learning (van de Ven, Tuytelaars, Tolias 2022, doi:10.1038/s42256-022-00568-3):
    `task`: the task of a test sample is known; `domain`: it is unknown and not needed; `class`: all classes compete.

    Args:
        tasks: Number of tasks; at least 1.
        rounds: Rounds per task; at least 1.
    """

    tasks: int
    rounds: int = 10  # per task

    scenario: ClassVar[Scenario] = "domain"

    def __post_init__(self) -> None:
        at_least(1, tasks=self.tasks, rounds=self.rounds)

    @property
    def total_rounds(self) -> int:
        """Rounds of all tasks together."""
        return self.tasks * self.rounds

    def periods(self, dataset: Dataset, split: Split, task: Task) -> tuple[Dataset, Sequence[Period]]:
        """Return the data set, possibly with new rows, and the periods."""
        raise NotImplementedError


def split_rows(dataset: Dataset, rows: np.ndarray, split: Split) -> Partition:
    """Partition some `rows` of the training set. The result refers to rows of the whole training set."""
    part = Dataset(
        {name: array[rows] for name, array in dataset.train.items()},
        clients=None if dataset.clients is None else dataset.clients[rows],
        held=None if dataset.held is None else dataset.held[rows],
        names=dataset.names,
    )
    partition = split(part)
    return Partition(rows[partition.indices], partition.offsets, partition.val, partition.test)
