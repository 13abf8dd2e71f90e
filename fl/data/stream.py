"""Task streams: what a run learns changes from stage to stage, and what it has learnt is asked again later.

    stage 0 (rounds 0..r-1) -> stage 1 (rounds r..2r-1) -> ...       each its own rows, partition, test rows and task

A run without a stream has one stage. A stream is a frozen dataclass registered under "stream" with the fields `tasks` and
`rounds` (per task) and a method `stages(dataset, split, task) -> (dataset, stages)`: it may make new rows (permuted pixels) and
shares them out with `split`, the run's partition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fl.data.dataset import Dataset
from fl.data.partition import Partition

if TYPE_CHECKING:
    from fl.tasks.task import Task

Scenario = Literal["task", "domain", "class"]
Split = Callable[[Dataset], Partition]


@dataclass(frozen=True, eq=False)
class Stage:
    """A stretch of rounds. `partition` is over rows of the whole training set; `test` (M,) are the rows of the server's test
    set that ask for what this stage teaches, `None` for all of them."""

    rounds: int
    partition: Partition
    task: Task
    test: np.ndarray | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Base of streams. `scenario` says what is incremental (van de Ven, Tuytelaars, Tolias 2022, doi:10.1038/s42256-022-00568-3):
    task: the test says which task it is of; domain: it does not, and need not be known; class: all classes compete."""

    tasks: int
    rounds: int = 10  # per task

    scenario: ClassVar[Scenario] = "domain"

    def __post_init__(self):
        for name in ("tasks", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")

    @property
    def total_rounds(self) -> int:
        return self.tasks * self.rounds

    def stages(self, dataset: Dataset, split: Split, task: Task) -> tuple[Dataset, Sequence[Stage]]:
        raise NotImplementedError


def split_rows(dataset: Dataset, rows: np.ndarray, split: Split) -> Partition:
    """The partition of some rows of the training set, as positions in all of it."""
    part = Dataset(
        {name: array[rows] for name, array in dataset.train.items()},
        clients=None if dataset.clients is None else dataset.clients[rows],
        held=None if dataset.held is None else dataset.held[rows],
    )
    partition = split(part)
    return Partition(rows[partition.indices], partition.offsets, partition.val, partition.test)
