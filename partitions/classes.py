"""Split classes: each task has some of the classes, with all their samples.

    head per_task   task t distinguishes its c classes, on outputs tc .. (t+1)c - 1       task-incremental
    head shared     y is the position of the class within its task; c outputs in all      domain-incremental
    head joint      all classes seen so far compete                                       class-incremental
    masked joint    the same; the training loss of task t has the outputs tc .. (t+1)c - 1 only

Zenke, Poole, Ganguli 2017, arXiv:1703.04200; the three scenarios: van de Ven, Tolias 2019, arXiv:1904.07734. The K
classes are split into `tasks` groups of c = K / tasks, in the order of their labels or in a random order, and
renumbered in that order. The samples are distributed once, all classes together. A client uses its samples of the
present task, so it may have no rows in a period.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fl.checks import one_of
from fl.data.dataset import Arrays, Dataset
from fl.data.partition import Partition, owners
from fl.data.stream import Period, Scenario, Split, Stream
from fl.data.views import Batch
from fl.registry import register
from fl.tasks.task import Metric, Task
from fl.tensors import random


def class_order(classes: int, order: str, seed: int = 0) -> np.ndarray:
    """Return the classes (classes,) in the order in which the tasks use them.

    >>> class_order(3, "label").tolist()
    [0, 1, 2]
    """
    return random.permutation(classes, seed, "classes") if order == "seeded" else np.arange(classes)


def restricted(partition: Partition, kept: np.ndarray) -> Partition:
    """Keep the rows of each client where `kept` (rows,) bool is true. Some clients may have no rows left."""
    owner = owners(partition)
    mine = kept[partition.indices]
    counts = np.bincount(owner[mine], minlength=partition.num_clients)
    return Partition(partition.indices[mine], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


@dataclass(frozen=True)
class Slice(Task):
    """`task` on the outputs low .. high - 1, for samples whose labels are in that range."""

    task: Task
    low: int
    high: int

    def checked(self, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        return self.task.checked(arrays, where)

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        return self.task.num_outputs(arrays)

    def sliced(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """Return the outputs and the batch as `task` sees them."""
        return outputs[..., self.low : self.high], {**batch, "y": batch["y"] - self.low}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.task.loss(*self.sliced(outputs, batch))

    def metrics(self) -> Mapping[str, Metric]:
        return {name: Sliced(metric, self) for name, metric in self.task.metrics().items()}


class Masked(Slice):
    """The loss of the outputs low .. high - 1, and the metrics of all outputs.

    Outputs before `low` are those of old classes. The loss has no gradient for them, nor for later ones.
    """

    def metrics(self) -> Mapping[str, Metric]:
        return self.task.metrics()


class Sliced(Metric):
    """A metric of `task`, measured on a slice."""

    def __init__(self, metric: Metric, slice_: Slice):
        self.metric, self.slice = metric, slice_

    @property
    def batched(self) -> bool:  # type: ignore[override]  # a class attribute elsewhere
        """Whether the metric takes batched accumulators, as the wrapped one."""
        return self.metric.batched

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        return self.metric.measure(*self.slice.sliced(outputs, batch), segments, count)

    def merge(self, a: Any, b: Any) -> Any:
        return self.metric.merge(a, b)

    def finish(self, acc: Any) -> float:
        return self.metric.finish(acc)

    def each(self, accs: Any, count: int) -> np.ndarray:
        return self.metric.each(accs, count)


@register("stream", "classes")
@dataclass(frozen=True, kw_only=True)
class Classes(Stream):
    """Tasks that are groups of equally many classes.

    Args:
        tasks: Number of tasks; divides the number of classes.
        rounds: Rounds per task; at least 1.
        head: `per_task`, `shared` or `joint`; see the module.
        order: `label` groups the classes by their labels, `seeded` in random order.
        seed: Seed of the order.
        masked: With head joint, the training loss compares the classes of the present task only, so that the weights
            of other outputs get no gradient from it. Metrics compare all classes.
    """

    head: Literal["per_task", "shared", "joint"] = "shared"
    order: Literal["label", "seeded"] = "label"
    seed: int = 0
    masked: bool = False

    @property
    def scenario(self) -> Scenario:  # type: ignore[override]  # a class attribute elsewhere
        """The scenario that follows from `head`."""
        scenarios: dict[str, Scenario] = {"per_task": "task", "shared": "domain", "joint": "class"}
        return scenarios[self.head]

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(("per_task", "shared", "joint"), head=self.head)
        one_of(("label", "seeded"), order=self.order)
        if self.masked and self.head != "joint":
            raise ValueError(f"masked: true with head: {self.head}, which has its own loss; set head: joint")

    def periods(self, dataset: Dataset, split: Split, task: Task) -> tuple[Dataset, Sequence[Period]]:
        classes = int(dataset.labels.max()) + 1
        if classes % self.tasks:
            raise ValueError(f"tasks: {self.tasks} does not divide the {classes} classes; use a number that does")
        size = classes // self.tasks
        places = np.argsort(class_order(classes, self.order, self.seed))
        test = None if dataset.test is None else self._relabelled(dataset.test, places, size)
        relabelled = replace(dataset, train=self._relabelled(dataset.train, places, size), test=test)
        partition, place = split(dataset), places[dataset.labels]
        test_place = None if dataset.test is None else places[dataset.test["y"]]
        return relabelled, [
            Period(
                self.rounds,
                restricted(partition, place // size == t),
                self._task(task, t * size, (t + 1) * size),
                None if test_place is None else np.flatnonzero(test_place // size == t),
            )
            for t in range(self.tasks)
        ]

    def _task(self, task: Task, low: int, high: int) -> Task:
        """Return the task of a period with the classes low .. high - 1."""
        if self.masked:
            return Masked(task, low, high)
        return Slice(task, low, high) if self.head == "per_task" else task

    def _relabelled(self, arrays: Arrays, places: np.ndarray, size: int) -> Arrays:
        """Return the samples with the labels that the tasks use."""
        place = places[arrays["y"]]
        return {**arrays, "y": place % size if self.head == "shared" else place}
